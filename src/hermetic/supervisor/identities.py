"""A supervisor's tenants and callers: who a key, a cookie or a ticket stands for, and what an admin changes about them.

Tenants are kept in memory, for every request asks about its own; the server that holds the data directory is the only
one that changes them. Keys and logins are looked up each time: one that was revoked is refused from that moment on.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

import structlog
import trio
from msgspec import Struct
from msgspec.structs import replace

from hermetic.protocol.errors import (
    ClientError,
    HostError,
    NotFound,
    StorageError,
    TenantSuspended,
    Unauthorized,
)
from hermetic.supervisor.acting import act, actor_of
from hermetic.supervisor.admission import checked_quotas
from hermetic.supervisor.audit import Act
from hermetic.supervisor.identity import (
    LOCAL,
    SCOPES,
    Caller,
    hash_of,
    is_tenant_name,
    is_user_name,
    key_id_of,
    new_key,
    same,
    scopes_of,
)
from hermetic.supervisor.store.identity import IdentityStore, Key, Login, Tenant, User
from hermetic.supervisor.workspaces import resolve_workspace

log = structlog.get_logger()

TOUCH_S = 600.0
"""A key's last use is written when it is this much newer than what is known: one write in ten minutes, not one a request."""
LOGIN_S = 12 * 3600.0
"""How long a browser stays logged in: a working day."""
TICKET_S = 30.0
"""From the asking for a ticket to the opening of its stream (SSE rule 12)."""
TICKETS_MAX = 100
"""Of one tenant at once; one more takes the place of its oldest. A page that opens a stream a second holds 30."""
NAME_CHARACTERS = 200
"""What people call a tenant, a user or a key."""


class Shown(Struct, frozen=True):
    """A new key, the only time that it can be seen."""

    key: Key
    secret: str


class Ticket(Struct, frozen=True):
    caller: Caller
    turn_id: str | None
    """The only turn that it opens; None: any stream of its tenant."""
    expires_at: float


