"""The contract of supervisor/store/governance.py, against every store there is; and the audit log through a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import apsw
import msgspec
import pytest
import trio

from hermetic.protocol.errors import Conflict, NotFound, QueueFull, StorageError, TooLarge
from hermetic.protocol.events import Usage
from hermetic.supervisor.audit import START, Act, BrokenChain, parse_head, verify
from hermetic.supervisor.store.audit_sqlite import read_lines
from hermetic.supervisor.store.governance import DAY_S, Facts, Pace, Secret, Used
from hermetic.supervisor.store.interface import Finish, Session, Store, TurnSpec
from hermetic.supervisor.store.sqlite import open_sqlite
from hermetic.testing import MemoryStore

ACT = Act(action="turn.start", actor="key:1", tenant="acme", target="t")


@pytest.fixture(params=["memory", "sqlite"])
async def store(request, tmp_path) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
    else:
        async with open_sqlite(tmp_path / "hermetic.db") as store:
            yield store


def spec(turn_id: str, tenant: str = "acme", **members) -> TurnSpec:
    return TurnSpec(
        turn_id=turn_id, session_id=f"of-{tenant}", tenant=tenant, agent="demo", profile="default", workspace="/w",
        message="hi", created_at=DAY_S * 100 + 5.0, **members,
    )  # fmt: skip


async def enqueue(store: Store, turn_id: str, tenant: str = "acme", queue_max: int = 100, **more):
    if await store.session(tenant, f"of-{tenant}") is None:
        await store.create_session(Session(session_id=f"of-{tenant}", tenant=tenant))
    return await store.enqueue(spec(turn_id, tenant), {"role": "user"}, queue_max=queue_max, **more)


async def actions(store: Store) -> list[str]:
    return [msgspec.json.decode(link.line)["action"] for link in await store.audit.links()]


# --- the audit log ----------------------------------------------------------------------------------------------------


async def test_records_form_one_chain_in_the_order_of_their_writing(store):
    assert await store.audit.head() == START
    assert (await store.audit.record(ACT, ACT)).seq == 2
    last = await store.audit.record(msgspec.structs.replace(ACT, tenant="other"))
    links = await store.audit.links()
    assert verify([link.line for link in links]) == last == await store.audit.head()
    assert [link.seq for link in await store.audit.links(tenant="acme")] == [1, 2]
    assert [link.seq for link in await store.audit.links(1, limit=1)] == [2]
    assert await store.audit.links(limit=-1) == []


async def test_writers_at_the_same_time_make_one_chain(store):
    async with trio.open_nursery() as nursery:
        for n in range(60):
            nursery.start_soon(store.audit.record, msgspec.structs.replace(ACT, target=str(n)))
    links = await store.audit.links()
    assert verify([link.line for link in links]).seq == 60
    assert {msgspec.json.decode(link.line)["target"] for link in links} == {str(n) for n in range(60)}


async def test_a_turns_start_is_recorded_with_it_or_not_at_all(store):
    await enqueue(store, "t", act=ACT)
    with pytest.raises(QueueFull):
        await enqueue(store, "u", queue_max=1, act=ACT)
    with pytest.raises(Conflict):
        await enqueue(store, "t", act=ACT)
    with pytest.raises(NotFound):
        await store.enqueue(spec("v", "nobody"), {}, queue_max=9, act=ACT)
    assert await actions(store) == ["turn.start"]


async def test_a_request_that_comes_again_is_recorded_once(store):
    await store.create_session(Session(session_id="of-acme", tenant="acme"))
    for turn_id in "tu":
        await store.enqueue(spec(turn_id, idempotency_key="k"), {}, queue_max=9, act=ACT)
    cancel = msgspec.structs.replace(ACT, action="turn.cancel")
    assert await store.request_cancel("t", act=cancel)
    assert await store.request_cancel("t", act=cancel)
    assert not await store.request_cancel("nothing", act=cancel)
    assert await actions(store) == ["turn.start", "turn.cancel"]


async def test_what_a_user_did_is_in_the_journal_and_the_log_or_in_neither(store):
    await enqueue(store, "t")
    await store.claim("t", started_at=1.0)
    await store.append_durable("t", 1, 1, [("steer", b"{}")], act=ACT)
    with pytest.raises(Exception, match="epoch"):
        await store.append_durable("t", 7, 2, [("steer", b"{}")], act=ACT)
    assert await actions(store) == ["turn.start"]
    assert await store.last_seq("t") == 1


async def test_the_database_itself_refuses_to_change_or_remove_a_record(tmp_path):
    async with open_sqlite(tmp_path / "hermetic.db") as store:
        await store.audit.record(ACT, ACT)
    with closing(apsw.Connection(str(tmp_path / "hermetic.db"))) as db:
        for statement in ("UPDATE audit SET line = x'00'", "DELETE FROM audit WHERE seq = 2", "DELETE FROM audit"):
            with pytest.raises(apsw.ConstraintError, match="append-only"):
                db.execute(statement)
        db.execute("DROP TRIGGER audit_unchanged")  # who owns the file can still do it, and then the chain says so
        db.execute("UPDATE audit SET line = CAST(replace(line, 'key:1', 'key:2') AS BLOB) WHERE seq = 1")
    with pytest.raises(BrokenChain, match="record 2 does not follow"):
        verify(read_lines(tmp_path / "hermetic.db"))


async def test_the_log_can_be_read_beside_the_server_that_writes_it(tmp_path):
    async with open_sqlite(tmp_path / "hermetic.db") as store:
        last = await store.audit.record(ACT, ACT, ACT)
        assert verify(read_lines(tmp_path / "hermetic.db"), [last]) == last
    with pytest.raises(NotFound):
        list(read_lines(tmp_path / "nothing.db"))
    with closing(apsw.Connection(str(tmp_path / "other.db"))) as db:
        db.execute("CREATE TABLE t (x)")
    with pytest.raises(StorageError, match="another program"):
        list(read_lines(tmp_path / "other.db"))


WRITER = """
import sys, trio
from pathlib import Path
from hermetic.supervisor.audit import Act
from hermetic.supervisor.store.sqlite import open_sqlite

