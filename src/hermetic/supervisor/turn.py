"""What happens to a turn, as a table. Nothing here touches a process, a clock or a socket.

A turn is in one phase. Something happens to it (`What`), and the table says which phase follows and which actions are
due (`Action`); run_turn.py performs them and reports what happens next. The verdict, how the turn ends, is set once, by
whatever first makes the end certain: the child's result, a request to stop, a broken limit or protocol. A child that
dies with no verdict set has crashed. `END` is due exactly once, on the way into `ended`, and only after the process
tree is dead: until then a stopped turn is `cancelling`.

What is not in the table cannot matter any more (a grace timer that fires after the exit, a second cancel) and changes
nothing; `step` is total.
"""

from __future__ import annotations

from enum import StrEnum
from typing import cast

from msgspec import Struct

from hermetic.protocol.events import StateName, Verdict


class Phase(StrEnum):
    QUEUED = "queued"
    """Saved, waits for a place."""
    STARTING = "starting"
    """The child is being started; it has not said `Ready`."""
    RUNNING = "running"
    WAITING = "waiting"
    """The agent waits for a person: an approval or a clarification."""
    ENDING = "ending"
    """The agent has given its result; its processes have not all ended."""
    CANCELLING = "cancelling"
    """Told to stop, or being killed; its processes have not all ended."""
    ENDED = "ended"


class What(StrEnum):
    """What can happen to a turn."""

    CLAIMED = "claimed"
    """A place is free and the store has given the turn to us."""
    READY = "ready"
    """The child said `Ready` with our protocol version."""
    ASKED = "asked"
    """The first approval or clarification is open."""
    ANSWERED = "answered"
    """The last open one is resolved."""
    FINISHED = "finished"
    """The child sent `Result` or `Failed`."""
    STOP = "stop"
    """End it with grace: a user's cancel, the wall clock, a drain."""
    ABORT = "abort"
    """End it without: the protocol or a limit is broken, the journal cannot be written, the child cannot be started."""
    TIMER = "timer"
    """The phase's timer has run out: ready_s, exit_s or grace_s."""
    EXITED = "exited"
    """The child's whole process tree is dead (or was never born)."""


class Action(StrEnum):
    SPAWN = "spawn"
    SEND_START = "send Start"
    TERM = "tell and SIGTERM"
    """Journal `cancelling`, send `Cancel`, send SIGTERM."""
    KILL = "kill the tree"
    ARM_READY = "arm ready_s"
    ARM_EXIT = "arm exit_s"
    ARM_GRACE = "arm grace_s"
    DISARM = "disarm"
    END = "journal the end"


class TurnState(Struct, frozen=True):
    phase: Phase = Phase.QUEUED
    verdict: Verdict | None = None

    @property
    def name(self) -> StateName:
        """The state as readers see it: the phase, or the verdict once the turn has ended."""
        return cast(StateName, self.verdict if self.phase is Phase.ENDED else self.phase.value)


P, W, A = Phase, What, Action

TABLE: dict[tuple[Phase, What], tuple[Phase, tuple[Action, ...]]] = {
    (P.QUEUED, W.CLAIMED): (P.STARTING, (A.SPAWN, A.ARM_READY)),
    (P.QUEUED, W.STOP): (P.ENDED, (A.END,)),
    (P.QUEUED, W.ABORT): (P.ENDED, (A.END,)),
    (P.STARTING, W.READY): (P.RUNNING, (A.DISARM, A.SEND_START)),
    (P.STARTING, W.FINISHED): (P.ENDING, (A.ARM_EXIT,)),
    (P.STARTING, W.STOP): (P.CANCELLING, (A.TERM, A.ARM_GRACE)),
    (P.STARTING, W.ABORT): (P.CANCELLING, (A.DISARM, A.KILL)),
    (P.STARTING, W.TIMER): (P.CANCELLING, (A.KILL,)),
    (P.STARTING, W.EXITED): (P.ENDED, (A.DISARM, A.END)),
    (P.RUNNING, W.ASKED): (P.WAITING, ()),
    (P.RUNNING, W.FINISHED): (P.ENDING, (A.ARM_EXIT,)),
    (P.RUNNING, W.STOP): (P.CANCELLING, (A.TERM, A.ARM_GRACE)),
    (P.RUNNING, W.ABORT): (P.CANCELLING, (A.KILL,)),
    (P.RUNNING, W.EXITED): (P.ENDED, (A.END,)),
    (P.WAITING, W.ANSWERED): (P.RUNNING, ()),
    (P.WAITING, W.FINISHED): (P.ENDING, (A.ARM_EXIT,)),
    (P.WAITING, W.STOP): (P.CANCELLING, (A.TERM, A.ARM_GRACE)),
    (P.WAITING, W.ABORT): (P.CANCELLING, (A.KILL,)),
    (P.WAITING, W.EXITED): (P.ENDED, (A.END,)),
    (P.ENDING, W.STOP): (P.CANCELLING, (A.DISARM, A.KILL)),
    (P.ENDING, W.ABORT): (P.CANCELLING, (A.DISARM, A.KILL)),
    (P.ENDING, W.TIMER): (P.ENDING, (A.KILL,)),
    (P.ENDING, W.EXITED): (P.ENDED, (A.DISARM, A.END)),
    (P.CANCELLING, W.ABORT): (P.CANCELLING, (A.DISARM, A.KILL)),
    (P.CANCELLING, W.TIMER): (P.CANCELLING, (A.KILL,)),
    (P.CANCELLING, W.EXITED): (P.ENDED, (A.DISARM, A.END)),
}


def step(state: TurnState, what: What, verdict: Verdict | None = None) -> tuple[TurnState, tuple[Action, ...]]:
    """What follows. `verdict` goes with FINISHED, STOP, ABORT and TIMER; the first one given stays."""
    row = TABLE.get((state.phase, what))
    if row is None:
        return state, ()
    phase, actions = row
    settled = state.verdict or verdict
    if phase is Phase.ENDED and settled is None:
        settled = "crashed"
    return TurnState(phase, settled), actions


def diagram() -> str:
    """The table as a Mermaid state diagram; docs/turn.md is written with it and a test compares."""
    lines = ["stateDiagram-v2", "    [*] --> queued"]
    for (phase, what), (following, actions) in TABLE.items():
        done = f": {what.value}" + (f" / {', '.join(a.value for a in actions)}" if actions else "")
        lines.append(f"    {phase.value} --> {following.value}{done}")
    lines.append("    ended --> [*]")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(diagram(), end="")
