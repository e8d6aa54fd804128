"""The adapter for a user's own function: `target = "module:callable"`.

    def agent(turn): ...                   async def agent(turn): ...           returns the answer, or streams it
    def agent(message): yield "text"       async def agent(message): yield …    yields pieces of the answer

A function takes what it wants by name: any of `turn, message, history, workspace, session_id, attachments, model,
options`. A single parameter with another name gets the turn, or the message when it is annotated `str`.
"""

from __future__ import annotations

import _thread
import inspect
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from importlib import import_module
from typing import Any, cast

from hermetic.agent_child.failures import CannotRun, without_paths
from hermetic.agent_child.interrupts import TurnCancelled, wake_main_thread
from hermetic.agent_child.out import Out
from hermetic.agent_child.turn import AsyncTurn, Turn
from hermetic.protocol.commands import Start
from hermetic.protocol.events import Result

_BY_NAME = ("turn", "message", "history", "workspace", "session_id", "attachments", "model", "options")
_SHAPES = (
    "Write it as `def agent(turn)`, `async def agent(turn)` or `def agent(message)` that yields or returns text; "
    f"parameters by name: {', '.join(_BY_NAME)}."
)


class FunctionAdapter:
    def __init__(self) -> None:
        self._turn: Turn | AsyncTurn | None = None
        self._early_steers: deque[str] = deque()
        self._grace_s = 0.0
        self._waits = False
        self._patience_is_over = False
        self._struck = False
        self._strike: Callable[[], None] = _raise_cancelled

    def load(self, start: Start) -> Callable[..., Any]:
        """The user's callable. Raises CannotRun."""
        return load_target(start.target)

    # --- the interface --------------------------------------------------------------------------------------------

    def run(self, start: Start, out: Out) -> Result:
        function = self.load(start)
        turn = AsyncTurn(start, out) if is_async(function) else Turn(start, out)
        turn._steers = self._early_steers
        call = bind(function, turn)
        if isinstance(turn, AsyncTurn):
            self._strike = _wait_for_the_loop
        self._grace_s = start.grace_s
        self._turn = turn
        try:
            returned = self._run_async(turn, call) if isinstance(turn, AsyncTurn) else _run_sync(turn, call)
            return self._conclude(turn, returned)
        finally:
            turn._close()

    def interrupt(self) -> None:
        turn = self._turn
        if turn is None:  # the module is still being imported
            raise TurnCancelled
        turn._cancelled = True
        if turn._looks_at_cancelled and not self._patience_is_over:
            if not self._waits:
                self._waits = True
                # Not threading.Thread: its locks may be held by the very code that this handler interrupts.
                _thread.start_new_thread(self._lose_patience, (self._grace_s / 2,))
        elif not self._struck:
            self._struck = True
            self._strike()

    def steer(self, text: str) -> None:
        if self._turn is None:
            self._early_steers.append(text)
        else:
            self._turn._steer(text)

    # --- the parts ------------------------------------------------------------------------------------------------

    def _lose_patience(self, after_s: float) -> None:
        time.sleep(after_s)
        self._patience_is_over = True
        wake_main_thread()

    def _run_async(self, turn: AsyncTurn, call: Callable[[], Any]) -> object:
        """As asyncio.run does, but without its wait for threads at the end: the process ends anyway."""
        import asyncio

        async def main() -> object:
            task = asyncio.current_task()
            assert task is not None

            def cancel() -> None:
                loop.call_soon_threadsafe(task.cancel)

            self._strike = cancel
            if self._struck:
                cancel()
            try:
                returned = call()
                if isinstance(returned, AsyncIterator):
                    await _stream_async(turn, returned)
                    return None
                return await cast(Awaitable[object], returned)
            finally:
                others = [other for other in asyncio.all_tasks() if other is not task]
                for other in others:
                    other.cancel()
                await asyncio.gather(*others, return_exceptions=True)
                await loop.shutdown_asyncgens()

        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            return loop.run_until_complete(main())
        except asyncio.CancelledError:
            if self._struck:
                raise TurnCancelled from None
            raise CannotRun(
                "the agent's code cancelled itself (asyncio.CancelledError)",
                hint="Let the function return, or raise another exception to fail the turn.",
            ) from None

    def _conclude(self, turn: Turn | AsyncTurn, returned: object) -> Result:
        """A returned text is the answer, or its last piece, or what was streamed already."""
        if returned is not None and not isinstance(returned, str):
            raise CannotRun(
                f"the agent returned {_a(returned)}, not text",
                hint="Return the answer as a str, or stream it with turn.token(…) or yield, and return None.",
            )
        if returned and returned != "".join(turn._said):
            turn.token(returned)
        if not turn._said_anything and not turn._cancelled:
            raise CannotRun(
                "the agent returned nothing and said nothing",
                hint="Return the answer as a str, or stream it with turn.token(…) or yield; print goes to stderr.",
            )
        return Result(usage=turn._usage)


