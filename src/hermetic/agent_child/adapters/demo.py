"""The demo agent: what runs when nothing is configured. No model and no network, but a real workspace.

It understands a few plain requests by regular expressions and does what they say: lists, reads, searches, writes and
edits files, and runs shell commands once it is allowed to. It is an ordinary function on a `Turn`, so it also shows
how to write one.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

from hermetic.agent_child.adapters.function import FunctionAdapter
from hermetic.agent_child.turn import Turn
from hermetic.protocol.commands import Start

REQUEST_CHARS_MAX = 4000
"""Of any request but a text to write: the patterns backtrack, and a long run of spaces would take them minutes."""
FILE_BYTES_MAX = 32 << 10
"""Of a file that is shown: about what a person scrolls through."""
SEARCH_FILE_BYTES_MAX = 1 << 20
"""Larger files are data, not text that somebody wrote."""
FILES_MAX = 5000
"""Looked at in one search or listing, so that a huge tree does not take the turn's hour."""
LINES_MAX = 200
"""Shown of a search or a listing."""
OUTPUT_BYTES_MAX = 256 << 10
"""Of a command; then it is stopped, since `yes` never ends."""
PIECE_S = 0.008
"""Between two pieces of a text: fast, and slow enough to see that it streams."""
PACED_CHARS_MAX = 2000
"""Longer texts go out at once after this, so that a large file does not take seconds."""

HELP = """\
This is Hermetic's demo agent: it has no model behind it, but it works on this session's workspace. \
To plug in your own agent, put this into the configuration and restart:

```toml
[agents.mine]
adapter = "function"
target = "module:callable"              # def callable(turn): turn.token("Hello"); any model client goes in here
python_path = ["/where/the/module/is"]
```

Meanwhile you can ask me to:

- `list files` or `list files in DIR`
- `read FILE`
- `find TEXT` or `find TEXT in PATH`
- `write FILE: TEXT`
- `replace "A" with "B" in FILE`
- `run COMMAND` (I ask for your approval first)
- `count to 20 slowly`, to try stopping, and reloading the page
- `ask me`, to see a question
"""


class DemoAdapter(FunctionAdapter):
    def load(self, start: Start) -> Callable[..., Any]:
        return demo


class Refused(Exception):
    """A request that the demo does not carry out; its text is the answer."""


def demo(turn: Turn) -> None:
    """One answer."""
    request = turn.message.strip()
    for pattern, action in ACTIONS:
        if len(request) > REQUEST_CHARS_MAX and action is not _write_file:
            continue
        if match := re.fullmatch(pattern, request, re.IGNORECASE | re.DOTALL):
            groups = {name: value or "" for name, value in match.groupdict().items()}
            break
    else:
        action, groups = _not_understood, {}
    if action is not _not_understood:
        turn.reasoning(f"The request matches “{action.__name__.strip('_').replace('_', ' ')}”.")
    words = _Words(turn)
    try:
        action(words, **groups)
    except Refused as refusal:
        words.say(str(refusal))
    except OSError as error:
        words.say(f"That did not work: {error.strerror or error}.")
    turn.usage(input_tokens=len(turn.message.split()), output_tokens=words.count)