class Identities:
    """All methods raise `HermeticError`s. Until `load` has run nobody is let in."""

    def __init__(self, store: IdentityStore, data: Path) -> None:
        self._store = store
        self._data = data
        self._tenants: dict[str, Tenant] | None = None
        self._tickets: dict[bytes, Ticket] = {}
        # Whoever can read the server's note in its data directory can read and change all that is there.
        self.note_key = f"hn_{secrets.token_urlsafe(32)}"
        self._note_sha256 = hash_of(self.note_key)

    async def load(self) -> None:
        self._tenants = {tenant.tenant: tenant for tenant in await self._store.tenants()}

    # --- tenants ---------------------------------------------------------------------------------------------------

    @property
    def configured(self) -> bool:
        """There are tenants, so every request needs a caller."""
        return self._tenants is None or bool(self._tenants)

    def tenants(self) -> list[Tenant]:
        """In the order of their numbers, `local` first."""
        return [self.tenant(LOCAL), *(self._tenants or {}).values()]

    def tenant(self, tenant: str) -> Tenant:
        """Raises `NotFound`."""
        if tenant == LOCAL:
            return Tenant(tenant=LOCAL, name="This server's operator")
        if found := (self._tenants or {}).get(tenant):
            return found
        raise NotFound(f"there is no tenant {tenant[:40]}")

    def tenant_number(self, tenant: str) -> int:
        """0 for `local`; of others none has the number of one that was there before. Raises `NotFound`."""
        return self.tenant(tenant).number

    def folder(self, tenant: str) -> Path:
        """Where the tenant's workspaces and profiles are."""
        return tenant_folder(self._data, tenant)

    def roots(self, tenant: str, local: list[str]) -> list[str]:
        """Where its sessions may choose a workspace; `local`: those of the configuration, which are the operator's."""
        return local if tenant == LOCAL else self.tenant(tenant).workspace_roots

    def workspace(self, tenant: str, asked: str | None, folder: str, local: list[str]) -> Path:
        """See `resolve_workspace`. Blocks on the file system."""
        roots = self.roots(tenant, local)
        return resolve_workspace(
            asked, session_id=folder, roots=roots, data_dir=self._data, own_dir=self.folder(tenant) / "workspaces"
        )

    async def add_tenant(
        self,
        tenant: str,
        *,
        name: str = "",
        workspace_roots: list[str] | None = None,
        quotas: dict[str, float | None] | None = None,
        weight: float = 1.0,
    ) -> Tenant:
        if tenant == LOCAL or not is_tenant_name(tenant):
            raise ClientError(
                f"{tenant[:40]!r} cannot be a tenant's name",
                hint="Use 1 to 32 of a-z, 0-9 and -, beginning and ending with a letter or digit, and not `local`.",
            )
        roots = checked_roots(workspace_roots or [])
        made = await self._store.add_tenant(
            Tenant(
                tenant=tenant,
                name=_name(name),
                workspace_roots=roots,
                quotas=checked_quotas(quotas or {}),
                weight=weight,
                created_at=time.time(),
            ),
            act=act("tenant.add", tenant, tenant=tenant),
        )
        self._known()[tenant] = made
        return made

    async def change_tenant(
        self,
        tenant: str,
        *,
        name: str | None = None,
        suspended: bool | None = None,
        workspace_roots: list[str] | None = None,
        quotas: dict[str, float | None] | None = None,
        weight: float | None = None,
    ) -> Tenant:
        changed = self.tenant(tenant)
        if tenant == LOCAL:
            raise ClientError("the tenant `local` is this server's own and cannot be changed")
        if name is not None:
            changed = replace(changed, name=_name(name))
        if suspended is not None:
            changed = replace(changed, suspended=suspended)
        if workspace_roots is not None:
            changed = replace(changed, workspace_roots=checked_roots(workspace_roots))
        if quotas is not None:
            changed = replace(changed, quotas=checked_quotas(quotas))
        if weight is not None:
            changed = replace(changed, weight=weight)
        done = act("tenant.change", tenant, tenant=tenant, suspended=changed.suspended)
        await self._store.put_tenant(changed, act=done)
        self._known()[tenant] = changed
        return changed

    async def remove_tenant(self, tenant: str) -> None:
        """Its files stay, under a name that no later tenant gets. Raises `NotFound`, and `Conflict` while it has turns."""
        found = self.tenant(tenant)
        if tenant == LOCAL:
            raise ClientError("the tenant `local` is this server's own and cannot be removed")
        if not await self._store.remove_tenant(tenant, act=act("tenant.remove", tenant, tenant=tenant)):
            raise NotFound(f"there is no tenant {tenant}")
        del self._known()[tenant]
        self._tickets = {at: ticket for at, ticket in self._tickets.items() if ticket.caller.tenant != tenant}
        folder = self.folder(tenant)
        try:
            await trio.to_thread.run_sync(lambda: folder.rename(f"{folder}.removed-{found.number}"))
        except FileNotFoundError:
            pass  # it never had any
        except OSError as error:
            raise HostError(
                f"the tenant is gone, but its folder {folder} could not be renamed: {error.strerror}",
                hint="Move the folder away before a tenant of that name is added again.",
            ) from error

    # --- users -----------------------------------------------------------------------------------------------------

    async def users(self, tenant: str) -> list[User]:
        return await self._store.users(self.tenant(tenant).tenant)

    async def put_user(self, tenant: str, user: str, *, name: str = "", suspended: bool = False) -> User:
        if not is_user_name(user):
            raise ClientError("a user's name is 1 to 128 characters without white space")
        before = await self._store.user(self.tenant(tenant).tenant, user)
        made = User(
            tenant=tenant,
            user=user,
            name=_name(name),
            suspended=suspended,
            created_at=before.created_at if before else time.time(),
        )
        await self._store.put_user(made, act=act("user.put", user, tenant=tenant, suspended=suspended))
        return made

    async def remove_user(self, tenant: str, user: str) -> None:
        done = act("user.remove", user, tenant=tenant)
        if not await self._store.remove_user(self.tenant(tenant).tenant, user, act=done):
            raise NotFound(f"there is no user {user[:40]}")

    # --- keys ------------------------------------------------------------------------------------------------------

    async def keys(self, tenant: str) -> list[Key]:
        return await self._store.keys(self.tenant(tenant).tenant)

    async def add_key(
        self,
        tenant: str,
        *,
        name: str = "",
        user: str | None = None,
        scopes: list[str] | None = None,
        expires_s: float | None = None,
    ) -> Shown:
        """`expires_s`: seconds from now. `scopes` None: run and read."""
        asked = ["run"] if scopes is None else scopes
        if unknown := [scope for scope in asked if scope not in SCOPES]:
            raise ClientError(f"there is no scope {unknown[0][:40]!r}", hint=f"Scopes are {', '.join(SCOPES)}.")
        if not asked:
            raise ClientError("a key without a scope opens nothing", hint=f"Scopes are {', '.join(SCOPES)}.")
        if user is not None and await self._store.user(self.tenant(tenant).tenant, user) is None:
            raise NotFound(f"there is no user {user[:40]}", hint="Add the user first.")
        now, made = time.time(), new_key()
        key = Key(
            key_id=made.key_id,
            tenant=self.tenant(tenant).tenant,
            sha256=made.sha256,
            user=user,
            name=_name(name),
            scopes=[scope for scope in SCOPES if scope in scopes_of(asked)],
            created_at=now,
            expires_at=None if expires_s is None else now + expires_s,
        )
        done = act("key.add", key.key_id, tenant=key.tenant, user=user, scopes=" ".join(key.scopes))
        await self._store.add_key(key, act=done)
        return Shown(key, made.secret)

    async def revoke_key(self, tenant: str, key_id: str) -> None:
        done = act("key.revoke", key_id, tenant=tenant)
        if not await self._store.revoke_key(self.tenant(tenant).tenant, key_id, time.time(), act=done):
            raise NotFound(f"there is no key {key_id[:40]}")

    # --- callers ---------------------------------------------------------------------------------------------------

    async def by_key(self, secret: str) -> Caller:
        """Raises `Unauthorized`, with the same words whether there is no such key or it has another secret."""
        if same(hash_of(secret), self._note_sha256):
            return Caller(tenant=LOCAL, user="note", scopes=frozenset(SCOPES))
        key_id = key_id_of(secret)
        key = await self._store.key(key_id) if key_id else None
        if key is None or not same(hash_of(secret), key.sha256):
            raise Unauthorized("this key is not known here")
        now = time.time()
        _check_in_force(key, now)
        caller = Caller(tenant=key.tenant, user=key.user, scopes=scopes_of(key.scopes), key_id=key.key_id)
        await self.check(caller)
        if key.last_used_at is None or now - key.last_used_at >= TOUCH_S:
            try:
                await self._store.touch_key(key.key_id, now)
            except StorageError as error:  # a full disk must not lock everybody out
                log.warning("key_use_not_written", key_id=key.key_id, detail=error.message)
        return caller

    async def check(self, caller: Caller) -> None:
        """Raises `TenantSuspended`, or `Unauthorized` when the tenant is gone or the user is suspended."""
        try:
            tenant = self.tenant(caller.tenant)
        except NotFound:
            raise Unauthorized("there is no such tenant here") from None
        if tenant.suspended:
            raise TenantSuspended(f"the tenant {tenant.tenant} is suspended")
        if caller.user is not None:
            user = await self._store.user(caller.tenant, caller.user)
            if user is not None and user.suspended:
                raise TenantSuspended(f"the user {caller.user[:40]} is suspended")

    # --- browsers --------------------------------------------------------------------------------------------------

    async def log_in(self, caller: Caller) -> tuple[str, Login]:
        """→ the cookie's value, and what is kept of it."""
        token, now = secrets.token_urlsafe(32), time.time()
        login = Login(
            sha256=hash_of(token),
            tenant=caller.tenant,
            csrf=secrets.token_urlsafe(24),
            user=caller.user,
            scopes=sorted(caller.scopes),
            key_id=caller.key_id,
            created_at=now,
            expires_at=now + LOGIN_S,
        )
        await self._store.forget_logins(now)
        done = Act(action="login", actor=actor_of(caller), tenant=caller.tenant)
        await self._store.add_login(login, act=done)
        return token, login

    async def by_login(self, token: str) -> tuple[Caller, Login]:
        """Raises `Unauthorized`."""
        login = await self._store.login(hash_of(token))
        now = time.time()
        if login is None or login.expires_at <= now:
            raise Unauthorized("this login has ended", hint="Log in again at /login.")
        if login.key_id is not None:
            key = await self._store.key(login.key_id)
            if key is None:
                raise Unauthorized("this login has ended", hint="Log in again at /login.")
            _check_in_force(key, now)
        caller = Caller(tenant=login.tenant, user=login.user, scopes=scopes_of(login.scopes), key_id=login.key_id)
        await self.check(caller)
        return caller, login

    async def log_out(self, token: str) -> None:
        await self._store.remove_login(hash_of(token))

    # --- tickets ---------------------------------------------------------------------------------------------------

    def give_ticket(self, caller: Caller, turn_id: str | None) -> str:
        """For one stream, opened within TICKET_S. It reads, whatever else the caller may."""
        now = time.monotonic()
        self._tickets = {at: ticket for at, ticket in self._tickets.items() if ticket.expires_at > now}
        own = [at for at, ticket in self._tickets.items() if ticket.caller.tenant == caller.tenant]
        if len(own) >= TICKETS_MAX:
            del self._tickets[own[0]]
        secret = f"ht_{secrets.token_urlsafe(32)}"
        self._tickets[hash_of(secret)] = Ticket(replace(caller, scopes=frozenset({"read"})), turn_id, now + TICKET_S)
        return secret

    async def by_ticket(self, secret: str, turn_id: str | None) -> Caller:
        """Spends it, also when it is for another turn. Raises `Unauthorized`."""
        ticket = self._tickets.pop(hash_of(secret), None)
        if ticket is None or ticket.expires_at <= time.monotonic() or ticket.turn_id not in (None, turn_id):
            raise Unauthorized(
                "this ticket is not known here, was used, or is too old", hint="Get another: POST /v1/tickets."
            )
        await self.check(ticket.caller)
        return ticket.caller

    def _known(self) -> dict[str, Tenant]:
        if self._tenants is None:
            raise HostError("the tenants have not been read")
        return self._tenants


