"""Tenants' secrets: set, listed and removed by their admins, and read by nobody but the turns that they are for."""

from __future__ import annotations

import time
from functools import partial

from msgspec.structs import replace

from hermetic.protocol.errors import HostError, NotFound
from hermetic.supervisor.acting import act
from hermetic.supervisor.secret_box import COUNT_MAX, KeyRing, check_secret
from hermetic.supervisor.store.governance import Secret, SecretStore


class Vault:
    """`ring` None: this server has no key, so it takes no secrets. All methods raise `HermeticError`s."""

    def __init__(self, store: SecretStore, ring: KeyRing | None) -> None:
        self._store = store
        self._ring = ring

    async def set(self, tenant: str, profile: str, name: str, value: str) -> Secret:
        check_secret(name, value)
        secret = Secret(
            tenant=tenant,
            profile=profile,
            name=name,
            sealed=self._keys().seal(value, tenant, profile, name),
            updated_at=time.time(),
        )
        done = act("secret.set", f"{profile}/{name}", tenant=tenant)
        await self._store.put(secret, count_max=COUNT_MAX, act=done)
        return secret

    async def names(self, tenant: str, profile: str | None = None) -> list[Secret]:
        """By profile and name. The values stay sealed."""
        return await self._store.of(tenant, profile)

    async def remove(self, tenant: str, profile: str, name: str) -> None:
        """Raises `NotFound`."""
        done = act("secret.remove", f"{profile}/{name}", tenant=tenant)
        if not await self._store.remove(tenant, profile, name, act=done):
            raise NotFound(f"there is no secret {name[:40]} under the profile {profile[:40]}")

    async def rotate(self) -> int:
        """Seals every secret of every tenant with the first key. → how many."""
        return await self._store.reseal(partial(_resealed, self._keys()), act=act("secret.rotate", tenant=""))

    async def open(self, tenant: str, profile: str) -> dict[str, str]:
        """Name → value, for a turn's environment alone."""
        sealed = await self._store.of(tenant, profile)
        return {secret.name: _open(self._keys(), secret) for secret in sealed}

    def _keys(self) -> KeyRing:
        if self._ring is None:
            raise HostError(
                "this server has no key to keep secrets with",
                hint="Set secrets.key_file in the configuration, or the variable that secrets.key_env names.",
            )
        return self._ring


def _open(ring: KeyRing, secret: Secret) -> str:
    return ring.open(secret.sealed, secret.tenant, secret.profile, secret.name)


def _resealed(ring: KeyRing, secret: Secret) -> Secret:
    return replace(secret, sealed=ring.seal(_open(ring, secret), secret.tenant, secret.profile, secret.name))