class _Words:
    """A turn, a mouth that speaks in small pieces, and a count of words in place of a model's tokens."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.count = 0

    def say(self, text: str) -> None:
        for number, piece in enumerate(re.findall(r"\S{1,80}\s{0,80}|\s{1,80}", text[:PACED_CHARS_MAX])):
            if number:
                time.sleep(PIECE_S)
            self.turn.token(piece)
        self.say_at_once(text[PACED_CHARS_MAX:])
        self.count += len(text[:PACED_CHARS_MAX].split())

    def say_at_once(self, text: str) -> None:
        self.turn.token(text)
        self.count += len(text.split())


# --- the workspace ------------------------------------------------------------------------------------------------


def _inside(turn: Turn, name: str) -> str:
    """The absolute path of a name in the workspace, with links resolved. Raises Refused when it leads out.

    A guard for an honest demo, not a wall: between this and the opening a link could change. The wall is the seal.
    """
    root = os.path.realpath(turn.workspace)
    path = os.path.realpath(os.path.join(root, os.path.expanduser(_unquoted(name) or ".")))
    if os.path.commonpath((root, path)) != root:
        raise Refused(f"I only work inside this session's workspace, and `{_unquoted(name)}` leads out of it.")
    return path


def _unquoted(name: str) -> str:
    name = name.strip()
    if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'`":
        return name[1:-1]
    return name


def _shown(turn: Turn, path: str) -> str:
    return os.path.relpath(path, os.path.realpath(turn.workspace))


def _read(path: str, bytes_max: int) -> tuple[str, bool]:
    """A regular file's text, and whether there was more of it. Raises Refused."""
    # Non-blocking, and the check on the open file: a FIFO in the workspace would wait for ever.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Refused(f"`{os.path.basename(path)}` is not a file that I can read.")
        data = file.read(bytes_max + 1)
    if b"\0" in data:
        raise Refused(f"`{os.path.basename(path)}` is a binary file.")
    return data[:bytes_max].decode("utf-8", "replace"), len(data) > bytes_max


def _files(top: str) -> Iterator[str]:
    """Regular files below, links not followed, `.git` and its like left out; at most FILES_MAX."""
    if os.path.isfile(top):
        yield top
        return
    seen = 0
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                seen += 1
                if seen > FILES_MAX:
                    return
                yield path