def tenant_folder(data: Path, tenant: str) -> Path:
    """The tenant `local` has no folder of its own: its workspaces are where they were before there were tenants."""
    return data if tenant == LOCAL else data / "tenants" / tenant


def checked_roots(roots: list[str]) -> list[str]:
    """Absolute folders. Raises `ClientError`; whether they are there is looked at when they are used."""
    normal = ["/" + os.path.normpath(root).lstrip("/") for root in roots]  # two slashes would stay two
    for root, path in zip(roots, normal, strict=True):
        if not os.path.isabs(root) or "\0" in root or path == "/":
            raise ClientError(
                f"{root[:80]!r} cannot be a tenant's workspace root",
                hint="Name a folder by its absolute path; the whole host (/) is no tenant's.",
            )
    return normal


def _check_in_force(key: Key, now: float) -> None:
    """Only for who has shown the secret: to others a key that was revoked is none."""
    if key.revoked_at is not None:
        raise Unauthorized("this key was revoked")
    if key.expires_at is not None and key.expires_at <= now:
        raise Unauthorized("this key has expired")


def _name(name: str) -> str:
    if len(name) > NAME_CHARACTERS or not name.isprintable():
        raise ClientError(f"a name is at most {NAME_CHARACTERS} characters, on one line")
    return name.strip()
