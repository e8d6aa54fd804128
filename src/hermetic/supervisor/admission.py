"""Who may start a turn, and whose turn is next: values in, a decision out.

Refusals have one shape (`QuotaExceeded`): which quota, its limit, and after how many seconds it is worth asking again.

The queue is fair by tenant, not by turn. The n-th waiting turn of a tenant that has r running stands at (r + n) / weight,
and the lowest goes first: so places are shared evenly among the tenants that want them, a tenant's first turn passes all
but the first ones of others, and between equals the one goes first whose last start is the longest ago. With that alone a
tenant that starts short turns all the time cannot starve one that has long ones: each gets its share of places.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from hermetic.protocol.errors import ClientError, QuotaExceeded
from hermetic.supervisor.config import Quotas
from hermetic.supervisor.store.governance import DAY_S, Admit, Facts, Pace

RETRY_QUEUE_S: Final = 5
"""What a tenant is told to wait whose queue is full: some turns' time."""
NO_LIMIT: Final = Quotas(**dict.fromkeys(Quotas.__struct_fields__))


class Waiting(NamedTuple):
    """A turn in the queue; given in order of arrival."""

    turn_id: str
    session_id: str
    tenant: str


class Tenancy(NamedTuple):
    """What the queue must know of a tenant."""

    running: int = 0
    at_once: int | None = None
    """None: no limit of its own."""
    weight: float = 1.0
    served: int = 0
    """When it last started a turn, as a number that grows with each start."""


# --- the queue --------------------------------------------------------------------------------------------------------


def in_order(waiting: Iterable[Waiting], tenants: Mapping[str, Tenancy]) -> list[Waiting]:
    """Who starts first if nobody else comes and every tenant and session may."""
    seen: dict[str, int] = {}
    places = []
    for arrival, turn in enumerate(waiting):
        tenancy = tenants.get(turn.tenant, Tenancy())
        seen[turn.tenant] = nth = seen.get(turn.tenant, 0) + 1
        places.append(((tenancy.running + nth) / tenancy.weight, tenancy.served, arrival, turn))
    return [place[-1] for place in sorted(places)]


def to_start(
    waiting: Iterable[Waiting], tenants: Mapping[str, Tenancy], busy: Collection[str], free: int
) -> list[Waiting]:
    """Those that start now: `free` at most, none of a `busy` session or of a tenant that has all it may have at once.

    A session's turns start in the order in which they came, whatever the order of the queue.
    """
    waiting = list(waiting)
    first: dict[str, str] = {}
    for turn in waiting:
        first.setdefault(turn.session_id, turn.turn_id)
    starting: list[Waiting] = []
    running = {name: tenancy.running for name, tenancy in tenants.items()}
    for turn in in_order(waiting, tenants):
        if len(starting) >= free:
            break
        tenancy = tenants.get(turn.tenant, Tenancy())
        has = running.get(turn.tenant, 0)
        if turn.session_id in busy or first[turn.session_id] != turn.turn_id:
            continue
        if tenancy.at_once is not None and has >= tenancy.at_once:
            continue
        running[turn.tenant] = has + 1
        starting.append(turn)
    return starting


# --- quotas -----------------------------------------------------------------------------------------------------------


def quotas_of(defaults: Quotas, own: Mapping[str, float | None]) -> Quotas:
    """A tenant's: its own record's where that says something, None there being no limit."""
    return msgspec.structs.replace(defaults, **own)


def checked_quotas(own: Mapping[str, float | None]) -> dict[str, float | None]:
    """What a tenant's record may say. Raises `ClientError`."""
    whole = {name: int(value) if value is not None and value % 1 == 0 else value for name, value in own.items()}
    try:
        read = msgspec.convert(whole, Quotas)
    except msgspec.ValidationError as error:
        known = ", ".join(Quotas.__struct_fields__)
        raise ClientError(f"these quotas cannot be: {error}", hint=f"There are {known}; null is no limit.") from None
    return {name: getattr(read, name) for name in own}


def admission(quotas: Quotas, now: float, *, disk_used: int | None = None) -> Admit:
    """What decides a turn's admission when the store has the facts. `disk_used`: bytes, where it was measured."""

    def decide(facts: Facts) -> Pace:
        if quotas.turns_queued is not None and facts.queued >= quotas.turns_queued:
            _refuse(
                "turns_queued", quotas.turns_queued, RETRY_QUEUE_S, f"{facts.queued} turns of this tenant wait already"
            )
        to_midnight = DAY_S - now % DAY_S
        tokens = facts.today.input_tokens + facts.today.output_tokens
        if quotas.tokens_per_day is not None and tokens >= quotas.tokens_per_day:
            _refuse("tokens_per_day", quotas.tokens_per_day, to_midnight, f"this tenant has used {tokens} tokens today")
        if quotas.cost_per_day is not None and facts.today.cost >= quotas.cost_per_day:
            said = f"this tenant has used {facts.today.cost:.2f} dollars today"
            _refuse("cost_per_day", quotas.cost_per_day, to_midnight, said)
        if quotas.disk_bytes is not None and disk_used is not None and disk_used >= quotas.disk_bytes:
            said = "the workspaces of this tenant are full"
            _refuse(
                "disk_bytes", quotas.disk_bytes, DISK_RETRY_S, said, "Delete files in them, or ask the host for more."
            )
        return _one_more(quotas.turns_per_minute, facts.pace, now)

    return decide


DISK_RETRY_S: Final = 60
"""Full disks do not empty by themselves; a minute is for whoever deletes something."""


def _one_more(per_minute: int | None, pace: Pace | None, now: float) -> Pace:
    """A bucket that holds a minute's turns and fills evenly. A clock that was set back neither fills nor empties it."""
    if per_minute is None:
        return Pace(0.0, now)
    level = float(per_minute)
    if pace is not None:
        level = min(level, pace.level + max(0.0, now - pace.at) * per_minute / 60)
    if level < 1:
        missing_s = (1 - level) * 60 / per_minute
        said = f"this tenant has started {per_minute} turns in a minute"
        _refuse("turns_per_minute", per_minute, missing_s, said)
    return Pace(level - 1, now)


def check_streams(quotas: Quotas, open_now: int) -> None:
    """Before one more is opened. Raises `QuotaExceeded`."""
    if quotas.streams is not None and open_now >= quotas.streams:
        _refuse("streams", quotas.streams, RETRY_QUEUE_S, f"{open_now} event streams of this tenant are open")


def _refuse(quota: str, limit: float, retry_s: float, said: str, hint: str | None = None) -> None:
    raise QuotaExceeded(
        f"{said}; its quota {quota} is {limit:g}",
        hint=hint,
        quota=quota,
        limit=limit,
        retry_after_s=max(1, math.ceil(retry_s)),
    )
