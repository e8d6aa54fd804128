"""The embedded store: one SQLite database (WAL) for one server.

A method encodes what it was given, hands a synchronous function to the writer (group_commit.py) or to the reading
thread, and decodes what comes back. Each function is one whole transaction, so no cancellation can leave one open.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import apsw
import msgspec
import trio

from hermetic.protocol.errors import Conflict, Fenced, NotFound, QueueFull, SessionBusy, StorageError
from hermetic.supervisor.audit import Act
from hermetic.supervisor.identity import LOCAL
from hermetic.supervisor.store.audit_sqlite import SqliteAudit, append_acts, audited
from hermetic.supervisor.store.engine import Engine
from hermetic.supervisor.store.governance import DAY_S, Admit, Used
from hermetic.supervisor.store.governance_sqlite import SqliteSecrets, SqliteUsage, add_usage, facts, keep_pace
from hermetic.supervisor.store.group_commit import GroupCommit
from hermetic.supervisor.store.identity_sqlite import SqliteIdentities
from hermetic.supervisor.store.interface import (
    Change,
    Claim,
    Entry,
    Finish,
    Place,
    Record,
    Session,
    SessionRow,
    Store,
    Then,
    TurnRow,
    TurnSpec,
    Writing,
    continuation,
)
from hermetic.supervisor.store.journal_rows import pack, unpack
from hermetic.supervisor.store.search import text_of, words_of

ROWS_LOOKED_AT = 2000
"""Of a tenant's journal in one reading: a reader that follows one quiet session must not hold up all others'."""

T = TypeVar("T")
Messages = list[dict[str, Any]]

_session_of = msgspec.json.Decoder(Session).decode
_spec_of = msgspec.json.Decoder(TurnSpec).decode
_message_of = msgspec.json.Decoder(dict[str, Any]).decode

LAST_SEQ = "coalesce((SELECT max(last_seq) FROM journal WHERE turn = turn.number), 0)"
TURN = f"SELECT spec, state, epoch, {LAST_SEQ}, cancel_requested, started_at, ended_at, stderr FROM turn"
SESSION = """
    SELECT data, rev,
        (SELECT count(*) FROM message WHERE session = session.number),
        (SELECT id FROM turn WHERE session = session.number AND ended_at IS NULL ORDER BY number LIMIT 1)
    FROM session
