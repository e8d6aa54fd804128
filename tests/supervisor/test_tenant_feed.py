"""A reader of all turns meets every event of its sessions once, in the journal's order, wherever its cursor stands."""

from __future__ import annotations

import json
from types import SimpleNamespace

import trio
from hypothesis import given
from hypothesis import strategies as st

from hermetic.protocol.events import Seal
from hermetic.supervisor.config import Config
from hermetic.supervisor.hub import READ_BYTES_MAX, TenantFeed, TenantReader
from hermetic.supervisor.identity import Caller
from hermetic.supervisor.store.interface import Entry, Place, Session, TurnSpec
from hermetic.supervisor.supervisor import Supervisor
from hermetic.testing import MemoryStore


class Log:
    """A tenant's journal in a list; it gives at most three at once."""

    def __init__(self):
        self.places: list[Place] = []

    async def read_tenant(self, tenant, after, upto, *, sessions=None, bytes_max=0):
        await trio.lowlevel.checkpoint()
        found = [p for p in self.places if after < p.position <= upto][:3]
        reached = found[-1].position if len(found) == 3 else upto
        return [p for p in found if sessions is None or p.session_id in sessions], reached


class Told:
    """The turns of a tenant: journal first, then the feed."""

    def __init__(self, ring_events=100, ring_bytes=1 << 20):
        self.log = Log()
        self.feed = TenantFeed("j", 0, ring_bytes=ring_bytes, ring_events=ring_events)
        self._seqs: dict[str, int] = {}

    def say(self, turn, session, count, size=1):
        first = self._seqs.get(turn, 0) + 1
        self._seqs[turn] = first + count - 1
        entries = [
            Entry(n, "token", b'{"event":"token","text":"%b"}' % (b"x" * size)) for n in range(first, first + count)
        ]
        position = self.feed.position + count
        for n, entry in enumerate(entries):
            self.log.places.append(Place(position - count + 1 + n, turn, session, entry))
        self.feed.publish(turn, session, entries, position)


def events(data: bytes):
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        name, body, event_id = block.split("\n")
        event = json.loads(body.removeprefix("data: "))
        assert name == f"event: {event['event']}" == f"event: {event['data']['event']}"
        found.append((int(event_id.removeprefix("id: j:")), event["turn_id"], event["session_id"], event["seq"]))
    return found


class Parked:
    def __init__(self, reader):
        self.reader, self.got = reader, b""

    def take(self, data, seq):
        self.got += data
        self.reader.seq = seq
        return True

    def wake(self):
        pass


says = st.lists(
    st.tuples(st.sampled_from([("a", "s"), ("b", "s"), ("c", "other")]), st.integers(1, 9)), min_size=1, max_size=15
)


@given(before=says, after=says, cursor=st.integers(0, 30), ring=st.integers(1, 20), only=st.sampled_from([None, "s"]))
def test_from_any_cursor_through_journal_ring_and_parking(before, after, cursor, ring, only):
    async def main():
        told = Told(ring_events=ring)
        sessions = frozenset({only}) if only else None
        for (turn, session), count in before:
            told.say(turn, session, count)
        start = min(cursor, told.feed.position)
        with TenantReader("local", start, told.feed, told.log, sessions) as reader:
            got = b""
            said = iter(after)
            while not reader.caught_up():
                got += await reader.read()
                if (step := next(said, None)) is not None:  # the agents do not wait for a reader
                    told.say(*step[0], step[1])
            parked = Parked(reader)
            reader.park(parked)
            for (turn, session), count in said:
                told.say(turn, session, count)
            got += parked.got
        assert events(got) == [
            (p.position, p.turn_id, p.session_id, p.entry.seq)
            for p in told.log.places
            if p.position > start and (only is None or p.session_id == only)
        ]
        assert reader.seq == told.feed.position

    trio.run(main)


async def test_nothing_is_kept_while_nobody_follows():
    told = Told()
    told.say("a", "s", 50)
    assert told.feed.since(49, None) is None
    with TenantReader("local", 0, told.feed, told.log, None):
        told.say("a", "s", 5)
        assert told.feed.since(50, None) is not None and told.feed.since(49, None) is None
    told.say("a", "s", 1)
    assert told.feed.since(55, None) is None


async def test_the_ring_holds_no_more_than_its_bounds_and_one_read_no_more_than_a_socket_buffer():
    told = Told(ring_bytes=300_000)
    with TenantReader("local", 0, told.feed, told.log, None) as reader:
        for _ in range(100):
            told.say("a", "s", 1, size=10_000)
        assert told.feed.since(60, None) is None
        found = told.feed.since(80, None)
        assert found is not None
        assert READ_BYTES_MAX <= len(found[0]) < READ_BYTES_MAX + 11_000
        assert events(found[0])[-1][0] == found[1]
        assert reader.seq == 0


async def test_a_tenant_follows_its_own_turns_and_learns_nothing_of_anothers(tmp_path):
    """Neither by a fresh stream, nor by another tenant's cursor, nor by naming another's session."""
    async with trio.open_nursery() as nursery:
        store = MemoryStore()
        supervisor = Supervisor(Config(), store, tmp_path, nursery, SimpleNamespace(seal=Seal(level=0)), {}, None)
        ours, theirs = Caller(tenant="acme"), Caller(tenant="rival")
        for who, session, turn in (ours, "s", "t1"), (theirs, "s", "t2"):
            await store.create_session(Session(session_id=session, tenant=who.tenant))
            spec = TurnSpec(
                turn_id=turn,
                session_id=session,
                tenant=who.tenant,
                agent="demo",
                profile="default",
                workspace="/w",
                message="hi",
            )
            row, _ = await store.enqueue(spec, {"role": "user", "content": "hi"}, queue_max=10)
            live = supervisor._admit(row)
            reader, reset = await supervisor.tenant_reader(None, by=who)
            assert reset is not None
            assert [t.snapshot.turn_id for t in reset.turns] == [turn]
            with reader:
                await live.announce_queued(1)
                assert json.loads((await reader.read()).split(b"\n")[1].removeprefix(b"data: "))["turn_id"] == turn
        theirs_cursor = (await supervisor.tenant_reader(None, by=theirs))[0].cursor
        reader, reset = await supervisor.tenant_reader(theirs_cursor, by=ours)
        assert reset is not None and "not one that this stream has given out" in reset.reason
        assert [t.snapshot.turn_id for t in reset.turns] == ["t1"]
        first = f"{reader.feed.name}:0"
        reader, reset = await supervisor.tenant_reader(first, by=ours, sessions=frozenset({"s"}))
        assert reset is None
        assert b"t1" in (said := await reader.read()) and b"t2" not in said
        assert reader.caught_up()
        nursery.cancel_scope.cancel()