def _fenced(text: str) -> str:
    """A Markdown code block that the text itself cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}{'' if text.endswith(chr(10)) else chr(10)}{fence}\n"


# --- what it can do -----------------------------------------------------------------------------------------------


def _help(words: _Words) -> None:
    words.say(HELP)


def _not_understood(words: _Words) -> None:
    words.say(f"I did not understand that: I am only a demo and know a handful of requests.\n\n{HELP}")


def _list_files(words: _Words, where: str) -> None:
    turn = words.turn
    top = _inside(turn, where)
    with turn.tool("list_files", {"path": _shown(turn, top)}, preview=_shown(turn, top)) as call:
        entries = sorted(os.scandir(top), key=lambda entry: entry.name)
        lines = [f"{entry.name}/" if entry.is_dir() else f"{entry.name}  ({_size(entry)})" for entry in entries]
        call.complete("\n".join(lines))
    if not lines:
        words.say("There are no files here yet. Try: `write hello.txt: Hello!`")
        return
    more = f"\n…and {len(lines) - LINES_MAX} more." if len(lines) > LINES_MAX else ""
    words.say(f"{len(lines)} {'entry' if len(lines) == 1 else 'entries'}:\n\n")
    words.say(_fenced("\n".join(lines[:LINES_MAX])) + more)


def _size(entry: os.DirEntry[str]) -> str:
    size = entry.stat(follow_symlinks=False).st_size
    return f"{size} bytes" if size < 10_000 else f"{size / 1000:.0f} kB"


def _read_file(words: _Words, file: str) -> None:
    turn = words.turn
    path = _inside(turn, file)
    with turn.tool("read_file", {"path": _shown(turn, path)}, preview=_shown(turn, path)) as call:
        text, more = _read(path, FILE_BYTES_MAX)
        call.complete(text)
    words.say(f"`{_shown(turn, path)}`:\n\n")
    words.say(_fenced(text) if text else "The file is empty.")
    if more:
        words.say(f"\nThese are its first {FILE_BYTES_MAX} bytes.")


def _find(words: _Words, text: str, where: str) -> None:
    turn = words.turn
    text, top = _unquoted(text), _inside(turn, where)
    hits: list[str] = []
    with turn.tool("find", {"text": text, "path": _shown(turn, top)}, preview=text) as call:
        if not os.path.exists(top):
            raise Refused(f"There is no `{_shown(turn, top)}` in the workspace.")
        for path in _files(top):
            if len(hits) > LINES_MAX:
                break
            try:
                content, _ = _read(path, SEARCH_FILE_BYTES_MAX)
            except (OSError, Refused):
                continue
            for number, line in enumerate(content.splitlines(), 1):
                if text.lower() in line.lower():
                    hits.append(f"{_shown(turn, path)}:{number}: {line.strip()[:200]}")
        call.complete("\n".join(hits))
    if not hits:
        words.say(f"I found “{text}” in no file.")
        return
    more = "\nThere are more." if len(hits) > LINES_MAX else ""
    words.say(f"I found “{text}” here:\n\n")
    words.say(_fenced("\n".join(hits[:LINES_MAX])) + more)


def _write_file(words: _Words, file: str, text: str) -> None:
    turn = words.turn
    path = _inside(turn, file)
    text = _unquoted(text)
    with turn.tool("write_file", {"path": _shown(turn, path), "text": text}, preview=_shown(turn, path)) as call:
        if os.path.isdir(path):
            raise Refused(f"`{_shown(turn, path)}` is a folder.")
        new = not os.path.exists(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _store(path, text if text.endswith("\n") else text + "\n")
        call.complete(f"{len(text)} characters")
    words.say(f"I {'created' if new else 'replaced'} `{_shown(turn, path)}`.")


def _edit_file(words: _Words, old: str, new: str, file: str) -> None:
    turn = words.turn
    path = _inside(turn, file)
    with turn.tool("edit_file", {"path": _shown(turn, path), "old": old, "new": new}, preview=file) as call:
        text, more = _read(path, SEARCH_FILE_BYTES_MAX)
        if more:
            raise Refused(f"`{_shown(turn, path)}` is too large for me to edit.")
        if not (count := text.count(old)):
            raise Refused(f"“{old}” does not occur in `{_shown(turn, path)}`, so I changed nothing.")
        _store(path, text.replace(old, new))
        call.complete(f"{count} replaced")
    words.say(f"I replaced “{old}” with “{new}” in `{_shown(turn, path)}`, {count} time{'s' if count > 1 else ''}.")


def _store(path: str, text: str) -> None:
    """By a rename, so that a cancel in the middle leaves the old file whole."""
    draft = f"{path}.{os.getpid()}.draft"
    try:
        with open(draft, "x", encoding="utf-8", errors="replace") as file:
            file.write(text)
        if os.path.exists(path):
            os.chmod(draft, stat.S_IMODE(os.stat(path).st_mode))
        os.replace(draft, path)
    except BaseException:
        if os.path.exists(draft):
            os.unlink(draft)
        raise


def _run_command(words: _Words, command: str) -> None:
    turn = words.turn
    command = _unquoted(command) if command.strip().startswith("`") else command.strip()
    question = "The demo agent wants to run this in the session's workspace."
    if turn.approve(command, question, choices=("once", "deny")) == "deny":
        words.say("All right, I did not run it.")
        return
    with turn.tool("shell", {"command": command}, preview=command) as call:
        words.say_at_once("```\n")
        code, tail, cut = _stream_command(words, command)
        words.say_at_once(f"{'' if tail.endswith(chr(10)) or not tail else chr(10)}```\n")
        call.complete(tail, is_error=code != 0)
    if cut:
        words.say(f"I stopped it after {OUTPUT_BYTES_MAX} bytes of output.")
    elif code:
        words.say(f"It ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}.")
    elif not tail:
        words.say("It ended without output.")


def _stream_command(words: _Words, command: str) -> tuple[int, str, bool]:
    """Returns the exit code, the last part of the output, and whether it was stopped for saying too much."""
    import codecs
    import signal
    import subprocess

    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    tail, size = "", 0
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=words.turn.workspace,
        process_group=0,  # so that a cancel reaches what the shell has started
    )
    try:
        assert process.stdout
        while size <= OUTPUT_BYTES_MAX and (data := os.read(process.stdout.fileno(), 4096)):
            size += len(data)
            text = decode(data)
            tail = (tail + text)[-4096:]
            words.say_at_once(text)
        if size > OUTPUT_BYTES_MAX:
            return -signal.SIGKILL, tail, True
        return process.wait(), tail, False
    finally:
        if process.returncode is None:  # not reaped, so the number is still its own
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _count(words: _Words, end: str, slowly: str) -> None:
    for number in range(1, min(int(end[:9]), 100_000) + 1):
        words.say_at_once(f"{number} ")
        time.sleep(0.5 if slowly else 0.01)


def _ask(words: _Words) -> None:
    answer = words.turn.clarify("Tea or coffee?", ["tea", "coffee", "neither"])
    words.say(f"You said: {answer}." if answer else "You did not answer, so I chose tea.")


_PLEASE = r"(?:(?:please|can you|could you|hey|ok)[\s,]+)*"
_END = r"[\s.!?]*"
_Q = "[\"'“”‘’`]"
ACTIONS: list[tuple[str, Callable[..., None]]] = [
    (rf"{_PLEASE}(?:help|hello|hi|hey|what can you do|who are you|\?)(?:\s+there)?{_END}", _help),
    (rf"{_PLEASE}(?:ask me|clarify)\b.{{0,80}}", _ask),
    (rf"{_PLEASE}count(?: up)? to (?P<end>\d+)(?P<slowly>\s+slowly)?{_END}", _count),
    (r"\$\s*(?P<command>.+)", _run_command),
    (
        rf"{_PLEASE}(?:run|execute)(?:\s+the)?(?:\s+(?:shell\s+)?command)?(?:\s*:)?\s+(?P<command>.+)",
        _run_command,
    ),
    (
        (
            rf"{_PLEASE}(?:list|show|ls)(?:\s+me)?(?:\s+all)?(?:\s+the|\s+my)?(?:\s+files)?"
            rf"(?:\s+(?:in|of|under)\s+(?:the\s+)?(?:workspace|(?P<where>\.\.|.+?)))?{_END}"
        ),
        _list_files,
    ),
    (rf"{_PLEASE}(?:ls|dir|list)\s+(?P<where>.+)", _list_files),
    (
        rf"{_PLEASE}(?:what|which) files (?:are|do you see)(?:\s+(?:there|here))?(?:\s+in\s+(?P<where>\.\.|.+?))?{_END}",
        _list_files,
    ),
    (
        (
            rf"{_PLEASE}(?:replace|edit|change)\s+{_Q}(?P<old>.+?){_Q}\s+(?:with|by|to|into)\s+{_Q}(?P<new>.*?){_Q}"
            rf"\s+in\s+(?:the\s+)?(?:file\s+)?(?P<file>\S+?|{_Q}.+?{_Q}){_END}"
        ),
        _edit_file,
    ),
    (
        (
            rf"{_PLEASE}(?:find|grep|search(?:\s+for)?|look\s+for)\s+(?P<text>{_Q}.+?{_Q}|.+?)"
            rf"(?:\s+in\s+(?:(?:the\s+)?(?:workspace|files|all files)|(?P<where>\.\.|\S+?|{_Q}.+?{_Q})))?{_END}"
        ),
        _find,
    ),
    (
        (
            rf"{_PLEASE}(?:write|create|make|save)\s+(?:a\s+|the\s+)?(?:new\s+)?(?:file\s+)?(?:called\s+|named\s+)?"
            rf"(?P<file>{_Q}[^\n]+?{_Q}|[^\s:]+)"
            r"(?:\s*:|\s+with(?:\s+the)?(?:\s+(?:text|contents?))?\b\s*:?|\s+containing\b\s*:?)\s*(?P<text>.*)"
        ),
        _write_file,
    ),
    (
        rf"{_PLEASE}(?:read|show|cat|open|print|display)(?:\s+me)?(?:\s+the)?(?:\s+file)?\s+(?P<file>.+?)[\s!?]*\.?",
        _read_file,
    ),
]
"""Tried from the first on: a request is the whole message."""
