"""Secrets and usage in SQLite; governance.py beside it says what each method promises."""

from __future__ import annotations

from collections.abc import Callable

import apsw

from hermetic.protocol.errors import TooLarge
from hermetic.supervisor.audit import Act
from hermetic.supervisor.store.audit_sqlite import append_acts, audited
from hermetic.supervisor.store.governance import DAY_S, Facts, Pace, Secret, Used
from hermetic.supervisor.store.parts import Read, Write


class SqliteSecrets:
    """Part of a `SqliteStore`."""

    def __init__(self, read: Read, write: Write) -> None:
        self._read = read
        self._write = write

    async def put(self, secret: Secret, *, count_max: int, act: Act | None = None) -> None:
        def change(db: apsw.Connection) -> None:
            db.execute(
                "INSERT INTO secret (tenant, profile, name, updated_at, sealed) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO"
                " UPDATE SET updated_at = excluded.updated_at, sealed = excluded.sealed",
                (secret.tenant, secret.profile, secret.name, secret.updated_at, secret.sealed),
            )
            sql = "SELECT count(*) FROM secret WHERE tenant = ? AND profile = ?"
            if db.execute(sql, (secret.tenant, secret.profile)).get > count_max:
                raise TooLarge(f"a profile has {count_max} secrets at most", hint="Delete some that are not used.")

        await self._write(audited(change, act))

    async def remove(self, tenant: str, profile: str, name: str, *, act: Act | None = None) -> bool:
        def change(db: apsw.Connection) -> bool:
            db.execute("DELETE FROM secret WHERE tenant = ? AND profile = ? AND name = ?", (tenant, profile, name))
            if not db.changes():
                return False
            if act is not None:
                append_acts(db, [act])
            return True

        return await self._write(change)

    async def of(self, tenant: str, profile: str | None = None) -> list[Secret]:
        where, values = ("", ()) if profile is None else (" AND profile = ?", (profile,))
        return await self._read(lambda db: _secrets(db, f"WHERE tenant = ?{where}", tenant, *values))

    async def reseal(self, change: Callable[[Secret], Secret], *, act: Act | None = None) -> int:
        def step(db: apsw.Connection) -> int:
            all_of_them = _secrets(db, "")
            for secret in all_of_them:
                db.execute(
                    "UPDATE secret SET sealed = ? WHERE tenant = ? AND profile = ? AND name = ?",
                    (change(secret).sealed, secret.tenant, secret.profile, secret.name),
                )
            return len(all_of_them)

        return await self._write(audited(step, act))


def _secrets(db: apsw.Connection, where: str, *values: str) -> list[Secret]:
    sql = f"SELECT tenant, profile, name, sealed, updated_at FROM secret {where} ORDER BY tenant, profile, name"
    return [
        Secret(tenant=tenant, profile=profile, name=name, sealed=sealed, updated_at=updated_at)
        for tenant, profile, name, sealed, updated_at in db.execute(sql, values)
    ]


class SqliteUsage:
    """Part of a `SqliteStore`."""

    def __init__(self, read: Read) -> None:
        self._read = read

    async def facts(self, tenant: str, day: int) -> Facts:
        return await self._read(lambda db: facts(db, tenant, day))

    async def days(self, tenant: str, *, since: int) -> dict[int, Used]:
        sql = "SELECT day, turns, input_tokens, output_tokens, cost FROM usage WHERE tenant = ? AND day >= ?"
        return await self._read(lambda db: {row[0]: Used(*row[1:]) for row in db.execute(sql, (tenant, since))})


def facts(db: apsw.Connection, tenant: str, day: int) -> Facts:
    queued = db.execute(
        "SELECT count(*) FROM turn JOIN session ON session.number = turn.session"
        " WHERE ended_at IS NULL AND state = 'queued' AND tenant = ?",
        (tenant,),
    ).get
    pace = db.execute("SELECT level, at FROM pace WHERE tenant = ?", (tenant,)).fetchone()
    used = db.execute(
        "SELECT turns, input_tokens, output_tokens, cost FROM usage WHERE tenant = ? AND day = ?", (tenant, day)
    ).fetchone()
    return Facts(queued, pace and Pace(*pace), Used(*used) if used else Used())


def keep_pace(db: apsw.Connection, tenant: str, pace: Pace) -> None:
    db.execute("INSERT OR REPLACE INTO pace VALUES (?, ?, ?)", (tenant, pace.level, pace.at))


def add_usage(db: apsw.Connection, tenant: str, at: float, used: Used) -> None:
    """To the day of `at`. Sums stop at what SQLite's and JavaScript's numbers can hold."""
    db.execute(
        "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET turns = turns + excluded.turns,"
        f" input_tokens = min(input_tokens + excluded.input_tokens, {(1 << 53) - 1}),"
        f" output_tokens = min(output_tokens + excluded.output_tokens, {(1 << 53) - 1}),"
        " cost = min(cost + excluded.cost, 1e300)",
        (tenant, int(at // DAY_S), *used),
    )
