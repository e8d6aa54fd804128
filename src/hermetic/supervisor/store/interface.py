"""The storage seam: what the supervisor asks of a store. One contract test serves every implementation.

What must be one step is one call here, so that an engine for many hosts can make it one statement: a turn is enqueued
with the user's message (`enqueue`), and it ends with its last events, the assistant's message and the session's totals
(`finish`). Every write of a turn names the turn's epoch; one of an older epoch raises `Fenced`. All methods are safe
under trio cancellation: they have happened whole or not at all. All raise `StorageError` when the engine fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from hermetic.protocol.events import StateName, Usage, Verdict
from hermetic.supervisor.audit import Act
from hermetic.supervisor.store.governance import Admit, AuditLog, SecretStore, UsageStore
from hermetic.supervisor.store.identity import IdentityStore

SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a session may be called: it becomes a file's name and a part of URLs. Ours are 12 hexadecimal digits."""
Record = tuple[str, bytes]
"""An event as the journal keeps it: its name and its JSON (one line, no LF)."""


class Entry(NamedTuple):
    """An event as the journal gives it back."""

    seq: int
    name: str
    data: bytes


class Place(NamedTuple):
    """An event of the journal in the order of all that its tenant's turns have said."""

    position: int
    turn_id: str
    session_id: str
    entry: Entry


Then = Callable[[int], None]
"""What is to happen in the moment in which the journal has an append: called with the position of its last event, in the
order of positions, by whoever commits, so that it must not block. What it raises, the append raises."""


class Session(Struct, frozen=True, kw_only=True):
    """A session's own data, without its messages. Stored as JSON, so members may be added with a default."""

    session_id: str
    tenant: str = "local"
    title: str = ""
    title_by_user: bool = False
    """A title that the user gave is never replaced by the agent's or by the first message."""
    agent: str = "demo"
    profile: str = "default"
    workspace: str = ""
    model: str | None = None
    personality: str | None = None
    project_id: str | None = None
    pinned: bool = False
    archived: bool = False
    created_at: float = 0.0
    updated_at: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    estimated_cost: float = 0.0
    continued_as: str | None = None
    """The session that goes on from this one, whose transcript stays as it was. It takes no more turns itself."""
    continues: str | None = None
    """The session that this one goes on from; it may have been deleted since."""
    folder: str | None = None
    """The name of its own workspace, where that is not `session_id`: the folder of the session that it continues."""


def continuation(before: Session, after: Session, session_id: str) -> tuple[Session, Session]:
    """`before` as it was and `after` as a turn has left it → the transcript that stays, and the session that goes on.

    What goes on has all that `after` has: title, settings, totals, the place in the list. What stays is put away with
    the archived ones, where it is found and does not stand twice in the list.
    """
    return (
        replace(before, continued_as=session_id, archived=True, pinned=False),
        replace(after, session_id=session_id, continues=before.session_id, folder=before.folder or before.session_id),
    )


Change = Callable[[Session], Session]
"""A pure function; it may run in another thread, and more than once."""


class SessionRow(NamedTuple):
    session: Session
    rev: int
    """Grows with every write; `put_session` compares it."""
    message_count: int
    active_turn_id: str | None
    """The session's oldest turn that has not ended."""


class TurnSpec(Struct, frozen=True, kw_only=True):
    """What was asked for, fixed at admission."""

    turn_id: str
    session_id: str
    tenant: str = "local"
    agent: str
    profile: str
    workspace: str
    message: str
    attachments: list[str] = field(default_factory=list)
    model: str | None = None
    idempotency_key: str | None = None
    on_disconnect: str = "continue"
    asked: dict[str, Any] = field(default_factory=dict)
    """The whole request, where its kind may say more than we know (the runner contract): kept as it came."""
    created_at: float = 0.0


class TurnRow(Struct, frozen=True, kw_only=True):
    spec: TurnSpec
    state: StateName
    """`queued` until claimed, `running` until finished, then the verdict."""
    epoch: int
    """0 until the first claim."""
    last_seq: int = 0
    cancel_requested: bool = False
    started_at: float | None = None
    ended_at: float | None = None
    stderr: str | None = None


