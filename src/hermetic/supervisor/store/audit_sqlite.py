"""The audit log in SQLite. A record is appended inside the transaction of what it tells of, so that neither is there
without the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import apsw

from hermetic.protocol.errors import NotFound
from hermetic.supervisor.audit import START, Act, Link, following
from hermetic.supervisor.store.engine import BUSY_MS, check_version, translated
from hermetic.supervisor.store.parts import Read, Write

T = TypeVar("T")


class SqliteAudit:
    """Part of a `SqliteStore`, which gives it its own reading and writing."""

    def __init__(self, read: Read, write: Write) -> None:
        self._read = read
        self._write = write

    async def record(self, *acts: Act) -> Link:
        return await self._write(lambda db: append_acts(db, acts))

    async def head(self) -> Link:
        return await self._read(last_link)

    async def links(self, after: int = 0, *, limit: int = 1000, tenant: str | None = None) -> list[Link]:
        where, values = ("", ()) if tenant is None else (" AND tenant = ?", (tenant,))
        sql = f"SELECT seq, line, hash FROM audit WHERE seq > ?{where} ORDER BY seq LIMIT ?"
        return await self._read(lambda db: [Link(*row) for row in db.execute(sql, (after, *values, max(limit, 0)))])


def append_acts(db: apsw.Connection, acts: Iterable[Act]) -> Link:
    """→ the last record. In the writer's transaction, where nobody else appends."""
    last = last_link(db)
    for act in acts:
        last = following(last, act, time.time_ns() // 1_000_000)
        db.execute("INSERT INTO audit VALUES (?, ?, ?, ?)", (last.seq, act.tenant, last.line, last.hash))
    return last


def audited(change: Callable[[apsw.Connection], T], act: Act | None) -> Callable[[apsw.Connection], T]:
    """`change`, and its record unless that raises or returns False, which says that there was nothing to do."""
    if act is None:
        return change

    def both(db: apsw.Connection) -> T:
        result = change(db)
        if result is not False:
            append_acts(db, [act])
        return result

    return both


def last_link(db: apsw.Connection) -> Link:
    row = db.execute("SELECT seq, line, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    return Link(*row) if row else START


def read_lines(database: Path) -> Iterator[bytes]:
    """Every line, oldest first, of a database that a server may be writing. One state: what is appended meanwhile is not
    seen. Raises `NotFound` where there is no database, `StorageError` when it cannot be read."""
    if not database.exists():
        raise NotFound(f"there is no database {database}", hint="Name the server's data directory with --data.")
    try:
        check_version(database)
        with closing(apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)) as db:
            db.set_busy_timeout(BUSY_MS)
            for (line,) in db.execute("SELECT line FROM audit ORDER BY seq"):
                yield line
    except apsw.Error as error:
        raise translated(error, database) from error
