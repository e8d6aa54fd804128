"""What only the store on disk can get wrong: crashes, full disks, foreign files, two servers, shared commits."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import outcome
import pytest
import trio
import trio.testing

from hermetic.protocol.errors import Fenced, HostError, NotFound, StorageError
from hermetic.supervisor.store import engine as engine_module
from hermetic.supervisor.store.group_commit import GroupCommit, Write
from hermetic.supervisor.store.interface import Finish, Session, Store, TurnSpec
from hermetic.supervisor.store.sqlite import SqliteStore, open_sqlite


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "hermetic.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    async with open_sqlite(path) as store:
        yield cast(SqliteStore, store)


async def running(store: Store, *turn_ids: str) -> None:
    await store.create_session(Session(session_id="s"))
    for turn_id in turn_ids:
        spec = TurnSpec(turn_id=turn_id, session_id="s", agent="demo", profile="default", workspace="/", message="hi")
        await store.enqueue(spec, {"role": "user", "content": "hi"}, queue_max=1000)
        await store.claim(turn_id, started_at=1.0)


async def append(store: Store, seq: int, data: bytes = b"{}", turn_id: str = "t") -> None:
    await store.append(turn_id, 1, seq, [("token", data)])


# --- what stays -----------------------------------------------------------------------------------------------------


async def test_everything_is_there_after_closing_and_opening_again(path: Path) -> None:
    async with open_sqlite(path) as store:
        await running(store, "t")
        await append(store, 1)
        before = (
            await store.session("local", "s"),
            await store.unended(),
            await store.read("t", 0),
            await store.messages("local", "s"),
        )
    async with open_sqlite(path) as store:
        assert before == (
            await store.session("local", "s"), await store.unended(), await store.read("t", 0), await store.messages("local", "s")
        )  # fmt: skip
        await append(store, 2)


CRASHER = """
    import os, sys
    from pathlib import Path
    import trio
    from hermetic.supervisor.store.interface import Session, TurnSpec
    from hermetic.supervisor.store.sqlite import open_sqlite

    async def one(store, turn_id):
        spec = TurnSpec(turn_id=turn_id, session_id="s", agent="a", profile="p", workspace="/", message="hi")
        if not await store.turn(turn_id):
            await store.enqueue(spec, {"content": "hi"}, queue_max=99)
            await store.claim(turn_id, started_at=1.0)
        seq = await store.last_seq(turn_id)
        while True:
            append = store.append_durable if seq % 7 == 0 else store.append
            await append(turn_id, 1, seq + 1, [("token", b"%d" % (seq + 1)), ("token", b"%d" % (seq + 2))])
            seq += 2
            os.write(1, b"%s %d\\n" % (turn_id.encode(), seq))

    async def main():
        async with open_sqlite(Path(sys.argv[1])) as store, trio.open_nursery() as nursery:
            if not await store.session("local", "s"):
                await store.create_session(Session(session_id="s"))
            for number in range(5):
                nursery.start_soon(one, store, f"t{number}")

    trio.run(main)