class Claim(NamedTuple):
    spec: TurnSpec
    epoch: int
    last_seq: int


class Finish(Struct, frozen=True, kw_only=True):
    """The end of a turn, written in one step and durable (fsync) on return."""

    turn_id: str
    epoch: int
    state: Verdict
    first_seq: int
    records: list[Record]
    """The last events: the terminal one and `stream_end`, after any that are not journaled yet."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    """The turn's messages after the user's own; replace any that this turn had there."""
    history: list[dict[str, Any]] | None = None
    """If given: replaces all the session's messages up to this turn instead (an agent that has compressed its context).
    The messages of turns that were admitted later, and wait, stay."""
    continue_as: str | None = None
    """If given, with `history`: the session goes on under this id (`continuation`). The new session begins with
    `history`, and this turn and all that were admitted after it become its turns; the old one keeps the messages from
    before this turn."""
    change: Change | None = None
    """Applied to the session inside the step: totals, title, updated_at."""
    usage: Usage | None = None
    """What the turn used: added to its tenant's day."""
    ended_at: float
    stderr: str | None = None


class Writing(NamedTuple):
    """How the store gets on with its writes."""

    waiting: int = 0
    lag_s: float = 0.0
    """How long the oldest write at hand has taken by now."""
    commits: int = 0
    commit_s: float = 0.0
    """Spent in all commits."""


class EventLog(Protocol):
    async def append(
        self, turn_id: str, epoch: int, first_seq: int, records: Sequence[Record], then: Then | None = None
    ) -> None:
        """In the journal on return: it survives a kill -9 of the server. `first_seq` must be the turn's last + 1, else
        `Fenced`, as with another epoch, or a turn that has ended or does not exist. At most one call in flight per turn. Concurrent calls for many turns share
        one commit."""

    async def append_durable(
        self,
        turn_id: str,
        epoch: int,
        first_seq: int,
        records: Sequence[Record],
        then: Then | None = None,
        *,
        act: Act | None = None,
    ) -> None:
        """The same, and on the disk (fsync) on return: for what a user did. `act` is recorded in the same step."""

    async def read(self, turn_id: str, after: int, *, bytes_max: int = 1 << 20) -> list[Entry]:
        """The next events after `after`, in order and without holes: at least one if there is one, about `bytes_max`
        bytes of data at most. Empty: there is none yet."""

    async def last_seq(self, turn_id: str) -> int:
        """0 when the turn has no events or does not exist."""

    async def name(self) -> str:
        """Of this journal: another database, also one restored from a backup's older schema, has another."""

    async def position(self, tenant: str, then: Then | None = None) -> int:
        """The last position that the tenant has been given, 0 before the first; `then` stands in line with those of
        appends. Positions grow with each event, not always by one, and none is given twice, whatever is deleted."""

    async def read_tenant(
        self, tenant: str, after: int, upto: int, *, sessions: Collection[str] | None = None, bytes_max: int = 1 << 20
    ) -> tuple[list[Place], int]:
        """Events of all a tenant's turns after position `after` and up to `upto`, in order; with `sessions`, those of
        these sessions only. About `bytes_max` bytes of data, and a bounded look through others' rows, at most.

        → the events, and the position that has been looked through: go on after it, until it is `upto`."""


