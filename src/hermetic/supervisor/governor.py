"""What each tenant may have, and whose turn is next: admission.py decides, this knows the tenants that it decides about."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

import trio

from hermetic.protocol.errors import NotFound
from hermetic.supervisor.admission import (
    NO_LIMIT,
    Tenancy,
    Waiting,
    admission,
    check_streams,
    in_order,
    quotas_of,
    to_start,
)
from hermetic.supervisor.config import Config, Quotas
from hermetic.supervisor.hub import Feed
from hermetic.supervisor.identities import Identities
from hermetic.supervisor.identity import LOCAL
from hermetic.supervisor.quota import Unmeasurable, measure
from hermetic.supervisor.store.governance import Admit
from hermetic.supervisor.store.identity import Tenant
from hermetic.supervisor.store.interface import TurnSpec


class Turn(Protocol):
    """What is looked at of a turn that has not ended."""

    @property
    def turn_id(self) -> str: ...

    spec: TurnSpec
    feed: Feed


class Governor:
    def __init__(self, config: Config, identities: Identities) -> None:
        self._config = config
        self._identities = identities
        self._starts = 0
        self._served: dict[str, int] = {}
        """The number of each tenant's last start. Forgotten in a restart, where nobody runs and all are equal."""

    def quotas(self, tenant: str) -> Quotas:
        """`local` has no limits: whoever runs the server could lift them."""
        return NO_LIMIT if tenant == LOCAL else quotas_of(self._config.quotas, self._record(tenant).quotas)

    def _record(self, tenant: str) -> Tenant:
        try:
            return self._identities.tenant(tenant)
        except NotFound:  # removed; what is left of it ends
            return Tenant(tenant=tenant)

    # --- quotas ----------------------------------------------------------------------------------------------------

    async def admit(self, tenant: str) -> Admit | None:
        """What decides the admission of a turn now. None: whatever it is, it is admitted."""
        quotas = self.quotas(tenant)
        if quotas == NO_LIMIT:
            return None
        used = None
        if quotas.disk_bytes is not None:
            used = await trio.to_thread.run_sync(_disk_used, self._identities, tenant, quotas.disk_bytes)
        return admission(quotas, time.time(), disk_used=used)

    def check_streams(self, tenant: str, live: Iterable[Turn], *, more: int = 0) -> None:
        """Before one more is opened. Streams of turns that have ended do not count: they end by themselves."""
        quotas = self.quotas(tenant)
        if quotas.streams is not None:
            check_streams(quotas, more + sum(turn.feed.readers for turn in live if turn.spec.tenant == tenant))

    # --- the queue -------------------------------------------------------------------------------------------------

    def next(self, waiting: Sequence[Turn], running: Sequence[Turn], free: int) -> list[str]:
        """Ids of those that start now."""
        if free <= 0 or not waiting:
            return []
        busy = {_session(turn) for turn in running}
        starting = to_start(map(_waiting, waiting), self._tenancies(waiting, running), busy, free)
        for turn in starting:
            self._starts += 1
            self._served[turn.tenant] = self._starts
        return [turn.turn_id for turn in starting]

    def order(self, waiting: Sequence[Turn], running: Sequence[Turn]) -> list[str]:
        """Ids of all that wait, the next to start first."""
        return [turn.turn_id for turn in in_order(map(_waiting, waiting), self._tenancies(waiting, running))]

    def _tenancies(self, waiting: Sequence[Turn], running: Sequence[Turn]) -> dict[str, Tenancy]:
        counts = Counter(turn.spec.tenant for turn in running)
        return {
            tenant: Tenancy(
                running=counts[tenant],
                at_once=self.quotas(tenant).turns_at_once,
                weight=self._record(tenant).weight,
                served=self._served.get(tenant, 0),
            )
            for tenant in {turn.spec.tenant for turn in waiting}
        }


def _session(turn: Turn) -> str:
    return f"{turn.spec.tenant}/{turn.spec.session_id}"


def _waiting(turn: Turn) -> Waiting:
    return Waiting(turn.turn_id, _session(turn), turn.spec.tenant)


def _disk_used(identities: Identities, tenant: str, enough: int) -> int:
    """Of the tenant's own folder, its profiles' homes included. One that cannot be measured is full. Blocks."""
    try:
        return measure(str(identities.folder(tenant)), enough)
    except FileNotFoundError:
        return 0
    except Unmeasurable:
        return enough