"""


def crasher(path: Path) -> subprocess.Popen[bytes]:
    """Prints each append once it is acknowledged, for ever."""
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(CRASHER), path], stdout=subprocess.PIPE)


async def test_what_was_acknowledged_survives_kill_9_at_any_moment(path: Path) -> None:
    acknowledged: dict[str, int] = {}
    chance = random.Random(2)
    for _ in range(8):
        child = crasher(path)
        assert child.stdout is not None
        with child, child.stdout:
            for _ in range(chance.randrange(1, 400)):
                _note(acknowledged, child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            for line in child.stdout:
                _note(acknowledged, line)
        async with open_sqlite(path) as store:
            for turn_id, seq in acknowledged.items():
                entries = await store.read(turn_id, 0, bytes_max=1 << 30)
                assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
                assert [int(entry.data) for entry in entries] == [entry.seq for entry in entries]
                assert len(entries) >= seq
                assert len(entries) % 2 == 0, "half an append"
    assert sum(acknowledged.values()) > 100


def _note(acknowledged: dict[str, int], line: bytes) -> None:
    if line.endswith(b"\n"):
        turn_id, seq = line.split()
        acknowledged[turn_id.decode()] = int(seq)


# --- group commit ---------------------------------------------------------------------------------------------------


async def test_fifty_concurrent_writers_share_their_commits(store: SqliteStore) -> None:
    turn_ids = [f"t{number}" for number in range(50)]
    await running(store, *turn_ids)
    before = store.commits

    async def write(turn_id: str) -> None:
        for seq in range(1, 41):
            await append(store, seq, turn_id=turn_id)

    async with trio.open_nursery() as nursery:
        for turn_id in turn_ids:
            nursery.start_soon(write, turn_id)
    assert 40 <= store.commits - before <= 200  # of 2000 appends


async def test_a_refused_write_does_not_fail_those_that_share_its_commit(store: SqliteStore) -> None:
    await running(store, "t")
    before = store.commits
    refused: list[Any] = []

    async def expect(error: type[Exception] | tuple[type[Exception], ...], call: Any, *args: Any, **more: Any) -> None:
        with pytest.raises(error):
            await call(*args, **more)
        refused.append(error)

    def change(session: Session) -> Session:
        raise RuntimeError("no")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, store, 1)
        nursery.start_soon(expect, Fenced, append, store, 9)
        nursery.start_soon(expect, Fenced, append, store, 1, b"", "unknown")
        nursery.start_soon(expect, NotFound, lambda: store.put_session(Session(session_id="x"), if_rev=1))
        end = Finish(
            turn_id="t", epoch=1, state="done", first_seq=2, records=[("done", b"")], ended_at=1.0, change=change
        )
        nursery.start_soon(expect, (RuntimeError, Fenced), store.finish, end)
        nursery.start_soon(store.create_session, Session(session_id="s2"))
    assert len(refused) == 4
    assert store.commits == before + 1
    assert len(await store.read("t", 0)) == 1
    assert await store.session("local", "s2")


async def test_only_what_must_be_on_the_disk_waits_for_it(store: SqliteStore) -> None:
    async def synchronous() -> int:
        return int(await store._write(lambda db: db.pragma("synchronous"), durable=False))

    await running(store, "t")
    assert await synchronous() == 1
    seen = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.append_durable, "t", 1, 1, [("token", b"")])

        @nursery.start_soon
        async def beside() -> None:
            seen.append(await synchronous())

    assert seen == [2]
    await append(store, 2)
    assert await synchronous() == 1


async def test_a_write_in_line_that_is_cancelled_never_happens_and_one_in_a_commit_is_waited_for() -> None:
    batches: list[int] = []
    inside, go_on = trio.Event(), threading.Event()

    def commit(batch: list[Write[Any]]) -> None:
        batches.append(len(batch))
        trio.from_thread.run_sync(inside.set)
        go_on.wait()
        for write in batch:
            write.result = outcome.Value(write.run())

    done: list[str] = []
    writes = GroupCommit(commit)

    async def write(name: str, scope: trio.CancelScope) -> None:
        with scope:
            done.append(await writes.write(lambda: name, durable=False))

    committing, waiting, staying = trio.CancelScope(), trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writes.run)
        nursery.start_soon(write, "committing", committing)
        await inside.wait()
        nursery.start_soon(write, "waiting", waiting)
        nursery.start_soon(write, "staying", staying)
        await trio.testing.wait_all_tasks_blocked()
        committing.cancel()
        waiting.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert waiting.cancelled_caught
        assert not committing.cancelled_caught
        go_on.set()
        writes.close()
    assert done == ["committing", "staying"]
    assert batches == [1, 1]
    with pytest.raises(trio.ClosedResourceError):
        await writes.write(lambda: None, durable=False)


async def test_more_writers_than_there_is_room_for_all_get_their_turn(
    store: SqliteStore,
) -> None:
    store._writes._room = trio.Semaphore(3)
    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(store.create_session, Session(session_id=f"s{number}"))
    assert await store.count_sessions("local") == 40


async def test_no_cancellation_leaves_a_transaction_open(store: SqliteStore) -> None:
    await running(store, "t")
    for steps in range(12):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.create_session, Session(session_id=f"a{steps}"))
                nursery.start_soon(store.search, "local", "hi")
                nursery.start_soon(store.read, "t", 0)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        # Each looks from inside the thread, with a transaction begun for itself: it would fail if one were open.
        await store._write(lambda db: None)
        await store._read(lambda db: None)
        assert not store._engine.writer.in_transaction
        assert not store._engine.reader.in_transaction
    await append(store, 1)


async def test_a_write_under_a_shield_still_happens_while_everything_is_cancelled(path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_sqlite(path) as store:
            await running(store, "t")
            scope.cancel()
            with trio.CancelScope(shield=True):
                await append(store, 1)
    async with open_sqlite(path) as store:
        assert await store.last_seq("t") == 1


async def test_the_body_s_own_exception_comes_out_and_the_store_is_closed(path: Path) -> None:
    with pytest.raises(KeyError) as raised:
        async with open_sqlite(path) as store:
            raise KeyError("mine")
    assert raised.value.__cause__ is None
    with pytest.raises(trio.ClosedResourceError):
        await store.create_session(Session(session_id="s"))


# --- a disk that fails ----------------------------------------------------------------------------------------------


async def test_a_full_database_is_a_storage_error_and_takes_writes_again_when_there_is_space(
    store: SqliteStore,
) -> None:
    await running(store, "t", "small")
    pages = await store._write(lambda db: int(db.pragma("page_count")))
    await store._write(lambda db: db.pragma("max_page_count", pages + 4))
    with pytest.raises(StorageError) as full:
        await append(store, 1, b"x" * 100_000)
    assert "space" in full.value.hint
    assert not store._engine.writer.in_transaction
    assert await store.last_seq("t") == 0

    # One that does not fit does not fail one that does.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, store, 1, b"y", "small")
        with pytest.raises(StorageError):
            await append(store, 1, b"x" * 100_000)
    assert await store.last_seq("small") == 1

    await store._write(lambda db: db.pragma("max_page_count", 1 << 30))
    await append(store, 1, b"x" * 100_000)
    assert await store.last_seq("t") == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)]
    try:
        mounted = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("only root can make a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_really_full_disk_loses_nothing_that_was_acknowledged(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"-" * 500_000)
    async with open_sqlite(small_disk / "hermetic.db") as store:
        await running(store, "t")
        seq = 0
        with pytest.raises(StorageError, match="full"):
            while True:
                await append(store, seq + 1, b"x" * 10_000)
                seq += 1
        assert seq > 20
        for _ in range(5):
            with pytest.raises(StorageError):
                await append(store, seq + 1, b"x" * 400_000)
        assert len(await store.read("t", 0, bytes_max=1 << 30)) == seq
        ballast.unlink()
        await append(store, seq + 1, b"y" * 10_000)
    async with open_sqlite(small_disk / "hermetic.db") as store:
        assert await store.last_seq("t") == seq + 1


async def test_a_damaged_file_is_a_storage_error_that_says_so(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is not a database, whatever its name " * 1000)
    with pytest.raises(StorageError, match="damaged") as damaged:
        async with open_sqlite(path):
            pass
    assert "backup" in damaged.value.hint


async def test_damage_inside_is_met_as_a_storage_error_and_the_rest_goes_on(path: Path) -> None:
    async with open_sqlite(path) as store:
        await running(store, "t", "t2")
        for seq in range(1, 200):
            await append(store, seq, b"x" * 1000)
    with path.open("r+b") as file:  # all but the first pages, where the schema is
        for offset in range(40 * 4096, path.stat().st_size - 4096, 4096):
            file.seek(offset)
            file.write(b"\xff" * 4096)
    async with open_sqlite(path) as store:
        with pytest.raises(StorageError, match="damaged"):
            await store.read("t", 0, bytes_max=1 << 30)
        await store.create_session(Session(session_id="new"))


async def test_a_newer_database_is_refused_and_left_untouched(path: Path) -> None:
    async with open_sqlite(path) as store:
        await running(store, "t")
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    before = path.read_bytes(), path.stat().st_mtime_ns
    with pytest.raises(StorageError, match=r"version 99; this program knows versions up to \d+$") as refused:
        async with open_sqlite(path):
            pass
    assert "newer Hermetic" in refused.value.hint
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


async def test_another_programs_database_is_refused_and_left_untouched(path: Path) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE precious (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="another program"):
        async with open_sqlite(path):
            pass
    assert path.read_bytes() == before


async def test_a_database_that_was_never_finished_is_ours(path: Path) -> None:
    path.parent.mkdir()
    started = sqlite3.connect(path)
    started.execute("PRAGMA journal_mode = wal")
    started.close()
    assert path.stat().st_size > 0
    async with open_sqlite(path) as store:
        await running(store, "t")


async def test_a_history_that_goes_on_from_the_old_one_rewrites_nothing_of_it(store: SqliteStore) -> None:
    async def ids() -> list[int]:
        return await store._read(lambda db: [n for (n,) in db.execute("SELECT id FROM message ORDER BY turn, place")])

    await running(store, "t", "t2")
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    ends = [("t", said), ("t2", [*said, said[0], {"role": "assistant", "content": "new"}])]
    before = await ids()
    for turn_id, history in ends:
        await store.finish(
            Finish(turn_id=turn_id, epoch=1, state="done", first_seq=1, records=[], history=history, ended_at=1.0)
        )
        after = await ids()
        assert set(before) <= set(after)
        before = after
    assert len(before) == 4


async def test_a_directory_that_cannot_be_used_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in tmp_path / "file" / "hermetic.db", tmp_path:
        with pytest.raises(StorageError, match="cannot be opened"):
            async with open_sqlite(path):
                pass


async def test_a_migration_that_fails_leaves_the_version_before_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_sqlite(path) as store:
        await running(store, "t")
    good = engine_module._migrations()
    broken = "CREATE TABLE extra (x); CREATE TABLE turn (x);"
    monkeypatch.setattr(engine_module, "_migrations", lambda: [*good, broken])
    with pytest.raises(StorageError):
        async with open_sqlite(path):
            pass
    monkeypatch.setattr(engine_module, "_migrations", lambda: [*good, "CREATE TABLE extra (x);"])
    async with open_sqlite(path) as store:
        assert await cast(SqliteStore, store)._read(lambda db: int(db.pragma("user_version"))) == len(good) + 1
        assert await store.turn("t")


# --- one server per directory ---------------------------------------------------------------------------------------


async def test_a_second_server_on_the_same_directory_is_refused_with_the_firsts_pid(path: Path) -> None:
    async with open_sqlite(path) as store:
        with pytest.raises(HostError, match=rf"another server .*{os.getpid()}\)") as refused:
            async with open_sqlite(path):
                pass
        assert not isinstance(refused.value, StorageError)
        assert "--data" in refused.value.hint
        await store.create_session(Session(session_id="s"))
    async with open_sqlite(path) as store:
        assert await store.count_sessions("local") == 1


async def test_the_lock_of_a_killed_server_is_free(path: Path) -> None:
    child = crasher(path)
    assert child.stdout is not None
    with child, child.stdout:
        child.stdout.readline()
        with pytest.raises(HostError, match=str(child.pid)):
            async with open_sqlite(path):
                pass
        child.kill()
    async with open_sqlite(path) as store:
        assert await store.count_sessions("local") == 1


async def test_the_files_are_for_their_owner_only(path: Path) -> None:
    async with open_sqlite(path) as store:
        await running(store, "t")
        assert path.parent.stat().st_mode & 0o777 == 0o700
        files = list(path.parent.iterdir())
        assert len(files) == 4
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
