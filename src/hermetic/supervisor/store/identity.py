"""The storage seam's part that knows who there is: tenants, their users, keys and browser logins.

Names are checked and secrets hashed before they come here (supervisor/identity.py). As in interface.py every call is one
step, happens whole or not at all, and raises `StorageError` when the engine fails. An `act` is recorded in the same step.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct, field

from hermetic.supervisor.audit import Act


class Tenant(Struct, frozen=True, kw_only=True):
    """Stored as JSON, so members may be added with a default. `local` has no row until something about it is kept."""

    tenant: str
    number: int = 0
    """Given by the store, from 1, and never again after the tenant is gone: a user id of the host hangs on it. 0: local."""
    name: str = ""
    """For people."""
    suspended: bool = False
    workspace_roots: list[str] = field(default_factory=list)
    """Folders of the host in which its sessions may choose a workspace, beside their own."""
    quotas: dict[str, float | None] = field(default_factory=dict)
    """Of the configuration's `[quotas]`, those that differ for it; None: no limit."""
    weight: float = 1.0
    """Its share of places, where others want them too."""
    created_at: float = 0.0


class User(Struct, frozen=True, kw_only=True):
    tenant: str
    user: str
    name: str = ""
    suspended: bool = False
    created_at: float = 0.0


class Key(Struct, frozen=True, kw_only=True):
    key_id: str
    tenant: str
    sha256: bytes
    user: str | None = None
    name: str = ""
    scopes: list[str] = field(default_factory=list)
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None
    """Written rarely: about how long ago, not when."""


class Login(Struct, frozen=True, kw_only=True):
    """A browser that has logged in."""

    sha256: bytes
    """Of the cookie."""
    tenant: str
    csrf: str
    user: str | None = None
    scopes: list[str] = field(default_factory=list)
    key_id: str | None = None
    """The key that it logged in with; the login ends with it."""
    created_at: float = 0.0
    expires_at: float = 0.0


class IdentityStore(Protocol):
    async def tenants(self) -> list[Tenant]:
        """In the order of their numbers."""

    async def tenant(self, tenant: str) -> Tenant | None: ...

    async def add_tenant(self, tenant: Tenant, *, act: Act | None = None) -> Tenant:
        """→ with its number. Raises `Conflict` when there is one of that name."""

    async def put_tenant(self, tenant: Tenant, *, act: Act | None = None) -> None:
        """All but its number. Raises `NotFound`."""

    async def remove_tenant(self, tenant: str, *, act: Act | None = None) -> bool:
        """With its users, keys, logins, sessions, turns and events. Raises `Conflict` while a turn has not ended.
        False: no such one."""

    async def users(self, tenant: str) -> list[User]:
        """By name."""

    async def user(self, tenant: str, user: str) -> User | None: ...

    async def put_user(self, user: User, *, act: Act | None = None) -> None:
        """New or changed. Raises `NotFound` when there is no such tenant (of users, `local` is always there)."""

    async def remove_user(self, tenant: str, user: str, *, act: Act | None = None) -> bool:
        """With its keys and logins. False: no such one."""

    async def add_key(self, key: Key, *, act: Act | None = None) -> None:
        """Raises `NotFound` when there is no such tenant, `Conflict` when the id is taken."""

    async def key(self, key_id: str) -> Key | None: ...

    async def keys(self, tenant: str) -> list[Key]:
        """Oldest first, revoked and expired ones too."""

    async def revoke_key(self, tenant: str, key_id: str, at: float, *, act: Act | None = None) -> bool:
        """Durable on return; its logins end. True also when it had been revoked. False: this tenant has no such one."""

    async def touch_key(self, key_id: str, at: float) -> None:
        """It was used. Not durable."""

    async def add_login(self, login: Login, *, act: Act | None = None) -> None: ...

    async def login(self, sha256: bytes) -> Login | None: ...

    async def remove_login(self, sha256: bytes) -> bool: ...

    async def forget_logins(self, before: float) -> int:
        """Those that expired before. → how many."""
