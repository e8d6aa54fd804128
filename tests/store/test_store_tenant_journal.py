"""A tenant's journal, all turns in one order: part of the contract of supervisor/store/interface.py."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from test_store_contract import StoreMaker, open_memory, open_on_disk, running, the_end, tokens

from hermetic.supervisor.store import engine as engine_module
from hermetic.supervisor.store import sqlite as sqlite_module
from hermetic.supervisor.store.interface import Place, Store
from hermetic.supervisor.store.sqlite import open_sqlite


@pytest.fixture(params=[open_memory, open_on_disk], ids=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    maker: StoreMaker = request.param
    async with maker() as store:
        yield store


async def read_all(store: Store, tenant: str = "local", after: int = 0, **more: Any) -> list[Place]:
    """In as many readings as it takes."""
    upto = await store.position(tenant)
    places: list[Place] = []
    while after < upto:
        read, reached = await store.read_tenant(tenant, after, upto, **more)
        assert reached > after, "each reading comes further"
        assert all(after < place.position <= reached for place in read)
        places += read
        after = reached
    return places


async def test_events_of_many_turns_stand_in_the_order_in_which_they_were_told(store: Store) -> None:
    told: list[tuple[int, str, int]] = []
    names = [f"t{n}" for n in range(5)]
    for n, name in enumerate(names):
        await running(store, name, f"s{n % 2}")

    async def speak(name: str) -> None:
        seq = 1
        for _ in range(20):
            count = random.randint(1, 4)
            append = random.choice([store.append, store.append_durable])
            await append(
                name, 1, seq, tokens(seq, count), lambda at, seq=seq, n=count: told.append((at, name, seq + n - 1))
            )
            seq += count
        await store.finish(the_end(name, first_seq=seq), lambda at: told.append((at, name, seq + 1)))

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(speak, name)
            nursery.start_soon(store.position, "local", lambda at: told.append((at, "", 0)))
    assert sum(name == "" for _, name, _ in told) == len(names)
    assert [at for at, _, _ in told] == sorted(at for at, _, _ in told)
    told = [one for one in told if one[1]]
    assert told == sorted(told), "in the order of positions, each before anybody's later one"
    places = await read_all(store)
    assert [place.position for place in places] == sorted({place.position for place in places})
    at = {(place.turn_id, place.entry.seq): place.position for place in places}
    for position, name, seq in told:
        assert at[name, seq] == position
    for n, name in enumerate(names):
        mine = [place for place in places if place.turn_id == name]
        assert [place.entry for place in mine] == await store.read(name, 0)
        assert {place.session_id for place in mine} == {f"s{n % 2}"}
    assert await store.position("local") == places[-1].position


async def test_every_cursor_gives_what_comes_after_it_and_nothing_else(store: Store) -> None:
    await running(store, "a", "s")
    await running(store, "b", "other")
    seqs = {"a": 1, "b": 1}
    for name, count in [("a", 3), ("b", 1), ("a", 1), ("b", 5), ("a", 2)]:
        await store.append(name, 1, seqs[name], tokens(seqs[name], count))
        seqs[name] += count
    whole = await read_all(store)
    assert len(whole) == 12
    for after in range(whole[-1].position + 1):
        rest = [place for place in whole if place.position > after]
        assert await read_all(store, after=after) == rest
        assert await read_all(store, after=after, bytes_max=1) == rest
        only = [place for place in rest if place.session_id == "s"]
        assert await read_all(store, after=after, sessions={"s"}) == only
        assert await read_all(store, after=after, sessions={"s"}, bytes_max=60) == only
        assert await read_all(store, after=after, sessions=set()) == []
        upto = min(after + 4, whole[-1].position)
        assert (await store.read_tenant("local", after, upto))[0] == [p for p in rest if p.position <= upto]


async def test_a_tenant_sees_nothing_of_another_nor_its_pace(store: Store) -> None:
    await running(store, "a", "s", tenant="acme")
    await running(store, "b", "other", tenant="rival")
    for n in range(1, 6):
        await store.append("a", 1, n, tokens(n))
        await store.append("b", 1, 2 * n - 1, tokens(2 * n - 1, 2))
    assert {place.turn_id for place in await read_all(store, "acme")} == {"a"}
    assert [place.position for place in await read_all(store, "acme")] == [1, 2, 3, 4, 5]
    assert len(await read_all(store, "rival")) == 10
    assert await read_all(store, "acme", sessions={"other"}) == []
    assert await store.read_tenant("nobody", 0, 0) == ([], 0)


async def test_a_position_is_never_given_twice_whatever_is_deleted(store: Store) -> None:
    await running(store, "a", "s")
    await store.append("a", 1, 1, tokens(1, 3))
    await store.finish(the_end("a", first_seq=4))
    last = await store.position("local")
    assert await store.delete_session("local", "s")
    assert await store.position("local") == last
    assert await read_all(store) == []
    await running(store, "b", "other")
    told: list[int] = []
    await store.append("b", 1, 1, tokens(1), told.append)
    assert told[0] > last
    assert [place.turn_id for place in await read_all(store, after=last)] == ["b"]


async def test_what_is_refused_tells_nobody_and_what_then_raises_is_raised(store: Store) -> None:
    await running(store, "a", "s")
    told: list[int] = []
    with pytest.raises(Exception, match="cannot be the next"):
        await store.append("a", 1, 7, tokens(7), told.append)
    assert told == []

    def breaks(position: int) -> None:
        raise RuntimeError(f"at {position}")

    with pytest.raises(RuntimeError, match=r"^at \d+$"):
        await store.append("a", 1, 1, tokens(1), breaks)
    await store.append("a", 1, 2, tokens(2), told.append)
    assert len(told) == 1, "the journal had it all the same, and others go on"


async def test_positions_hold_over_a_restart_and_another_database_has_another_name(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "a.db") as store:
        await running(store, "a", "s")
        await store.append("a", 1, 1, tokens(1, 3))
        await store.finish(the_end("a", first_seq=4))
        name, end = await store.name(), await store.position("local")
        await store.delete_session("local", "s")
    async with open_sqlite(tmp_path / "a.db") as store:
        assert (await store.name(), await store.position("local")) == (name, end)
        await running(store, "b", "s")
        told: list[int] = []
        await store.append("b", 1, 1, tokens(1), told.append)
        assert told == [end + 1]
    async with open_sqlite(tmp_path / "b.db") as store:
        assert await store.name() != name


async def test_one_reading_looks_through_a_bounded_number_of_others_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "ROWS_LOOKED_AT", 5)
    async with open_sqlite(tmp_path / "a.db") as store:
        await running(store, "a", "loud")
        await running(store, "b", "quiet")
        for n in range(1, 13):
            await store.append("a", 1, n, tokens(n))
        await store.append("b", 1, 1, tokens(1))
        assert await store.read_tenant("local", 0, 13, sessions={"quiet"}) == ([], 5)
        assert [place.position for place in await read_all(store, sessions={"quiet"})] == [13]


async def test_a_journal_of_an_older_version_gets_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    migrations = engine_module._migrations()
    at = next(n for n, text in enumerate(migrations) if "ADD COLUMN position" in text)
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for text in migrations[:at]:
            db.executescript(text)
        db.execute(f"PRAGMA application_id = {engine_module.APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {at}")
        for n, tenant in enumerate(["acme", "local"], start=1):
            db.execute("INSERT INTO session VALUES (?, ?, ?, 0, 0, 1, ?)", (n, f"s{n}", tenant, b"{}"))
            db.execute(
                "INSERT INTO turn (number, id, session, state, spec) VALUES (?, ?, ?, 'running', ?)",
                (n, f"t{n}", n, b"{}"),
            )
        for turn, first, last in [(1, 1, 2), (2, 1, 1), (1, 3, 3), (2, 2, 5)]:
            lines = b"".join(b"token %d\n" % seq for seq in range(first, last + 1))
            row = (turn, last, first, lines)
            db.execute("INSERT INTO journal (turn, last_seq, first_seq, lines) VALUES (?, ?, ?, ?)", row)
    async with open_sqlite(path) as store:
        assert (await store.position("acme"), await store.position("local")) == (3, 5)
        assert [p.entry.seq for p in await read_all(store, "acme")] == [1, 2, 3]
        assert [(p.position, p.turn_id, p.entry.seq) for p in await read_all(store)] == [
            (n, "t2", n) for n in range(1, 6)
        ]