def _raise_cancelled() -> None:
    raise TurnCancelled


def _wait_for_the_loop() -> None:
    """The event loop is not up yet: it looks whether it was struck when it is."""


def _run_sync(turn: Turn, call: Callable[[], Any]) -> object:
    returned = call()
    if inspect.iscoroutine(returned) or inspect.isasyncgen(returned):
        if inspect.iscoroutine(returned):
            returned.close()
        raise CannotRun(f"the agent is not async but returned {_a(returned)}", hint="Define it with `async def`.")
    if not isinstance(returned, Iterator):
        return cast(object, returned)
    if not inspect.isgenerator(returned):
        for piece in returned:
            turn.token(_text(piece))
        return None
    with closing(returned):  # its `finally` blocks run also when the cancel strikes us and not it
        while True:
            try:
                turn.token(_text(next(returned)))
            except StopIteration as stop:
                return cast(object, stop.value)


async def _stream_async(turn: AsyncTurn, pieces: AsyncIterator[object]) -> None:
    try:
        async for piece in pieces:
            turn.token(_text(piece))
    finally:
        if inspect.isasyncgen(pieces):
            await pieces.aclose()


def _text(piece: object) -> str:
    if not isinstance(piece, str):
        raise CannotRun(
            f"the agent yielded {_a(piece)}, not text",
            hint="Yield pieces of the answer as str; use turn.tool(…) and turn.usage(…) for everything else.",
        )
    return piece


def _a(value: object) -> str:
    return f"a value of type {type(value).__name__}"


def load_target(target: str | None) -> Callable[..., Any]:
    """`module:callable` → the callable; a dotted callable is an attribute of an attribute. Raises CannotRun."""
    module_name, _, path = (target or "").partition(":")
    if not module_name or not path:
        raise CannotRun(
            f"the agent's target {target!r} is not of the form module:callable"
            if target
            else "the agent has no target",
            hint='Set target = "module:callable" in the agent\'s section of the configuration.',
            fault="host",
        )
    try:
        found: object = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _broken_module(module_name, error) from error
        raise CannotRun(
            f'there is no module "{error.name}" for the target "{target}"',
            hint="Put the folder that holds it into the agent's python_path, or install it in the agent's environment.",
            fault="host",
        ) from error
    except TurnCancelled:
        raise
    except BaseException as error:
        raise _broken_module(module_name, error) from error
    for name in path.split("."):
        if not hasattr(found, name):
            file = without_paths(str(getattr(sys.modules[module_name], "__file__", module_name)))
            raise CannotRun(
                f'the module "{module_name}" has no "{path}"',
                hint=f"The module that was found is {file}; check the target, and python_path if it is another.",
                fault="host",
            )
        found = getattr(found, name)
    if not callable(found):
        raise CannotRun(f"{target} is {_a(found)}, not a callable", hint=_SHAPES, fault="host")
    return found


def _broken_module(name: str, error: BaseException) -> CannotRun:
    return CannotRun(
        f'importing the module "{name}" failed: {type(error).__name__}: {without_paths(str(error))}',
        hint="The turn's stderr has the traceback; modules are looked for in the agent's python_path, "
        "then in the agent's environment.",
    )


def is_async(function: Callable[..., Any]) -> bool:
    """Also true of an object whose `__call__` is async."""
    bodies = (function, getattr(function, "__call__", None))  # noqa: B004  the method itself is what is asked for
    return any(inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body) for body in bodies)


def bind(function: Callable[..., Any], turn: Turn | AsyncTurn) -> Callable[[], Any]:
    """The call with what the function wants. Raises CannotRun for a callable of the wrong shape."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise CannotRun(f"a callable of the wrong shape: {error}", hint=_SHAPES) from error
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    arguments: dict[str, object] = {p.name: _value(turn, p.name) for p in named if p.name in _BY_NAME}
    strange = [p for p in needed if p.name not in arguments]
    if len(strange) == 1 and needed == strange and strange[0].kind is not inspect.Parameter.KEYWORD_ONLY:
        only = turn.message if strange[0].annotation in (str, "str") else turn
        return lambda: function(only, **arguments)
    if strange:
        names = ", ".join(p.name for p in strange)
        raise CannotRun(f"a callable of the wrong shape: there is no value for {names}", hint=_SHAPES)
    return lambda: function(**arguments)


def _value(turn: Turn | AsyncTurn, name: str) -> object:
    return turn if name == "turn" else getattr(turn, name)