"""


@asynccontextmanager
async def open_sqlite(path: Path) -> AsyncIterator[Store]:
    """The store in the database file `path`, made when it is not there.

    Raises `HostError` when another server uses it and `StorageError` when it cannot be used (engine.py says why).
    On the way out the writes in line still happen; later calls raise `trio.ClosedResourceError`.
    """
    engine = await trio.to_thread.run_sync(Engine, path)
    writes = GroupCommit(engine.commit)
    failure: BaseException | None = None
    try:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writes.run)
                try:
                    yield SqliteStore(engine, writes)
                finally:
                    writes.close()
        except BaseExceptionGroup as group:
            # The nursery is ours alone: whoever uses the store should see the body's own exception, not a group.
            if len(group.exceptions) > 1:
                raise
            failure = group.exceptions[0]
        if failure is not None:
            raise failure
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(engine.close)


class SqliteStore:
    """See interface.py for what each method promises."""

    def __init__(self, engine: Engine, writes: GroupCommit) -> None:
        self._engine = engine
        self._writes = writes
        self._reading = trio.CapacityLimiter(1)
        self._positions: dict[str, int] = {}
        """Of each tenant that was asked for, the last that was given."""
        self.identities = SqliteIdentities(self._read, self._write)
        self.audit = SqliteAudit(self._read, self._write)
        self.secrets = SqliteSecrets(self._read, self._write)
        self.usage = SqliteUsage(self._read)

    async def _read(self, query: Callable[[apsw.Connection], T]) -> T:
        try:
            return await trio.to_thread.run_sync(self._engine.query, query, limiter=self._reading)
        except RuntimeError as error:  # no thread to be had: an agent has used up the host's processes
            raise StorageError(f"nothing can be read now: {error}") from error

    async def _write(
        self,
        change: Callable[[apsw.Connection], T],
        then: Callable[[T], None] | None = None,
        *,
        durable: bool = True,
        bytes: int = 0,
    ) -> T:
        return await self._writes.write(partial(change, self._engine.writer), then, durable=durable, bytes=bytes)

    @property
    def commits(self) -> int:
        """Transactions committed so far: against the calls, how well they share."""
        return self._engine.commits

    @property
    def writing(self) -> Writing:
        return Writing(self._writes.waiting, self._writes.lag_s, self._engine.commits, self._writes.commit_s)

    # --- journal ---------------------------------------------------------------------------------------------------

    async def append(
        self, turn_id: str, epoch: int, first_seq: int, records: Sequence[Record], then: Then | None = None
    ) -> None:
        await self._append(turn_id, epoch, first_seq, records, then, durable=False)

    async def append_durable(
        self,
        turn_id: str,
        epoch: int,
        first_seq: int,
        records: Sequence[Record],
        then: Then | None = None,
        *,
        act: Act | None = None,
    ) -> None:
        await self._append(turn_id, epoch, first_seq, records, then, durable=True, act=act)

    async def _append(
        self,
        turn_id: str,
        epoch: int,
        first_seq: int,
        records: Sequence[Record],
        then: Then | None,
        *,
        durable: bool,
        act: Act | None = None,
    ) -> None:
        lines, count = pack(records), len(records)

        def change(db: apsw.Connection) -> int:
            turn, tenant = _own_turn(db, turn_id, epoch, first_seq)
            return self._journal(db, turn, tenant, first_seq, count, lines)

        await self._write(audited(change, act), then, durable=durable, bytes=len(lines))

    def _journal(self, db: apsw.Connection, turn: int, tenant: str, first_seq: int, count: int, lines: bytes) -> int:
        """→ the position of its last event. In the writer's thread."""
        position = self._position(db, tenant) + count
        if count:
            row = (turn, first_seq + count - 1, first_seq, lines, tenant, position)
            db.execute("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?)", row)
            self._positions[tenant] = position  # also when the commit fails: a hole in them does no harm
        return position

    def _position(self, db: apsw.Connection, tenant: str) -> int:
        """The last that was given. In the writer's thread."""
        if tenant not in self._positions:
            sql = "SELECT max(position) FROM journal WHERE tenant = ?"
            kept = db.execute("SELECT position FROM journal_end WHERE tenant = ?", (tenant,)).get
            self._positions[tenant] = max(db.execute(sql, (tenant,)).get or 0, kept or 0)
        return self._positions[tenant]

    async def read(self, turn_id: str, after: int, *, bytes_max: int = 1 << 20) -> list[Entry]:
        def query(db: apsw.Connection) -> list[Entry]:
            entries: list[Entry] = []
            size = 0
            for first_seq, lines in db.execute(
                "SELECT first_seq, lines FROM journal WHERE turn = (SELECT number FROM turn WHERE id = ?)"
                " AND last_seq > ? ORDER BY last_seq",
                (turn_id, after),
            ):
                for entry in unpack(first_seq, lines, after):
                    size += len(entry.data)
                    if entries and size > bytes_max:
                        return entries
                    entries.append(entry)
            return entries

        return await self._read(query)

    async def last_seq(self, turn_id: str) -> int:
        sql = f"SELECT {LAST_SEQ} FROM turn WHERE id = ?"
        return await self._read(lambda db: db.execute(sql, (turn_id,)).get or 0)

    async def name(self) -> str:
        return await self._read(lambda db: str(db.execute("SELECT name FROM journal_name").get))

    async def position(self, tenant: str, then: Then | None = None) -> int:
        return await self._write(partial(self._position, tenant=tenant), then, durable=False)

    async def read_tenant(
        self, tenant: str, after: int, upto: int, *, sessions: Collection[str] | None = None, bytes_max: int = 1 << 20
    ) -> tuple[list[Place], int]:
        def query(db: apsw.Connection) -> tuple[list[Place], int]:
            places: list[Place] = []
            size = rows = 0
            reached = after
            for first_seq, last_seq, lines, position, turn_id, key in db.execute(
                "SELECT first_seq, last_seq, lines, position, turn.id, session.id FROM journal"
                " JOIN turn ON turn.number = journal.turn JOIN session ON session.number = turn.session"
                " WHERE journal.tenant = ? AND position > ? ORDER BY position LIMIT ?",
                (tenant, after, ROWS_LOOKED_AT),
            ):
                rows += 1
                shift = position - last_seq
                if first_seq + shift > upto:
                    return places, upto
                session_id = key.rpartition("/")[2]
                if sessions is None or session_id in sessions:
                    for entry in unpack(first_seq, lines, after - shift):
                        at = entry.seq + shift
                        size += len(entry.data)
                        if at > upto:
                            return places, upto
                        if places and size > bytes_max:
                            return places, at - 1
                        places.append(Place(at, turn_id, session_id, entry))
                reached = position
            return places, upto if rows < ROWS_LOOKED_AT else min(reached, upto)

        return await self._read(query)

    # --- turns -----------------------------------------------------------------------------------------------------

    async def enqueue(
        self,
        spec: TurnSpec,
        message: dict[str, Any],
        *,
        queue_max: int,
        change: Change | None = None,
        admit: Admit | None = None,
        act: Act | None = None,
    ) -> tuple[TurnRow, bool]:
        return await self._enqueue(spec, message, queue_max, change, admit, act, if_idle=False)

    async def enqueue_if_idle(
        self,
        spec: TurnSpec,
        message: dict[str, Any],
        *,
        queue_max: int,
        change: Change | None = None,
        admit: Admit | None = None,
        act: Act | None = None,
    ) -> tuple[TurnRow, bool]:
        return await self._enqueue(spec, message, queue_max, change, admit, act, if_idle=True)

    async def _enqueue(
        self,
        spec: TurnSpec,
        message: dict[str, Any],
        queue_max: int,
        session_change: Change | None,
        admit: Admit | None,
        act: Act | None,
        *,
        if_idle: bool,
    ) -> tuple[TurnRow, bool]:
        spec_json, packed = msgspec.json.encode(spec), _packed([message])

        def change(db: apsw.Connection) -> tuple[TurnRow, bool]:
            sql = "SELECT number, data FROM session WHERE id = ?"
            found = db.execute(sql, (_at(spec.tenant, spec.session_id),)).fetchone()
            if found is None:
                raise NotFound(f"there is no session {spec.session_id}")
            session, data = found
            if spec.idempotency_key is not None:
                known = _turn(db, "WHERE session = ? AND idempotency_key = ?", session, spec.idempotency_key)
                if known:
                    return known, False
            if if_idle:
                _refuse_busy(db, session)
            if db.execute("SELECT 1 FROM turn WHERE id = ?", (spec.turn_id,)).get:
                raise Conflict(f"there is a turn {spec.turn_id} already")
            waiting = db.execute("SELECT count(*) FROM turn WHERE ended_at IS NULL AND state = 'queued'").get
            if waiting >= queue_max:
                raise QueueFull(f"{waiting} turns wait already")
            if admit is not None:
                keep_pace(db, spec.tenant, admit(facts(db, spec.tenant, int(spec.created_at // DAY_S))))
            db.execute(
                "INSERT INTO turn (id, session, idempotency_key, state, spec) VALUES (?, ?, ?, 'queued', ?)",
                (spec.turn_id, session, spec.idempotency_key, spec_json),
            )
            _add_messages(db, session, db.last_insert_rowid(), 0, packed)
            if session_change is not None:
                _update_session(db, session, session_change(_session_of(data)))
            if act is not None:
                append_acts(db, [act])
            return TurnRow(spec=spec, state="queued", epoch=0), True

        return await self._write(change, bytes=len(spec_json))

    async def claim(self, turn_id: str, *, started_at: float) -> Claim | None:
        def change(db: apsw.Connection) -> Claim | None:
            row = db.execute(
                "UPDATE turn SET state = 'running', epoch = epoch + 1, started_at = ?"
                f" WHERE id = ? AND state = 'queued' RETURNING spec, epoch, {LAST_SEQ}",
                (started_at, turn_id),
            ).fetchone()
            return row and Claim(_spec_of(row[0]), row[1], row[2])

        # Durable: an agent may act before anything else of its turn is synced, and a power cut must not queue it again.
        return await self._write(change)

    async def finish(self, end: Finish, then: Then | None = None) -> None:
        lines = pack(end.records)
        packed = _packed(end.messages if end.history is None else end.history)

        def change(db: apsw.Connection) -> int:
            turn, tenant = _own_turn(db, end.turn_id, end.epoch, end.first_seq)
            position = self._journal(db, turn, tenant, end.first_seq, len(end.records), lines)
            db.execute(
                "UPDATE turn SET state = ?, ended_at = ?, stderr = ? WHERE number = ?",
                (end.state, end.ended_at, end.stderr, turn),
            )
            if end.usage is not None:
                sql = "SELECT tenant FROM session WHERE number = (SELECT session FROM turn WHERE number = ?)"
                used = Used(1, end.usage.input_tokens, end.usage.output_tokens, end.usage.estimated_cost)
                add_usage(db, db.execute(sql, (turn,)).get, end.ended_at, used)
            session, data = db.execute(
                "SELECT number, data FROM session WHERE number = (SELECT session FROM turn WHERE number = ?)", (turn,)
            ).get
            before = _session_of(data)
            after = before if end.change is None else end.change(before)
            if end.continue_as is not None:
                session = _continue(db, session, turn, *continuation(before, after, end.continue_as))
            elif end.change is not None:
                _update_session(db, session, after)
            if end.history is None:
                db.execute("DELETE FROM message WHERE turn = ? AND place > 0", (turn,))
                _add_messages(db, session, turn, 1, packed)
            else:
                _replace_history(db, session, turn, packed)

            return position

        await self._write(change, then, bytes=len(lines) + sum(len(data) for data, _ in packed))

    async def turn(self, turn_id: str) -> TurnRow | None:
        return await self._read(lambda db: _turn(db, "WHERE id = ?", turn_id))

    async def unended(self) -> list[TurnRow]:
        return await self._read(lambda db: _turns(db, "WHERE ended_at IS NULL ORDER BY number"))

    async def session_turns(self, tenant: str, session_id: str) -> list[TurnRow]:
        where = "WHERE session = (SELECT number FROM session WHERE id = ?) ORDER BY number"
        return await self._read(lambda db: _turns(db, where, _at(tenant, session_id)))

    async def recent_turns(self, tenant: str, *, limit: int) -> list[TurnRow]:
        where = (
            "WHERE ended_at IS NOT NULL AND session IN (SELECT number FROM session WHERE tenant = ?)"
            " ORDER BY number DESC LIMIT ?"
        )
        return await self._read(lambda db: _turns(db, where, tenant, limit))

    async def request_cancel(self, turn_id: str, *, act: Act | None = None) -> bool:
        def change(db: apsw.Connection) -> bool:
            sql = "SELECT cancel_requested FROM turn WHERE id = ? AND ended_at IS NULL"
            if (requested := db.execute(sql, (turn_id,)).get) is None:
                return False
            if not requested:
                db.execute("UPDATE turn SET cancel_requested = 1 WHERE id = ?", (turn_id,))
                append_acts(db, [] if act is None else [act])
            return True

        return await self._write(change)

    # --- sessions --------------------------------------------------------------------------------------------------

    async def create_session(self, session: Session) -> None:
        await self._write(partial(_insert_session, session=session))

    async def session(self, tenant: str, session_id: str) -> SessionRow | None:
        sql = f"{SESSION} WHERE id = ?"
        return await self._read(lambda db: _session_row(db.execute(sql, (_at(tenant, session_id),)).fetchone()))

    async def put_session(self, session: Session, *, if_rev: int) -> int:
        at = _at(session.tenant, session.session_id)

        def change(db: apsw.Connection) -> int:
            row = db.execute("SELECT number, rev FROM session WHERE id = ?", (at,)).fetchone()
            if row is None:
                raise NotFound(f"there is no session {session.session_id}")
            number, rev = row
            if rev != if_rev:
                raise Conflict(f"session {session.session_id} has been changed in the meantime", rev=rev)
            _update_session(db, number, session)
            return if_rev + 1

        return await self._write(change)

    async def delete_session(self, tenant: str, session_id: str) -> bool:
        def change(db: apsw.Connection) -> bool:
            found = db.execute("SELECT number, data FROM session WHERE id = ?", (_at(tenant, session_id),)).fetchone()
            if found is None:
                return False
            number, data = found
            _refuse_busy(db, number)
            db.execute("INSERT OR REPLACE INTO journal_end VALUES (?, ?)", (tenant, self._position(db, tenant)))
            db.execute("DELETE FROM session WHERE number = ?", (number,))
            earlier = db.execute(
                "SELECT number, data FROM session WHERE id = ?", (_at(tenant, _session_of(data).continues or ""),)
            ).fetchone()
            if earlier and (before := _session_of(earlier[1])).continued_as == session_id:
                _update_session(db, earlier[0], msgspec.structs.replace(before, continued_as=None))
            return True

        return await self._write(change)

    async def messages(self, tenant: str, session_id: str) -> Messages:
        sql = (
            "SELECT data FROM message WHERE session = (SELECT number FROM session WHERE id = ?)"
            " ORDER BY session, turn, place"
        )
        return await self._read(
            lambda db: [_message_of(data) for (data,) in db.execute(sql, (_at(tenant, session_id),))]
        )

    async def truncate(self, tenant: str, session_id: str, keep: int, *, change: Change | None = None) -> int:
        def step(db: apsw.Connection) -> int:
            found = db.execute("SELECT number, data FROM session WHERE id = ?", (_at(tenant, session_id),)).fetchone()
            if found is None:
                raise NotFound(f"there is no session {session_id}")
            session, data = found
            _refuse_busy(db, session)
            ids = [i for (i,) in db.execute(
                "SELECT id FROM message WHERE session = ? ORDER BY session, turn, place", (session,)
            )]  # fmt: skip
            gone = ids[max(keep, 0) :]
            db.executemany("DELETE FROM message WHERE id = ?", [(i,) for i in gone])
            if change is not None:
                _update_session(db, session, change(_session_of(data)))
            return len(ids) - len(gone)

        return await self._write(step)

    async def sessions(
        self, tenant: str, *, before: float | None = None, limit: int = 50, archived: bool | None = False
    ) -> list[SessionRow]:
        where: list[str] = ["tenant = ?"]
        values: list[str | float] = [tenant]
        for condition, value in ("updated_at < ?", before), ("archived = ?", archived):
            if value is not None:
                where.append(condition)
                values.append(value)
        order = "ORDER BY updated_at DESC, number DESC LIMIT max(?, 0)"
        sql = f"{SESSION} WHERE {' AND '.join(where)} {order}"
        return await self._read(
            lambda db: [SessionRow(_session_of(d), *r) for d, *r in db.execute(sql, (*values, limit))]
        )

    async def search(self, tenant: str, query: str, *, limit: int = 20) -> list[tuple[SessionRow, str]]:
        # Each word as an FTS5 string, so that AND, NEAR, * and quotes mean nothing; the last one as a prefix.
        terms = [f'"{word}"' for word in words_of(query)]
        if not terms:
            return []
        terms[-1] += "*"
        return await self._read(lambda db: _search(db, tenant, terms, limit))

    async def count_sessions(self, tenant: str) -> int:
        sql = "SELECT count(*) FROM session WHERE tenant = ?"
        return await self._read(lambda db: int(db.execute(sql, (tenant,)).get))


# --- what several methods do inside their transaction ------------------------------------------------------------------


def _at(tenant: str, session_id: str) -> str:
    """A session's key: its id, and before it the tenant's name where there is one. A `/` is in neither."""
    return session_id if tenant == LOCAL else f"{tenant}/{session_id}"


def _own_turn(db: apsw.Connection, turn_id: str, epoch: int, first_seq: int) -> tuple[int, str]:
    """→ the turn's number and its tenant, or `Fenced`."""
    row = db.execute(
        f"SELECT turn.number, epoch, ended_at, {LAST_SEQ}, tenant FROM turn"
        " JOIN session ON session.number = turn.session WHERE turn.id = ?",
        (turn_id,),
    ).fetchone()
    if row is None:
        raise Fenced(f"there is no turn {turn_id}")
    number, current, ended_at, last_seq, tenant = row
    if ended_at is not None:
        raise Fenced(f"turn {turn_id} has ended")
    if current != epoch:
        raise Fenced(f"turn {turn_id} has epoch {current}, not {epoch}")
    if first_seq != last_seq + 1:
        raise Fenced(f"turn {turn_id} has {last_seq} events; {first_seq} cannot be the next")
    return int(number), str(tenant)


def _turns(db: apsw.Connection, where: str, *values: Any) -> list[TurnRow]:
    return [
        TurnRow(
            spec=_spec_of(spec),
            state=state,
            epoch=epoch,
            last_seq=last_seq,
            cancel_requested=bool(cancel_requested),
            started_at=started_at,
            ended_at=ended_at,
            stderr=stderr,
        )
        for spec, state, epoch, last_seq, cancel_requested, started_at, ended_at, stderr in db.execute(
            f"{TURN} {where}", values
        )
    ]


def _turn(db: apsw.Connection, where: str, *values: Any) -> TurnRow | None:
    return next(iter(_turns(db, where, *values)), None)


def _refuse_busy(db: apsw.Connection, session: int) -> None:
    sql = "SELECT id FROM turn WHERE session = ? AND ended_at IS NULL ORDER BY number LIMIT 1"
    if turn_id := db.execute(sql, (session,)).get:
        raise SessionBusy(f"turn {turn_id} of this session has not ended", turn_id=turn_id)


def _packed(messages: Messages) -> list[tuple[bytes, str]]:
    return [(msgspec.json.encode(message), text_of(message)) for message in messages]


def _add_messages(db: apsw.Connection, session: int, turn: int, place: int, packed: list[tuple[bytes, str]]) -> None:
    for at, (data, text) in enumerate(packed, place):
        db.execute("INSERT INTO message (session, turn, place, data) VALUES (?, ?, ?, ?)", (session, turn, at, data))
        if text:
            number = db.last_insert_rowid()
            db.execute("INSERT INTO passage (rowid, text, session) VALUES (?, ?, ?)", (number, text, session))


def _replace_history(db: apsw.Connection, session: int, turn: int, packed: list[tuple[bytes, str]]) -> None:
    """The messages that begin both the old history and the new stay as they are: many agents hand back all of it after
    every turn, and indexing a long session anew each time would hold up everybody's writes."""
    kept = 0
    gone: list[tuple[int]] = []
    sql = "SELECT id, data FROM message WHERE session = ? AND turn <= ? ORDER BY session, turn, place"
    for number, data in db.execute(sql, (session, turn)):
        if not gone and kept < len(packed) and packed[kept][0] == data:
            kept += 1
        else:
            gone.append((number,))
    db.executemany("DELETE FROM message WHERE id = ?", gone)
    _add_messages(db, session, turn, kept, packed[kept:])


def _insert_session(db: apsw.Connection, session: Session) -> int:
    """→ its number."""
    if db.execute("SELECT 1 FROM session WHERE id = ?", (_at(session.tenant, session.session_id),)).get:
        raise Conflict(f"there is a session {session.session_id} already")
    db.execute(
        "INSERT INTO session (id, tenant, updated_at, archived, rev, data) VALUES (?, ?, ?, ?, 1, ?)",
        (
            _at(session.tenant, session.session_id),
            session.tenant,
            session.updated_at,
            session.archived,
            msgspec.json.encode(session),
        ),
    )
    number = db.last_insert_rowid()
    _index_title(db, number, session.title)
    return number


def _continue(db: apsw.Connection, number: int, turn: int, before: Session, after: Session) -> int:
    """Makes the session that goes on, and gives it `turn` and those behind it. → its number."""
    new = _insert_session(db, after)
    _update_session(db, number, before)
    sql = "SELECT number, spec FROM turn WHERE session = ? AND number >= ?"
    for moved, spec_json in list(db.execute(sql, (number, turn))):
        spec = msgspec.structs.replace(_spec_of(spec_json), session_id=after.session_id)
        db.execute("UPDATE turn SET session = ?, spec = ? WHERE number = ?", (new, msgspec.json.encode(spec), moved))
        db.execute(
            "UPDATE passage SET session = ? WHERE rowid IN (SELECT id FROM message WHERE turn = ?)", (new, moved)
        )
        db.execute("UPDATE message SET session = ? WHERE turn = ?", (new, moved))
    return new


def _session_row(row: Any) -> SessionRow | None:
    return row and SessionRow(_session_of(row[0]), *row[1:])


def _update_session(db: apsw.Connection, number: int, session: Session) -> None:
    db.execute(
        "UPDATE session SET tenant = ?, updated_at = ?, archived = ?, rev = rev + 1, data = ? WHERE number = ?",
        (session.tenant, session.updated_at, session.archived, msgspec.json.encode(session), number),
    )
    _index_title(db, number, session.title)


def _index_title(db: apsw.Connection, number: int, title: str) -> None:
    db.execute("DELETE FROM passage WHERE rowid = ?", (-number,))
    db.execute("INSERT INTO passage (rowid, text, session) VALUES (?, ?, ?)", (-number, title, number))


def _search(db: apsw.Connection, tenant: str, terms: list[str], limit: int) -> list[tuple[SessionRow, str]]:
    """Words may be spread over a session's title and messages; the passage that has most of them is shown."""
    anything = " OR ".join(terms)
    everything = " AND number IN (SELECT session FROM passage WHERE passage MATCH ?)" * len(terms)
    found = {
        number for (number,) in db.execute(f"SELECT number FROM session WHERE tenant = ?{everything}", (tenant, *terms))
    }
    best: dict[int, int] = {}
    for passage, session in db.execute(
        "SELECT rowid, session FROM passage WHERE passage MATCH ? ORDER BY rank", (anything,)
    ):
        if len(best) >= min(limit, len(found)):
            break
        if session in found:
            best.setdefault(session, passage)
    hits: list[tuple[SessionRow, str]] = []
    for session, passage in best.items():
        row = _session_row(db.execute(f"{SESSION} WHERE number = ?", (session,)).fetchone())
        snippet = db.execute(
            "SELECT snippet(passage, 0, '«', '»', '…', 24) FROM passage WHERE passage MATCH ? AND rowid = ?",
            (anything, passage),
        ).get
        if row is not None:
            hits.append((row, snippet))
    return hits
