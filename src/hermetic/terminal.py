"""A turn's events as they look in a terminal: pure functions from events to text, nothing is written here.

The answer goes to stdout, everything about it (reasoning, tool calls, questions, errors) to stderr, so that
`hermetic chat "…" > answer.txt` holds the answer alone. `Renderer` knows which of the two has an unfinished line and
ends it before the other speaks, since both are usually the same screen.

What an agent says is hostile: an escape sequence could clear the screen, set the clipboard, or draw an approval that
was never asked. So no control character but newline and tab leaves this module, nor any of those that turn the
direction of text around. Colour sequences of tools, which are harmless and common, vanish whole; other sequences lose
their escape character and stay as visible litter, for whoever hides text in them should not have it hidden.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TextIO

from hermetic.protocol.events import (
    Apperror,
    Approval,
    ApprovalResolved,
    Cancelling,
    Clarify,
    ClarifyResolved,
    Compressed,
    Compressing,
    Done,
    DrainingNotice,
    EgressDenied,
    InterimAssistant,
    PendingSteerLeftover,
    Queued,
    ReaderEvent,
    Reasoning,
    Reset,
    Started,
    Steer,
    Token,
    Tool,
    ToolComplete,
    Warning,
)

_CSI = re.compile(r"\x1b\[[0-?]{0,32}[ -/]{0,4}[@-~]")
"""A whole control sequence (ECMA-48, section 5.4), at most as long as real ones are."""
_UNFINISHED_CSI = re.compile(r"\x1b(?:\[[0-?]{0,32}[ -/]{0,4})?\Z")
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""C0 but tab and newline, DEL, C1, and the marks that reorder text (CVE-2021-42574)."""