class TurnQueue(Protocol):
    async def enqueue(
        self,
        spec: TurnSpec,
        message: dict[str, Any],
        *,
        queue_max: int,
        change: Change | None = None,
        admit: Admit | None = None,
        act: Act | None = None,
    ) -> tuple[TurnRow, bool]:
        """Saves the turn as `queued` and the user's message in its session, durable (fsync) on return; `change` is
        applied to the session in the same step.

        → `(row, True)`; with an idempotency key that this tenant's session has used before, that turn and False, and
        nothing is written. Raises `NotFound` for an unknown session and `QueueFull` when `queue_max` turns wait.
        `admit` decides on what the tenant has at that moment, and `act` is recorded, both in the same step.
        """

    async def enqueue_if_idle(
        self,
        spec: TurnSpec,
        message: dict[str, Any],
        *,
        queue_max: int,
        change: Change | None = None,
        admit: Admit | None = None,
        act: Act | None = None,
    ) -> tuple[TurnRow, bool]:
        """The same, but raises `SessionBusy` (extra: turn_id) when the session has a turn that has not ended."""

    async def claim(self, turn_id: str, *, started_at: float) -> Claim | None:
        """Takes a queued turn: state `running`, epoch + 1. None when it is not queued any more."""

    async def finish(self, end: Finish, then: Then | None = None) -> None:
        """Ends a turn that is queued or running, as one step. `Fenced` when its epoch is not the current one, when
        `first_seq` is not the next, or when it has ended before. `Conflict` when the tenant has a session
        `continue_as` already."""

    async def turn(self, turn_id: str) -> TurnRow | None: ...

    async def unended(self) -> list[TurnRow]:
        """All turns that have not ended, oldest first."""

    async def session_turns(self, tenant: str, session_id: str) -> list[TurnRow]:
        """All turns of a session, oldest first."""

    async def recent_turns(self, tenant: str, *, limit: int) -> list[TurnRow]:
        """Turns that have ended, those that were admitted last first."""


class Control(Protocol):
    async def request_cancel(self, turn_id: str, *, act: Act | None = None) -> bool:
        """Notes durably that the turn is to be cancelled. False when it has ended or does not exist. Idempotent; `act`
        is recorded the first time, in the same step."""


class SessionStore(Protocol):
    """A session's id is its tenant's: two tenants may have sessions of one name, and neither hears of the other's."""

    async def create_session(self, session: Session) -> None: ...

    async def session(self, tenant: str, session_id: str) -> SessionRow | None: ...

    async def put_session(self, session: Session, *, if_rev: int) -> int:
        """→ the new rev. Raises `Conflict` when the session has another rev by now, `NotFound` when it is gone."""

    async def delete_session(self, tenant: str, session_id: str) -> bool:
        """With its messages, turns and events; the one that it continues takes turns again. Raises `SessionBusy` while
        a turn has not ended. False: no such one."""

    async def messages(self, tenant: str, session_id: str) -> list[dict[str, Any]]:
        """Oldest first, by turn and then by order within the turn."""

    async def truncate(self, tenant: str, session_id: str, keep: int, *, change: Change | None = None) -> int:
        """Forgets all messages but the first `keep`, durable (fsync) on return; turns and events stay. `change` is
        applied to the session in the same step. → how many are left. Raises `NotFound`, and `SessionBusy` while a turn
        has not ended: what it says belongs behind what would be forgotten."""

    async def sessions(
        self, tenant: str, *, before: float | None = None, limit: int = 50, archived: bool | None = False
    ) -> list[SessionRow]:
        """Newest `updated_at` first, those with `updated_at < before`; `archived` None: both."""

    async def search(self, tenant: str, query: str, *, limit: int = 20) -> list[tuple[SessionRow, str]]:
        """Full text over titles and the text of messages: every word must occur, the last may be a prefix. Any input
        is a valid query (quotes and operators are plain text). → rows with a snippet, matches between « and »; best
        first, each session once."""

    async def count_sessions(self, tenant: str) -> int: ...


class Store(EventLog, TurnQueue, Control, SessionStore, Protocol):
    """All of it, and its lifetime. Used as `async with open_sqlite(path) as store:`."""

    @property
    def identities(self) -> IdentityStore:
        """Who there is."""

    @property
    def writing(self) -> Writing: ...

    @property
    def audit(self) -> AuditLog:
        """Who did what."""

    @property
    def secrets(self) -> SecretStore: ...

    @property
    def usage(self) -> UsageStore: ...
