"""`hermetic chat`: one turn from the terminal.

There is one path: over HTTP, to a server that already holds the data directory or to one that this process starts on a
free loopback port. Three things run beside each other: reading the turn's events, asking the person what the agent
asks, and waiting for Ctrl-C. The first Ctrl-C cancels the turn and keeps reading to its end, so that what was said is
saved and shown; the second leaves at once.
"""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import NoReturn, TextIO, get_args

import msgspec
import trio
from msgspec import Struct

from hermetic.client import Client
from hermetic.protocol import api
from hermetic.protocol.errors import HermeticError
from hermetic.protocol.events import (
    Apperror,
    Approval,
    ApprovalResolved,
    Cancel,
    Choice,
    Clarify,
    ClarifyResolved,
    Done,
    ReaderEvent,
    Reset,
    Verdict,
)
from hermetic.supervisor.config import Config
from hermetic.terminal import ERASE_LINE, Piece, Renderer, clean_line, spinner_line, use_colour

CANCELLED = 130
"""Exit code, as of a program that SIGINT ended (128 + 2)."""
HEALTH_S = 2.0
"""A server on this machine answers its health in milliseconds; one that takes longer is not there for us."""
FRAME_S = 0.1
"""Between two frames of the spinner: fast enough to be alive, slow enough to cost nothing."""
QUIET_S = 0.3
"""An answer that pauses for less than this needs no spinner."""
KEY_VARIABLE = "HERMETIC_KEY"
"""The variable with the key for a server that --server names."""
LINE_BYTES_MAX = 4096
"""What a terminal gives for one line at most (termios(3), canonical mode)."""


class Note(Struct, frozen=True):
    """`server.json` in a data directory: who holds it."""

    url: str
    pid: int = 0
    key: str | None = None
    """Whoever can read the note is the server's operator."""


class Request(Struct, frozen=True, kw_only=True):
    """What the command line asks for."""

    message: str
    session_id: str | None = None
    agent: str | None = None
    profile: str | None = None
    workspace: str | None = None
    yes: bool = False


# --- which server -------------------------------------------------------------------------------------------------


async def running_server(data: Path) -> Note | None:
    """The server that holds this data directory, if it answers."""
    try:
        note = await _note(data)
        with trio.fail_after(HEALTH_S):
            async with Client(note.url, key=note.key) as client:
                await client.health()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, HermeticError, trio.TooSlowError):
        return None
    return note


async def _note(data: Path) -> Note:
    return msgspec.json.decode(await trio.Path(data / "server.json").read_bytes(), type=Note)


def named_server(url: str) -> Note:
    """One that the command line names; its key is in the environment, where no other user's `ps` shows it."""
    return Note(url, key=os.environ.get(KEY_VARIABLE) or None)


