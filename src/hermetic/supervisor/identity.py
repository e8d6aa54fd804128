"""Who asks: tenants, callers, and the keys by which they are known.

Everything that can be asked of this server belongs to one tenant, and every request has a caller, who acts for one. Where
no tenant is configured there is one, `local`, and whoever reaches the server (on loopback) is its caller. The tenant
`local` is the operator's: its admins manage all tenants, those of another tenant manage their own.

A key is 256 random bits, so its hash needs no salt and no slowness: nobody can guess what to hash (argon2 is for
passwords, which people choose). The store has the hash alone.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from typing import Final, Literal, NamedTuple, get_args

from msgspec import Struct

Scope = Literal["run", "read", "admin"]
"""`read` sees, `run` also changes sessions and starts turns, `admin` also manages keys, users and tenants."""
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
LOCAL: Final = "local"
"""The tenant of a server without tenants, and the operator's own on one that has some."""

KEY: Final = re.compile(r"hk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
"""A whole key; the group is its id, which is no secret. Logs and journals can be searched for it."""
_TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_USER = re.compile(r"[^\x00-\x20\x7f]{1,128}")


class Caller(Struct, frozen=True):
    """Who asks. `user` and `key_id` are for the audit log: what a caller may is in `tenant` and `scopes` alone."""

    tenant: str
    user: str | None = None
    scopes: frozenset[Scope] = frozenset()
    key_id: str | None = None
    """None: known by something else than a key (OIDC, the server's own note, or no login at all)."""

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes

    @property
    def is_operator(self) -> bool:
        """May manage all tenants."""
        return self.tenant == LOCAL and "admin" in self.scopes


OPERATOR: Final = Caller(tenant=LOCAL, scopes=frozenset(SCOPES))
"""Whoever reaches a server without tenants, and whoever can read the server's data directory."""


class NewKey(NamedTuple):
    key_id: str
    secret: str
    """All of it, as it is shown once."""
    sha256: bytes


def new_key() -> NewKey:
    key_id = secrets.token_hex(6)
    secret = f"hk_{key_id}_{secrets.token_urlsafe(32)}"
    return NewKey(key_id, secret, hash_of(secret))


def hash_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def same(one: bytes, other: bytes) -> bool:
    """In constant time."""
    return hmac.compare_digest(one, other)


def key_id_of(secret: str) -> str | None:
    """The id in a key; None for text that cannot be one."""
    found = KEY.fullmatch(secret)
    return found and found[1]


def is_tenant_name(name: str) -> bool:
    """It becomes a folder's name: lower case, so that two tenants are two folders on every file system."""
    return _TENANT.fullmatch(name) is not None


def is_user_name(name: str) -> bool:
    """An identity provider's `sub` is one as well, which may be an address or a URL."""
    return _USER.fullmatch(name) is not None


def scopes_of(names: Collection[str]) -> frozenset[Scope]:
    """The scopes among `names`, each with those below it: who may run may read, who is admin may both."""
    given: set[Scope] = {scope for scope in SCOPES if scope in names}
    if "admin" in given:
        given |= {"run", "read"}
    if "run" in given:
        given.add("read")
    return frozenset(given)