async def write(store):
    while True:
        link = await store.audit.record(Act(action="a", actor="b"))
        print(link.head, flush=True)

async def main():
    async with open_sqlite(Path(sys.argv[1])) as store, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(write, store)

trio.run(main)
"""


def test_after_a_kill_the_chain_is_whole_and_has_every_record_that_was_promised(tmp_path):
    database = tmp_path / "hermetic.db"
    promised = []
    for lap in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(database)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            promised += [process.stdout.readline() for _ in range(20 + 7 * lap)]
            os.kill(process.pid, signal.SIGKILL)
            promised += [line for line in process.stdout if line.endswith("\n")]
    last = verify(read_lines(Path(database)), [parse_head(line) for line in promised])
    assert last.seq >= len(promised)


# --- secrets ----------------------------------------------------------------------------------------------------------


def secret(name: str, sealed: bytes = b"x", tenant: str = "acme", profile: str = "work") -> Secret:
    return Secret(tenant=tenant, profile=profile, name=name, sealed=sealed, updated_at=1.0)


async def test_secrets_are_kept_by_tenant_profile_and_name(store):
    for one in (secret("B"), secret("A"), secret("A", profile="home"), secret("A", tenant="other"), secret("B", b"y")):
        await store.secrets.put(one, count_max=2)
    assert await store.secrets.of("acme", "work") == [secret("A"), secret("B", b"y")]
    assert [one.profile for one in await store.secrets.of("acme")] == ["home", "work", "work"]
    assert await store.secrets.remove("acme", "work", "A")
    assert not await store.secrets.remove("acme", "work", "A")
    assert await store.secrets.of("other") == [secret("A", tenant="other")]
    assert await store.secrets.of("nobody") == []


async def test_a_secret_too_many_is_refused_and_nothing_is_recorded(store):
    act = Act(action="secret.set", actor="local")
    await store.secrets.put(secret("A"), count_max=1, act=act)
    with pytest.raises(TooLarge):
        await store.secrets.put(secret("B"), count_max=1, act=act)
    assert not await store.secrets.remove("acme", "work", "B", act=act)
    assert [one.name for one in await store.secrets.of("acme")] == ["A"]
    assert await actions(store) == ["secret.set"]


async def test_all_secrets_are_sealed_anew_or_none(store):
    for name in "AB":
        await store.secrets.put(secret(name), count_max=9)

    def fails_at_b(one: Secret) -> Secret:
        if one.name == "B":
            raise Conflict("no key for this")
        return msgspec.structs.replace(one, sealed=b"new")

    with pytest.raises(Conflict):
        await store.secrets.reseal(fails_at_b)
    assert {one.sealed for one in await store.secrets.of("acme")} == {b"x"}
    assert await store.secrets.reseal(lambda one: msgspec.structs.replace(one, sealed=b"new")) == 2
    assert {one.sealed for one in await store.secrets.of("acme")} == {b"new"}


# --- usage ------------------------------------------------------------------------------------------------------------


async def test_an_admission_is_decided_by_what_the_tenant_has_at_that_moment(store):
    seen: list[Facts] = []

    def admit(facts: Facts) -> Pace:
        seen.append(facts)
        if len(seen) == 3:
            raise QueueFull("enough")
        return Pace(10.0 - len(seen), 7.0)

    await enqueue(store, "x", "other")
    for turn_id in "tu":
        await enqueue(store, turn_id, admit=admit)
    with pytest.raises(QueueFull, match="enough"):
        await enqueue(store, "v", admit=admit)
    assert await store.turn("v") is None
    assert seen == [Facts(0, None, Used()), Facts(1, Pace(9.0, 7.0), Used()), Facts(2, Pace(8.0, 7.0), Used())]
    assert (await store.usage.facts("acme", 100)).pace == Pace(8.0, 7.0), "a refused one has taken nothing"


async def test_the_end_of_a_turn_adds_what_it_used_to_its_tenants_day(store):
    for n, ended_at in enumerate((100 * DAY_S + 1.0, 101 * DAY_S - 1.0, 101 * DAY_S + 0.0)):
        await enqueue(store, f"t{n}")
        await store.claim(f"t{n}", started_at=1.0)
        usage = Usage(input_tokens=10, output_tokens=1, estimated_cost=0.5)
        await store.finish(
            Finish(
                turn_id=f"t{n}",
                epoch=1,
                state="done",
                first_seq=1,
                records=[("done", b"{}")],
                usage=usage,
                ended_at=ended_at,
            )
        )
    assert await store.usage.days("acme", since=100) == {100: Used(2, 20, 2, 1.0), 101: Used(1, 10, 1, 0.5)}
    assert await store.usage.days("acme", since=101) == {101: Used(1, 10, 1, 0.5)}
    assert await store.usage.days("other", since=0) == {}
    assert (await store.usage.facts("acme", 101)).today == Used(1, 10, 1, 0.5)