@asynccontextmanager
async def a_server(config: Config, workspace: str | None = None) -> AsyncIterator[Note]:
    """The running server, or one that lives as long as this context.

    The latter's only user is the person at this terminal, so the folder that they name is allowed as a workspace.
    """
    data = Path(config.server.data).expanduser()
    if note := await running_server(data):
        yield note
        return
    from hermetic.web.server import serve_task  # the whole server: only loaded when one is needed

    roots = config.workspaces.roots + ([workspace] if workspace else [])
    own = msgspec.structs.replace(
        config,
        server=msgspec.structs.replace(config.server, bind="127.0.0.1:0"),
        workspaces=msgspec.structs.replace(config.workspaces, roots=roots),
    )
    leave = trio.Event()

    async def run(task_status: trio.TaskStatus[str]) -> None:
        await serve_task(own, shutdown=leave.wait, task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        try:
            yield await _note(data)
        finally:
            leave.set()


# --- the screen ---------------------------------------------------------------------------------------------------


class Screen:
    """Writes pieces and the spinner, one at a time, in a thread: a terminal that is held (Ctrl-S) or a pipe that is
    full must not hold up a server that lives in this process."""

    def __init__(self, renderer: Renderer, out: TextIO, err: TextIO) -> None:
        self.renderer = renderer
        self._out, self._err = out, err
        self._lock = trio.StrictFIFOLock()
        self._spun = False
        self._written_at: float | None = None
        self.asking = False
        """A question waits behind its prompt: no spinner may draw over what is being typed."""
        self.on_hang_up: Callable[[], None] = lambda: None
        """Called once, when nobody reads what is written any more (`| head`)."""
        self._hung_up = False

    async def show(self, pieces: list[Piece]) -> None:
        if not pieces:
            return
        async with self._lock:
            text = [Piece("err", ERASE_LINE)] if self._spun else []
            self._spun = False
            self._written_at = trio.current_time()
            hung_up = self._hung_up
            await trio.to_thread.run_sync(self._write, [*text, *pieces], abandon_on_cancel=True)
            if self._hung_up and not hung_up:
                self.on_hang_up()

    def _write(self, pieces: list[Piece]) -> None:
        for to, text in pieces:
            stream = self._out if to == "out" else self._err
            try:
                stream.write(text)
                stream.flush()
            except BrokenPipeError:
                self._hung_up = True
                with open(os.devnull, "wb") as nothing:  # also for what the interpreter flushes at its exit
                    os.dup2(nothing.fileno(), stream.fileno())

    async def spin(self) -> None:
        """Runs until cancelled; only for a terminal."""
        tick = 0
        try:
            while True:
                await trio.sleep(FRAME_S)
                async with self._lock:
                    quiet = self._written_at is None or trio.current_time() - self._written_at > QUIET_S
                    if quiet and self.renderer.at_line_start and not self.asking:
                        frame = Piece("err", spinner_line(tick, self.renderer.status, self.renderer.style))
                        self._spun = True
                        await trio.to_thread.run_sync(self._write, [frame], abandon_on_cancel=True)
                        tick += 1
        finally:
            if self._spun:
                with suppress(OSError):
                    self._write([Piece("err", ERASE_LINE)])


# --- asking the person --------------------------------------------------------------------------------------------


def parse_choice(line: str, choices: list[Choice]) -> Choice | None:
    """What a person typed → a choice; Enter alone is `deny`, None asks again."""
    word = line.strip().lower()
    if not word:
        return "deny"
    word = {"y": "once", "yes": "once", "n": "deny", "no": "deny"}.get(word, word)
    found: list[Choice] = [choice for choice in get_args(Choice) if choice.startswith(word)]
    return found[0] if len(found) == 1 and (found[0] in choices or found[0] == "deny") else None


def parse_answer(line: str, choices: list[str]) -> str:
    """The number of a choice stands for the choice; anything else is the answer itself."""
    text = line.strip()
    if text.isascii() and text.isdigit() and 0 < int(text[:4]) <= len(choices):
        return choices[int(text[:4]) - 1]
    return text


class Asker:
    """Asks the person, one question at a time; a question that is answered elsewhere is withdrawn."""

    def __init__(self, client: Client, turn_id: str, screen: Screen, *, yes: bool, keyboard: TextIO | None) -> None:
        self._client, self._turn_id, self._screen = client, turn_id, screen
        self._yes = yes
        self._fd = None if keyboard is None else keyboard.fileno()
        self._one_at_a_time = trio.StrictFIFOLock()
        self._open: dict[str, trio.CancelScope] = {}

    def is_new(self, question: Approval | Clarify) -> bool:
        return _id_of(question) not in self._open

    def withdraw(self, question_id: str) -> None:
        if scope := self._open.get(question_id):
            scope.cancel()

    async def ask(self, question: Approval | Clarify, *, task_status: trio.TaskStatus[None]) -> None:
        """Runs in a task of its own, started so that the question counts as known before the next event is read."""
        scope = self._open.setdefault(_id_of(question), trio.CancelScope())
        task_status.started()
        with scope:
            async with self._one_at_a_time:
                try:
                    if isinstance(question, Approval):
                        choice = await self._choice(question)
                        await self._client.approve(self._turn_id, question.approval_id, choice)
                    else:
                        await self._client.answer(self._turn_id, question.clarify_id, await self._text(question))
                except HermeticError as error:  # answered by someone else, or the turn has ended, or the server is away
                    await self._tell(clean_line(str(error)))

    async def _choice(self, question: Approval) -> Choice:
        if self._yes:
            return "once"
        if self._fd is None:
            await self._tell("nobody can be asked, for stdin is not a terminal: denied (--yes allows everything once)")
            return "deny"
        names = "  ".join(f"[{name[0]}]{name[1:]}" for name in question.choices if name != "deny")
        while True:
            line = await self._line(f"  {names}  [d]eny (Enter)? ")
            if (choice := parse_choice(line or "", question.choices)) is not None:
                return choice

    async def _text(self, question: Clarify) -> str:
        if self._fd is None:
            await self._tell("nobody can be asked, for stdin is not a terminal: no answer")
            return ""
        return parse_answer(await self._line("  > ") or "", question.choices)

    async def _tell(self, text: str) -> None:
        await self._screen.show(self._screen.renderer.line(f"  {text}"))

    async def _line(self, prompt: str) -> str | None:
        """One line from the keyboard, None at its end. What was typed before the question does not answer it."""
        assert self._fd is not None
        self._screen.asking = True
        try:
            termios.tcflush(self._fd, termios.TCIFLUSH)
            await self._screen.show(self._screen.renderer.prompt(prompt))
            # Not input() in a thread: a question that is withdrawn would leave a thread that swallows the next answer.
            await trio.lowlevel.wait_readable(self._fd)
            data = os.read(self._fd, LINE_BYTES_MAX)
            if data:
                self._screen.renderer.prompt_answered()
            return data.decode(errors="replace") if data else None
        finally:
            self._screen.asking = False


def _id_of(question: Approval | Clarify) -> str:
    return question.approval_id if isinstance(question, Approval) else question.clarify_id


# --- the turn -----------------------------------------------------------------------------------------------------


class Chat:
    """One turn as a person at a terminal sees it."""

    def __init__(self, client: Client, request: Request, screen: Screen, keyboard: TextIO | None) -> None:
        self._client, self._request, self._screen, self._keyboard = client, request, screen, keyboard
        self.session_id: str | None = None
        self._turn_id: str | None = None
        self._before_the_turn = trio.CancelScope()
        self._starting = False
        self._cancel_asked = False
        self._verdict: Verdict | None = None

    async def run(self) -> int:
        """→ the exit code. Raises HermeticError when the server refuses or is lost."""
        with self._before_the_turn:
            session = await self._session()
        if self._before_the_turn.cancelled_caught:
            return await self._farewell()
        self.session_id = session
        self._starting = True
        turn = await self._client.start_turn(session, self._request.message)
        self._turn_id = turn.turn_id
        if self._cancel_asked:
            await self._cancel(turn.turn_id)
        await self._follow(turn.turn_id)
        return await self._farewell()

    def interrupt(self, nursery: trio.Nursery) -> bool:
        """Ctrl-C: ends the turn, or the chat when there is no turn yet. False when that was asked before or the turn
        has ended: then there is nothing left to do but to leave."""
        if self._cancel_asked or self._verdict is not None:
            return False
        self._cancel_asked = True
        if self._turn_id is not None:
            nursery.start_soon(self._cancel, self._turn_id)  # beside the signals: the second must not wait for it
        elif not self._starting:
            self._before_the_turn.cancel()
        return True

    async def _cancel(self, turn_id: str) -> None:
        try:
            await self._client.cancel(turn_id)
        except HermeticError as error:
            await self._screen.show(self._screen.renderer.line(f"The turn could not be cancelled: {error}"))

    async def _session(self) -> str:
        request = self._request
        if request.session_id is None:
            new = api.NewSession(agent=request.agent, profile=request.profile, workspace=request.workspace)
            return (await self._client.create_session(new)).session_id
        wanted = {"agent": request.agent, "profile": request.profile, "workspace": request.workspace}
        if changes := {name: value for name, value in wanted.items() if value is not None}:
            await self._client.change_session(request.session_id, msgspec.convert(changes, api.ChangeSession))
        return request.session_id

    async def _follow(self, turn_id: str) -> None:
        asker = Asker(self._client, turn_id, self._screen, yes=self._request.yes, keyboard=self._keyboard)
        async with trio.open_nursery() as nursery:
            async with self._client.events(turn_id, on_break=self._broke) as stream:
                async for _, event in stream:
                    await self._meet(event, asker, nursery)
            nursery.cancel_scope.cancel()

    async def _meet(self, event: ReaderEvent, asker: Asker, nursery: trio.Nursery) -> None:
        questions: list[Approval | Clarify] = []
        match event:
            case ApprovalResolved(approval_id=question_id) | ClarifyResolved(clarify_id=question_id):
                asker.withdraw(question_id)
            case Approval() | Clarify():
                questions = [event]
            case Reset():
                questions = event.snapshot.pending
            case Done() | Apperror() | Cancel():
                self._verdict = event.state
        await self._screen.show(self._screen.renderer.render(event))
        if isinstance(event, Cancel) and not self._cancel_asked:  # someone else did it: say who
            await self._screen.show(self._screen.renderer.line(clean_line(event.message)))
        for question in questions:
            if asker.is_new(question):
                if event is not question:  # a reset brings questions that were never rendered
                    await self._screen.show(self._screen.renderer.render(question))
                await nursery.start(asker.ask, question)

    def _broke(self, why: HermeticError, pause_s: float) -> None:
        self._screen.renderer.status = f"{why} Trying again in {pause_s:.0f} s"

    async def _farewell(self) -> int:
        renderer, style = self._screen.renderer, self._screen.renderer.style
        kept = f"session {self.session_id}" if self.session_id else ""
        if self._verdict == "done":
            await self._screen.show(renderer.line(style.dim(kept)))
            return 0
        if self._verdict == "cancelled" or (self._cancel_asked and self._verdict is None):
            said = (
                f"Cancelled; what was said is kept: hermetic show {self.session_id}" if self._turn_id else "Cancelled."
            )
            await self._screen.show(renderer.line(style.yellow(said)))
            return CANCELLED
        await self._screen.show(renderer.line(style.dim(kept)))
        return 1


async def chat(request: Request, *, url: str | None, config: Config) -> int:
    """The whole command on this process's terminal → the exit code. `url` None: `a_server`."""
    renderer = Renderer(colour=use_colour(sys.stderr, os.environ))
    screen = Screen(renderer, sys.stdout, sys.stderr)
    keyboard = sys.stdin if sys.stdin.isatty() else None
    talk: Chat | None = None
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        first, interrupted = not interrupted, True
        if first and talk is None:
            nursery.cancel_scope.cancel()
        elif not first or talk is None or not talk.interrupt(nursery):
            _leave_at_once(talk)

    async def watch(*, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            async for _ in signals:
                interrupt()

    code = CANCELLED
    async with trio.open_nursery() as nursery:
        await nursery.start(watch)
        screen.on_hang_up = interrupt
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            nursery.start_soon(screen.spin)
        where = nullcontext(named_server(url)) if url else a_server(config, request.workspace)
        async with where as server, Client(server.url, key=server.key) as client:
            talk = Chat(client, request, screen, keyboard)
            code = await talk.run()
        nursery.cancel_scope.cancel()
    if talk is None:
        print("Cancelled before the turn began.", file=sys.stderr)
    return code


def _leave_at_once(talk: Chat | None) -> NoReturn:
    """Without waiting for a child's grace. A server in this process dies as by SIGKILL, for which it is made: what was
    said is in the journal, the children end with it, and the next start marks the turn as lost."""
    with suppress(OSError):
        kept = f" It is session {talk.session_id}." if talk and talk.session_id else ""
        sys.stderr.write(f"\nLeft before the turn had ended.{kept}\n")
        sys.stderr.flush()
    os._exit(CANCELLED)
