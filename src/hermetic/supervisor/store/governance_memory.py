"""The audit log, secrets and usage in memory: parts of `hermetic.testing.MemoryStore`, under the same contract test."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio
from msgspec.structs import replace

from hermetic.protocol.errors import TooLarge
from hermetic.supervisor.audit import START, Act, Link, following
from hermetic.supervisor.store.governance import Facts, Pace, Secret, Used


class MemoryAudit:
    def __init__(self) -> None:
        self._links: list[tuple[str, Link]] = []

    def note(self, act: Act | None) -> None:
        """Inside another part's step."""
        if act is not None:
            last = self._links[-1][1] if self._links else START
            self._links.append((act.tenant, following(last, act, time.time_ns() // 1_000_000)))

    async def record(self, *acts: Act) -> Link:
        await trio.lowlevel.checkpoint()
        for act in acts:
            self.note(act)
        return self._links[-1][1] if self._links else START

    async def head(self) -> Link:
        await trio.lowlevel.checkpoint()
        return self._links[-1][1] if self._links else START

    async def links(self, after: int = 0, *, limit: int = 1000, tenant: str | None = None) -> list[Link]:
        await trio.lowlevel.checkpoint()
        found = [link for whose, link in self._links if link.seq > after and tenant in (None, whose)]
        return found[: max(limit, 0)]


class MemorySecrets:
    def __init__(self, audit: MemoryAudit) -> None:
        self._audit = audit
        self._secrets: dict[tuple[str, str, str], Secret] = {}

    async def put(self, secret: Secret, *, count_max: int, act: Act | None = None) -> None:
        await trio.lowlevel.checkpoint()
        key = (secret.tenant, secret.profile, secret.name)
        beside = sum(other[:2] == key[:2] and other != key for other in self._secrets)
        if beside + 1 > count_max:
            raise TooLarge(f"a profile has {count_max} secrets at most", hint="Delete some that are not used.")
        self._secrets[key] = secret
        self._audit.note(act)

    async def remove(self, tenant: str, profile: str, name: str, *, act: Act | None = None) -> bool:
        await trio.lowlevel.checkpoint()
        if self._secrets.pop((tenant, profile, name), None) is None:
            return False
        self._audit.note(act)
        return True

    async def of(self, tenant: str, profile: str | None = None) -> list[Secret]:
        await trio.lowlevel.checkpoint()
        return [
            secret
            for _, secret in sorted(self._secrets.items())
            if secret.tenant == tenant and profile in (None, secret.profile)
        ]

    def forget(self, tenant: str) -> None:
        self._secrets = {key: secret for key, secret in self._secrets.items() if secret.tenant != tenant}

    async def reseal(self, change: Callable[[Secret], Secret], *, act: Act | None = None) -> int:
        await trio.lowlevel.checkpoint()
        changed = {key: replace(secret, sealed=change(secret).sealed) for key, secret in self._secrets.items()}
        self._secrets = changed
        self._audit.note(act)
        return len(changed)


class MemoryUsage:
    def __init__(self, queued: Callable[[str], int]) -> None:
        self._queued = queued
        self._pace: dict[str, Pace] = {}
        self._used: dict[tuple[str, int], Used] = {}

    def now(self, tenant: str, day: int) -> Facts:
        return Facts(self._queued(tenant), self._pace.get(tenant), self._used.get((tenant, day), Used()))

    def keep_pace(self, tenant: str, pace: Pace) -> None:
        self._pace[tenant] = pace

    def add(self, tenant: str, day: int, used: Used) -> None:
        before = self._used.get((tenant, day), Used())
        self._used[tenant, day] = Used(
            before.turns + used.turns,
            before.input_tokens + used.input_tokens,
            before.output_tokens + used.output_tokens,
            before.cost + used.cost,
        )

    def forget(self, tenant: str) -> None:
        self._pace.pop(tenant, None)
        self._used = {key: used for key, used in self._used.items() if key[0] != tenant}

    async def facts(self, tenant: str, day: int) -> Facts:
        await trio.lowlevel.checkpoint()
        return self.now(tenant, day)

    async def days(self, tenant: str, *, since: int) -> dict[int, Used]:
        await trio.lowlevel.checkpoint()
        return {day: used for (whose, day), used in self._used.items() if whose == tenant and day >= since}
