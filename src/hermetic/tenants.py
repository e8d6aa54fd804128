"""`hermetic tenants`, `hermetic keys` and `hermetic secrets`: by the admin API of the server that holds the data directory, or, when none
runs, in its database. A server is not started for this: it would run the turns that wait."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from msgspec import UNSET

from hermetic.chat import named_server, running_server
from hermetic.client import Client
from hermetic.protocol import api
from hermetic.protocol.errors import ClientError
from hermetic.supervisor.acting import act_for
from hermetic.supervisor.config import Config
from hermetic.supervisor.identities import Identities
from hermetic.supervisor.identity import OPERATOR
from hermetic.supervisor.secret_box import load_keys
from hermetic.supervisor.store.sqlite import open_sqlite
from hermetic.supervisor.vault import Vault
from hermetic.terminal import clean_line
from hermetic.web.admin import key_view, shown_key, tenant_view
from hermetic.web.governance import secret_view


class Admin(Protocol):
    """What both ways offer; the client's methods."""

    async def list_tenants(self) -> api.TenantList: ...
    async def add_tenant(self, new: api.NewTenant) -> api.TenantView: ...
    async def change_tenant(self, tenant: str, change: api.ChangeTenant) -> api.TenantView: ...
    async def remove_tenant(self, tenant: str) -> None: ...
    async def list_keys(self, tenant: str) -> api.KeyList: ...
    async def add_key(self, tenant: str, new: api.NewKey) -> api.ShownKey: ...
    async def revoke_key(self, tenant: str, key_id: str) -> None: ...
    async def list_secrets(self, tenant: str) -> api.SecretList: ...
    async def set_secret(self, tenant: str, new: api.NewSecret) -> api.SecretView: ...
    async def remove_secret(self, tenant: str, profile: str, name: str) -> None: ...
    async def rotate_secrets(self) -> api.Rotated: ...


class Offline:
    """The database of a server that does not run."""

    def __init__(self, identities: Identities, vault: Vault) -> None:
        self._identities = identities
        self._vault = vault

    async def list_tenants(self) -> api.TenantList:
        return api.TenantList(tenants=[tenant_view(tenant) for tenant in self._identities.tenants()])

    async def add_tenant(self, new: api.NewTenant) -> api.TenantView:
        made = await self._identities.add_tenant(new.tenant, name=new.name, workspace_roots=new.workspace_roots)
        return tenant_view(made)

    async def change_tenant(self, tenant: str, change: api.ChangeTenant) -> api.TenantView:
        asked = {name: value for name in change.__struct_fields__ if (value := getattr(change, name)) is not UNSET}
        return tenant_view(await self._identities.change_tenant(tenant, **asked))

    async def remove_tenant(self, tenant: str) -> None:
        await self._identities.remove_tenant(tenant)

    async def list_keys(self, tenant: str) -> api.KeyList:
        return api.KeyList(keys=[key_view(key) for key in await self._identities.keys(tenant)])

    async def add_key(self, tenant: str, new: api.NewKey) -> api.ShownKey:
        return shown_key(
            await self._identities.add_key(
                tenant, name=new.name, user=new.user, scopes=list(new.scopes), expires_s=new.expires_s
            )
        )

    async def revoke_key(self, tenant: str, key_id: str) -> None:
        await self._identities.revoke_key(tenant, key_id)

    async def list_secrets(self, tenant: str) -> api.SecretList:
        found = await self._vault.names(self._identities.tenant(tenant).tenant)
        return api.SecretList(secrets=[secret_view(secret) for secret in found])

    async def set_secret(self, tenant: str, new: api.NewSecret) -> api.SecretView:
        owner = self._identities.tenant(tenant).tenant
        return secret_view(await self._vault.set(owner, new.profile, new.name, new.value))

    async def remove_secret(self, tenant: str, profile: str, name: str) -> None:
        await self._vault.remove(self._identities.tenant(tenant).tenant, profile, name)

    async def rotate_secrets(self) -> api.Rotated:
        return api.Rotated(secrets=await self._vault.rotate())


@asynccontextmanager
async def an_admin(server: str | None, config: Config) -> AsyncIterator[Admin]:
    """Of the server that was named, else of the one that holds the data directory, else of the directory itself."""
    data = Path(config.server.data).expanduser()
    note = named_server(server) if server else await running_server(data)
    if note is not None:
        async with Client(note.url, key=note.key) as client:
            yield client
        return
    async with open_sqlite(data / "hermetic.db") as store:
        identities = Identities(store.identities, data.resolve())
        await identities.load()
        act_for(OPERATOR)
        yield Offline(identities, Vault(store.secrets, load_keys(config.secrets, os.environ)))


def parse_quotas(texts: Sequence[str]) -> dict[str, float | None]:
    """`turns_at_once=4`, `cost_per_day=none` → what a tenant's record has. Raises `ClientError`."""
    quotas: dict[str, float | None] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            number = None if value == "none" else float(value)
        except ValueError:
            raise ClientError(f"{text[:80]!r} is not NAME=NUMBER", hint="Or NAME=none, for no limit.") from None
        quotas[name] = int(number) if number is not None and number.is_integer() else number
    return quotas


def tenant_lines(tenants: Sequence[api.TenantView]) -> str:
    return "".join(
        f"{tenant.tenant:<32}  {tenant.number:>5}  {_when(tenant.created_at)}  {clean_line(tenant.name)}"
        f"{' (suspended)' if tenant.suspended else ''}".rstrip()
        + "\n"
        for tenant in tenants
    )


def key_lines(keys: Sequence[api.KeyView]) -> str:
    return "".join(
        f"{key.key_id}  {','.join(key.scopes):<14}  used {_when(key.last_used_at)}  {_state(key):<27}"
        f"  {clean_line(key.name)}".rstrip()
        + "\n"
        for key in keys
    )


def _state(key: api.KeyView) -> str:
    if key.revoked_at is not None:
        return f"revoked {_when(key.revoked_at)}"
    if key.expires_at is not None:
        word = "expires" if key.expires_at > time.time() else "expired"
        return f"{word} {_when(key.expires_at)}"
    return "does not expire"


def _when(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "never           "
