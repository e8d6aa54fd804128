"""The storage seam's part for what a host keeps about its tenants: the audit log, their secrets, what they have used.

As in interface.py every call is one step, happens whole or not at all, is durable on return, and raises `StorageError`
when the engine fails. Where a call takes an `act`, its record is in the same step: neither is there without the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from msgspec import Struct

from hermetic.supervisor.audit import Act, Link

DAY_S = 86_400
"""A day of UTC has so many seconds in the time since the epoch, leap seconds or not."""


class AuditLog(Protocol):
    async def record(self, *acts: Act) -> Link:
        """Appends a record for each, in this order. → the last record of the log."""

    async def head(self) -> Link:
        """The last record; `START` when there is none."""

    async def links(self, after: int = 0, *, limit: int = 1000, tenant: str | None = None) -> list[Link]:
        """The records after `after`, oldest first; `tenant`: only those of one."""


class Secret(Struct, frozen=True, kw_only=True):
    """A variable of a tenant's turns under one profile."""

    tenant: str
    profile: str
    name: str
    sealed: bytes
    """The value, as secret_box.py has encrypted it."""
    updated_at: float = 0.0


class SecretStore(Protocol):
    async def put(self, secret: Secret, *, count_max: int, act: Act | None = None) -> None:
        """New or changed. Raises `TooLarge` when the profile of this tenant would have more than `count_max`."""

    async def remove(self, tenant: str, profile: str, name: str, *, act: Act | None = None) -> bool:
        """False: there is no such one, and nothing is recorded."""

    async def of(self, tenant: str, profile: str | None = None) -> list[Secret]:
        """By profile and name."""

    async def reseal(self, change: Callable[[Secret], Secret], *, act: Act | None = None) -> int:
        """Every secret of every tenant becomes what the pure `change` makes of it; when that raises, none does. → how
        many."""


class Pace(NamedTuple):
    """A bucket of turns: `level` were left at the time `at`."""

    level: float
    at: float


class Used(NamedTuple):
    """By the turns of a tenant that ended on one day."""

    turns: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


class Facts(NamedTuple):
    """What an admission is decided by, as of the moment in which the turn would be enqueued."""

    queued: int
    """Turns of this tenant that wait."""
    pace: Pace | None
    """None: it has started none yet."""
    today: Used


Admit = Callable[[Facts], Pace]
"""A pure function that raises `QuotaExceeded`, or says what is left of the pace. It may run in another thread."""


class UsageStore(Protocol):
    async def facts(self, tenant: str, day: int) -> Facts: ...

    async def days(self, tenant: str, *, since: int) -> dict[int, Used]:
        """Days (UTC, counted from the epoch) on which the tenant's turns ended."""
