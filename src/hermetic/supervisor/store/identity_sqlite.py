"""Tenants, users, keys and logins in SQLite; identity.py beside it says what each method promises."""

from __future__ import annotations

from typing import Any

import apsw
import msgspec

from hermetic.protocol.errors import Conflict, NotFound
from hermetic.supervisor.audit import Act
from hermetic.supervisor.identity import LOCAL
from hermetic.supervisor.store.audit_sqlite import audited
from hermetic.supervisor.store.identity import Key, Login, Tenant, User
from hermetic.supervisor.store.parts import Read, Write

_tenant_of = msgspec.json.Decoder(Tenant).decode
_user_of = msgspec.json.Decoder(User).decode
_key_of = msgspec.json.Decoder(Key).decode
_login_of = msgspec.json.Decoder(Login).decode


class SqliteIdentities:
    """Part of a `SqliteStore`, which gives it its own reading and writing."""

    def __init__(self, read: Read, write: Write) -> None:
        self._read = read
        self._write = write

    # --- tenants ---------------------------------------------------------------------------------------------------

    async def tenants(self) -> list[Tenant]:
        sql = "SELECT data, number FROM tenant ORDER BY number"
        return await self._read(lambda db: [_numbered(*row) for row in db.execute(sql)])

    async def tenant(self, tenant: str) -> Tenant | None:
        sql = "SELECT data, number FROM tenant WHERE id = ?"
        return await self._read(lambda db: (row := db.execute(sql, (tenant,)).fetchone()) and _numbered(*row))

    async def add_tenant(self, tenant: Tenant, *, act: Act | None = None) -> Tenant:
        def change(db: apsw.Connection) -> Tenant:
            if db.execute("SELECT 1 FROM tenant WHERE id = ?", (tenant.tenant,)).get:
                raise Conflict(f"there is a tenant {tenant.tenant} already")
            db.execute("INSERT INTO tenant (id, data) VALUES (?, ?)", (tenant.tenant, msgspec.json.encode(tenant)))
            return msgspec.structs.replace(tenant, number=db.last_insert_rowid())

        return await self._write(audited(change, act))

    async def put_tenant(self, tenant: Tenant, *, act: Act | None = None) -> None:
        def change(db: apsw.Connection) -> None:
            db.execute("UPDATE tenant SET data = ? WHERE id = ?", (msgspec.json.encode(tenant), tenant.tenant))
            if not db.changes():
                raise NotFound(f"there is no tenant {tenant.tenant}")

        await self._write(audited(change, act))

    async def remove_tenant(self, tenant: str, *, act: Act | None = None) -> bool:
        def change(db: apsw.Connection) -> bool:
            sql = (
                "SELECT 1 FROM turn JOIN session ON session.number = turn.session"
                " WHERE tenant = ? AND ended_at IS NULL LIMIT 1"
            )
            if db.execute(sql, (tenant,)).get:
                raise Conflict(f"turns of the tenant {tenant} have not ended", hint="Suspend it first, and wait.")
            db.execute("DELETE FROM tenant WHERE id = ?", (tenant,))
            if not db.changes():
                return False
            for table in ("session", "user", "api_key", "login", "secret", "usage", "pace"):
                db.execute(f"DELETE FROM {table} WHERE tenant = ?", (tenant,))
            return True

        return await self._write(audited(change, act))

    # --- users -----------------------------------------------------------------------------------------------------

    async def users(self, tenant: str) -> list[User]:
        sql = "SELECT data FROM user WHERE tenant = ? ORDER BY id"
        return await self._read(lambda db: [_user_of(data) for (data,) in db.execute(sql, (tenant,))])

    async def user(self, tenant: str, user: str) -> User | None:
        sql = "SELECT data FROM user WHERE tenant = ? AND id = ?"
        return await self._read(lambda db: (data := db.execute(sql, (tenant, user)).get) and _user_of(data))

    async def put_user(self, user: User, *, act: Act | None = None) -> None:
        data = msgspec.json.encode(user)

        def change(db: apsw.Connection) -> None:
            _check_tenant(db, user.tenant)
            db.execute(
                "INSERT OR REPLACE INTO user (tenant, id, data) VALUES (?, ?, ?)", (user.tenant, user.user, data)
            )

        await self._write(audited(change, act))

    async def remove_user(self, tenant: str, user: str, *, act: Act | None = None) -> bool:
        def change(db: apsw.Connection) -> bool:
            db.execute("DELETE FROM user WHERE tenant = ? AND id = ?", (tenant, user))
            if not db.changes():
                return False
            for table in ("api_key", "login"):
                db.execute(f"DELETE FROM {table} WHERE tenant = ? AND user = ?", (tenant, user))
            return True

        return await self._write(audited(change, act))

    # --- keys ------------------------------------------------------------------------------------------------------

    async def add_key(self, key: Key, *, act: Act | None = None) -> None:
        values = (key.key_id, key.tenant, key.user, msgspec.json.encode(key))

        def change(db: apsw.Connection) -> None:
            _check_tenant(db, key.tenant)
            if db.execute("SELECT 1 FROM api_key WHERE id = ?", (key.key_id,)).get:
                raise Conflict(f"there is a key {key.key_id} already")
            db.execute("INSERT INTO api_key (id, tenant, user, data) VALUES (?, ?, ?, ?)", values)

        await self._write(audited(change, act))

    async def key(self, key_id: str) -> Key | None:
        sql = "SELECT data FROM api_key WHERE id = ?"
        return await self._read(lambda db: (data := db.execute(sql, (key_id,)).get) and _key_of(data))

    async def keys(self, tenant: str) -> list[Key]:
        sql = "SELECT data FROM api_key WHERE tenant = ? ORDER BY number"
        return await self._read(lambda db: [_key_of(data) for (data,) in db.execute(sql, (tenant,))])

    async def revoke_key(self, tenant: str, key_id: str, at: float, *, act: Act | None = None) -> bool:
        def change(db: apsw.Connection) -> bool:
            data = db.execute("SELECT data FROM api_key WHERE id = ? AND tenant = ?", (key_id, tenant)).get
            if data is None:
                return False
            key = _key_of(data)
            if key.revoked_at is None:
                _put_key(db, msgspec.structs.replace(key, revoked_at=at))
            db.execute("DELETE FROM login WHERE key_id = ?", (key_id,))
            return True

        return await self._write(audited(change, act))

    async def touch_key(self, key_id: str, at: float) -> None:
        def change(db: apsw.Connection) -> None:
            if data := db.execute("SELECT data FROM api_key WHERE id = ?", (key_id,)).get:
                _put_key(db, msgspec.structs.replace(_key_of(data), last_used_at=at))

        await self._write(change, durable=False)

    # --- logins ----------------------------------------------------------------------------------------------------

    async def add_login(self, login: Login, *, act: Act | None = None) -> None:
        values = (login.sha256, login.tenant, login.user, login.key_id, login.expires_at, msgspec.json.encode(login))
        sql = "INSERT INTO login (sha256, tenant, user, key_id, expires_at, data) VALUES (?, ?, ?, ?, ?, ?)"
        await self._write(audited(lambda db: db.execute(sql, values).close(), act))

    async def login(self, sha256: bytes) -> Login | None:
        sql = "SELECT data FROM login WHERE sha256 = ?"
        return await self._read(lambda db: (data := db.execute(sql, (sha256,)).get) and _login_of(data))

    async def remove_login(self, sha256: bytes) -> bool:
        return await self._write(lambda db: _deleted(db, "DELETE FROM login WHERE sha256 = ?", sha256) > 0)

    async def forget_logins(self, before: float) -> int:
        return await self._write(lambda db: _deleted(db, "DELETE FROM login WHERE expires_at < ?", before))


def _numbered(data: bytes, number: int) -> Tenant:
    return msgspec.structs.replace(_tenant_of(data), number=number)


def _check_tenant(db: apsw.Connection, tenant: str) -> None:
    if tenant != LOCAL and not db.execute("SELECT 1 FROM tenant WHERE id = ?", (tenant,)).get:
        raise NotFound(f"there is no tenant {tenant}")


def _put_key(db: apsw.Connection, key: Key) -> None:
    db.execute("UPDATE api_key SET data = ? WHERE id = ?", (msgspec.json.encode(key), key.key_id))


def _deleted(db: apsw.Connection, sql: str, value: Any) -> int:
    db.execute(sql, (value,))
    return db.changes()
