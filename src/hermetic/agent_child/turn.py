"""`Turn`: what a user's function is given. Everything on it may be called from any thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import count
from types import TracebackType
from typing import Any, Self, cast

from hermetic.agent_child.failures import without_paths
from hermetic.agent_child.interrupts import TurnCancelled
from hermetic.agent_child.out import CHOICES, Out, Question
from hermetic.protocol.commands import Start
from hermetic.protocol.events import (
    Choice,
    Metering,
    PendingSteerLeftover,
    Reasoning,
    Title,
    Token,
    Tool,
    ToolComplete,
    Usage,
    Warning,
)

__all__ = ["AsyncTurn", "Choice", "ToolCall", "Turn", "TurnCancelled"]

ARGS_MAX = 4
ARG_CHARS_MAX = 120
SNIPPET_CHARS_MAX = 200
"""What a tool card shows (the Hermes Web UI's numbers)."""


class ToolCall:
    """A tool call that has begun. Finish it with `complete`, or use it as a context manager:

        with turn.tool("read", {"path": "a.txt"}) as call:
            call.complete(Path("a.txt").read_text())

    Leaving the block completes a call that is not complete; an exception completes it as an error and goes on.
    """

    def __init__(self, out: Out, name: str, tid: str) -> None:
        self.name = name
        self.tid = tid
        self._out = out
        self._began = time.monotonic()
        self._complete = False

    def complete(self, result: object = "", is_error: bool = False) -> None:
        """Ends the call. The first 200 characters of `str(result)` are shown. A second time does nothing."""
        if self._complete:
            return
        self._complete = True
        self._out.emit(
            ToolComplete(
                name=self.name,
                tid=self.tid,
                snippet=str(result)[:SNIPPET_CHARS_MAX],
                is_error=is_error,
                duration_s=round(time.monotonic() - self._began, 6),
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.complete()
        else:
            said = "cancelled" if isinstance(error, TurnCancelled) else without_paths(str(error))
            self.complete(said or type(error).__name__, is_error=True)


class _Turn:
    """What both kinds of turn have."""

    message: str
    """What the user said."""
    history: list[dict[str, Any]]
    """The session's earlier messages, oldest first: mappings with `role` and `content`. Yours to change."""
    workspace: str
    """The folder to work in, an absolute path; also the working directory."""
    session_id: str
    turn_id: str
    attachments: list[str]
    """Names of files in the workspace."""
    model: str | None
    """The model that the user picked, if any."""
    options: dict[str, Any]
    """The agent's `options` from the configuration."""
    profile: str

    def __init__(self, start: Start, out: Out) -> None:
        self.message = start.message
        self.history = start.history
        self.workspace = start.workspace
        self.session_id = start.session_id
        self.turn_id = start.turn_id
        self.attachments = start.attachments
        self.model = start.model
        self.options = start.options
        self.profile = start.profile
        self._out = out
        self._numbers = count(1)
        self._steers: deque[str] = deque()
        self._usage: Usage | None = None
        self._said: list[str] = []
        self._said_anything = False
        self._cancelled = False
        self._looks_at_cancelled = False
        self._over = False

    def token(self, text: str | None) -> None:
        """Streams a piece of the answer. None, as some providers send it at the end, and the empty text do nothing."""
        if text is not None and not isinstance(text, str):
            raise TypeError(f"turn.token takes text, not {type(text).__name__}")
        if text:
            self._said.append(text)
            self._emit(Token(text=text))

    def reasoning(self, text: str | None) -> None:
        """Streams a piece of the model's reasoning; it is shown apart from the answer."""
        if text:
            self._emit(Reasoning(text=text))

    def tool(self, name: str, args: Mapping[str, object] | None = None, *, preview: str = "") -> ToolCall:
        """Says that a tool call begins, and returns it to be completed. `preview`: one line on what it does.

        The first four arguments are shown, each cut to 120 characters.
        """
        shown = {_short(key): _short(value) for key, value in list((args or {}).items())[:ARGS_MAX]}
        call = ToolCall(self._out, name, f"tool-{next(self._numbers)}")
        self._emit(Tool(name=name, preview=preview, args=shown, tid=call.tid))
        return call

    def usage(self, *, input_tokens: int = 0, output_tokens: int = 0, estimated_cost: float = 0.0) -> None:
        """Adds what one call of a model has used to the turn's totals. `estimated_cost` in US dollars."""
        before = self._usage or Usage()
        self._usage = Usage(
            input_tokens=before.input_tokens + input_tokens,
            output_tokens=before.output_tokens + output_tokens,
            estimated_cost=before.estimated_cost + estimated_cost,
        )
        self._emit(Metering(usage=self._usage))

    def title(self, text: str) -> None:
        """Proposes a title for the session; one that the user gave stays."""
        self._emit(Title(title=text))

    def warning(self, text: str) -> None:
        """Tells the user of something that went wrong without ending the turn."""
        self._emit(Warning(message=text))

    @property
    def cancelled(self) -> bool:
        """True once the user has cancelled the turn.

        A function that looks at this is given half of the grace period to return by itself. One that never looks, or
        takes longer, is interrupted: `TurnCancelled` is raised in it, or its asyncio task is cancelled.
        """
        self._looks_at_cancelled = True
        return self._cancelled

    def steers(self) -> list[str]:
        """What the user said to the running agent since this was last asked, oldest first.

        What is never asked for goes back to the user when the turn ends.
        """
        steers = []
        while self._steers:
            steers.append(self._steers.popleft())
        return steers

    def _emit(self, event: Token | Reasoning | Tool | Metering | Title | Warning) -> None:
        self._said_anything = True
        self._out.emit(event)

    # --- for the adapter ------------------------------------------------------------------------------------------

    def _steer(self, text: str) -> None:
        if self._over:
            self._out.emit(PendingSteerLeftover(text=text))
        else:
            self._steers.append(text)

    def _close(self) -> None:
        """The function has ended: steers that nobody read go back."""
        self._over = True
        for text in self.steers():
            self._out.emit(PendingSteerLeftover(text=text))


class Turn(_Turn):
    """One turn of a chat, for a sync function: the methods that ask a person block."""

    def approve(self, command: str, description: str = "", *, choices: Sequence[Choice] = CHOICES) -> Choice:
        """Asks the user before `command` is run; waits for `once`, `session`, `always` or `deny`.

        The answer is `deny` when nobody answers in time, and when the turn is cancelled.
        """
        self._said_anything = True
        return cast(Choice, self._out.ask_approval(command, description, choices=choices).wait())

    def clarify(self, question: str, choices: Sequence[str] = ()) -> str:
        """Asks the user a question; `choices` are suggestions. Returns the empty text when nobody answers in time."""
        self._said_anything = True
        return self._out.ask_clarify(question, choices).wait()


class AsyncTurn(_Turn):
    """One turn of a chat, for an async function: the methods that ask a person are awaited."""

    async def approve(self, command: str, description: str = "", *, choices: Sequence[Choice] = CHOICES) -> Choice:
        """Asks the user before `command` is run; gives `once`, `session`, `always` or `deny`.

        The answer is `deny` when nobody answers in time, and when the turn is cancelled.
        """
        self._said_anything = True
        return cast(Choice, await _answer(self._out.ask_approval(command, description, choices=choices)))

    async def clarify(self, question: str, choices: Sequence[str] = ()) -> str:
        """Asks the user a question; `choices` are suggestions. Gives the empty text when nobody answers in time."""
        self._said_anything = True
        return await _answer(self._out.ask_clarify(question, choices))


async def _answer(question: Question) -> str:
    import asyncio  # here, and not above: it costs a sync function 40 ms

    loop = asyncio.get_running_loop()
    answered = asyncio.Event()

    def tell(_: str) -> None:
        loop.call_soon_threadsafe(answered.set)

    question.when_answered(tell)
    try:
        await asyncio.wait_for(answered.wait(), question.wait_s)
    except TimeoutError:
        question.give_up()
    return question.answer or ""


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= ARG_CHARS_MAX else text[:ARG_CHARS_MAX] + "..."