PREVIEW_CHARS = 100
"""Of a tool call: what fits on one line beside its name on a usual screen."""
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Cleaner:
    """Text in any split → the same text without control characters. Holds back a sequence that is not yet whole."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        text = self._held + text
        unfinished = _UNFINISHED_CSI.search(text)
        self._held = unfinished.group() if unfinished else ""
        return _clean(text[: unfinished.start()] if unfinished else text)

    def end(self) -> str:
        held, self._held = self._held, ""
        return _clean(held)


def _clean(text: str) -> str:
    return _UNSAFE.sub("", _CSI.sub("", text))


def clean_line(text: str, chars_max: int | None = None) -> str:
    """Text as one line: cleaned, white space joined, cut to `chars_max` with `…`."""
    line = " ".join(_clean(text).split())
    return line if chars_max is None or len(line) <= chars_max else line[: chars_max - 1] + "…"


def visible(text: str) -> str:
    """Text with its control characters written out, for what a person is asked to allow: nothing may hide in it."""
    return _UNSAFE.sub(lambda match: ascii(match.group())[1:-1], text)


def use_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Only on a terminal that can, and not when NO_COLOR is set to anything (no-color.org)."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


class Style(NamedTuple):
    """Wraps text in an SGR sequence, or leaves it alone."""

    colour: bool

    def __call__(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def dim(self, text: str) -> str:
        return self("2", text)

    def bold(self, text: str) -> str:
        return self("1", text)

    def red(self, text: str) -> str:
        return self("31", text)

    def yellow(self, text: str) -> str:
        return self("33", text)

    def cyan(self, text: str) -> str:
        return self("36", text)


class Piece(NamedTuple):
    """What to write where."""

    to: Literal["out", "err"]
    text: str


class Renderer:
    """Events of one turn, in their order, → pieces. `status` is what a spinner may say meanwhile."""

    def __init__(self, *, colour: bool = False) -> None:
        self.style = Style(colour)
        self.status = "starting"
        self._open: Literal["out", "err"] | None = None
        """The stream whose last line is unfinished."""
        self._thinking = False
        self._said = ""
        """The answer as the server's snapshot would have it: uncleaned."""
        self._answer = Cleaner()
        self._thought = Cleaner()

    def render(self, event: ReaderEvent) -> list[Piece]:
        style = self.style
        match event:
            case Token(text=text):
                self.status = "answering"
                return self._say(text)
            case Reasoning(text=text):
                self.status = "thinking"
                return self._think(self._thought.feed(text))
            case InterimAssistant(text=text, already_streamed=streamed):
                return self._close() if streamed else [*self._say(text), *self._close()]
            case Tool():
                self.status = event.name
                return self.line(style.cyan(f"▸ {clean_line(event.name)}") + _gap(_preview(event)))
            case ToolComplete(is_error=True):
                return self.line(
                    style.red(f"  ✗ {clean_line(event.name)}") + _gap(clean_line(event.snippet, PREVIEW_CHARS))
                )
            case Approval():
                return self._ask("The agent asks before it acts", event.description, event.command)
            case Clarify():
                choices = "\n".join(f"{number}. {choice}" for number, choice in enumerate(event.choices, 1))
                return self._ask("The agent asks", event.question, choices)
            case ApprovalResolved():
                return self.line(style.dim(f"  {_verdict(event)}"))
            case ClarifyResolved(by="timeout"):
                return self.line(style.dim("  nobody answered in time"))
            case Compressing(message=text) | Compressed(message=text):
                return self.line(style.dim(clean_line(text)))
            case PendingSteerLeftover(text=text):
                return self.line(style.yellow(f"! The agent ended before it read: {clean_line(text)}"))
            case Steer(text=text):
                return self.line(style.dim(f"» {clean_line(text)}"))
            case Warning():
                return self.line(
                    style.yellow(f"! {clean_line(event.message)}") + _gap(style.dim(clean_line(event.hint)))
                )
            case EgressDenied():
                place = clean_line(f"{event.host}:{event.port}{event.path}")
                why = clean_line(event.reason.replace("_", " "))
                return self.line(style.yellow(f"! The way to {place} is closed: {why}"))
            case Queued(position=position):
                self.status = f"queued, number {position}"
            case Started():
                self.status = "thinking"
            case Cancelling():
                self.status = "cancelling"
                return self.line(style.dim("cancelling"))
            case Done():
                return [*self._say(self._unsaid_answer(event.session)), *self._close()]
            case Apperror():
                return self._failure(event)
            case Reset():
                return self._reset(event)
            case DrainingNotice():
                return self.line(style.dim("the server is stopping; waiting for it to come back"))
            case _:
                pass
        return []

    def line(self, text: str) -> list[Piece]:
        """A whole line on stderr."""
        return [*self._close(), Piece("err", text + "\n")]

    def _say(self, text: str) -> list[Piece]:
        self._said += text
        clean = self._answer.feed(text)
        if not clean:
            return []
        before = self._close() if self._open == "err" else []
        self._open = None if clean.endswith("\n") else "out"
        return [*before, Piece("out", clean)]

    def _think(self, clean: str) -> list[Piece]:
        """Reasoning, each line behind a dot."""
        if not clean:
            return []
        pieces = [] if self._thinking else self._close()
        self._thinking = True
        written = ""
        for line in clean.splitlines(keepends=True):
            body = line.removesuffix("\n")
            lead = "" if self._open == "err" else "· "
            written += self.style.dim(lead + body) + line[len(body) :]
            self._open = None if line.endswith("\n") else "err"
        return [*pieces, Piece("err", written)]

    def _close(self) -> list[Piece]:
        """Ends the line that is unfinished."""
        held = self._answer.end()
        pieces = [Piece("out", held)] if held else []
        stream, self._open, self._thinking = self._open or ("out" if held else None), None, False
        return [*pieces, Piece(stream, "\n")] if stream else pieces

    def _ask(self, who: str, question: str, detail: str) -> list[Piece]:
        """Head and detail, every further line of either indented, so that neither can pass for a line of ours."""
        lines = visible(question).split("\n") if question else []
        head = self.style.yellow(f"? {who}") + (f": {lines[0]}" if lines else "")
        rest = [*lines[1:], *(visible(detail).split("\n") if detail else [])]
        return self.line("\n".join([head, *(f"    {line}" for line in rest)]))

    def prompt(self, text: str) -> list[Piece]:
        """An unfinished line on stderr behind which a person types; their Enter finishes it: `prompt_answered`."""
        pieces = [*self._close(), Piece("err", text)]
        self._open = "err"
        return pieces

    def prompt_answered(self) -> None:
        if self._open == "err":
            self._open = None

    @property
    def at_line_start(self) -> bool:
        return self._open is None

    def _failure(self, event: Apperror) -> list[Piece]:
        pieces = self.line(self.style.red(f"✗ {clean_line(event.message)}"))
        for line in event.stderr:
            pieces += self.line(self.style.dim(f"  │ {_clean(line.rstrip())}"))
        return pieces + (self.line(f"  {clean_line(event.hint)}") if event.hint else [])

    def _reset(self, event: Reset) -> list[Piece]:
        """Only what is new of the snapshot, when it goes on from what stands there."""
        text = event.snapshot.text
        if text.startswith(self._said):
            return self._say(text[len(self._said) :])
        self._said = ""
        return [*self.line(self.style.dim("the stream begins again; the answer so far:")), *self._say(text)]

    def _unsaid_answer(self, session: Mapping[str, Any]) -> str:
        """The answer of an agent that does not stream: the last message, if no token came before."""
        last = (session.get("messages") or [{}])[-1]
        content = last.get("content") if last.get("role") == "assistant" else None
        return content if isinstance(content, str) and not self._said else ""


def _gap(text: str) -> str:
    return f"  {text}" if text else ""


def _preview(event: Tool) -> str:
    text = event.preview or " ".join(f"{name}={value}" for name, value in event.args.items())
    return clean_line(text, PREVIEW_CHARS)


def _verdict(event: ApprovalResolved) -> str:
    if event.by != "user":
        return "nobody answered in time: denied" if event.by == "timeout" else "not answered: the turn has ended"
    return {
        "once": "allowed once",
        "session": "allowed for this session",
        "always": "allowed from now on",
        "deny": "denied",
    }[event.choice]


def spinner_line(tick: int, status: str, style: Style) -> str:
    """One frame of the spinner: overwrites its line, ends without a newline."""
    return f"\r{style.cyan(SPINNER[tick % len(SPINNER)])} {style.dim(clean_line(status, 60))}\x1b[K"


ERASE_LINE = "\r\x1b[K"
