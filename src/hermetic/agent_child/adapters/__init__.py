"""The interface of adapters: how a turn's agent is run, whatever it is.

`run` is called once, in the main thread, with the workspace as the working directory and the environment complete. It
says everything through `out` and returns a `Result`; it raises `CannotRun`, or anything else, to fail the turn.

`interrupt` is called in the main thread, from the signal handler, when the turn is cancelled; it may come again, and
may come before `run`. It makes `run` end soon, by whatever the agent has for that or by raising `TurnCancelled`. All
open questions have been answered with deny before it. Whatever `run` does then, the turn ends as interrupted; when it
does nothing, the tree is killed after `start.grace_s`.

`steer` is called in the thread that reads commands, while `run` runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from hermetic.agent_child.failures import CannotRun
from hermetic.agent_child.out import Out
from hermetic.protocol.commands import Start
from hermetic.protocol.events import Result


class Adapter(Protocol):
    def run(self, start: Start, out: Out) -> Result: ...

    def interrupt(self) -> None: ...

    def steer(self, text: str) -> None: ...


_ADAPTERS = {
    "demo": "hermetic.agent_child.adapters.demo:DemoAdapter",
    "function": "hermetic.agent_child.adapters.function:FunctionAdapter",
    "hermes": "hermetic.agent_child.adapters.hermes:HermesAdapter",
}


def load(name: str) -> Adapter:
    """Imports the one adapter that is asked for. Raises CannotRun for a name that is not known."""
    if name not in _ADAPTERS:
        known = ", ".join(f'"{known}"' for known in sorted(_ADAPTERS))
        raise CannotRun(
            f'there is no adapter "{name}"', hint=f"Set the agent's adapter to one of {known}.", fault="host"
        )
    module, _, attribute = _ADAPTERS[name].partition(":")
    return cast(Adapter, getattr(import_module(module), attribute)())
