"""`GET /v1/events`: all turns of the caller in one stream, which no cut and no silence makes lose or repeat anything."""

from __future__ import annotations

import json
import re
from contextlib import asynccontextmanager

import pytest
import trio
from cutting_proxy import cutting_proxy
from wire import BOUND_S, Wire, wire

pytestmark = pytest.mark.xdist_group("stream_wire")

EVENT = re.compile(rb"(?:retry: \d+\n)?event: ([a-z_]+)\ndata: ([^\n]+)\nid: ([^\n]+)\n\n")


def parsed(data: bytes) -> list[tuple[str, dict, str]]:
    """Whole events; heartbeats are passed over, anything else is an error."""
    found, at = [], 0
    while at < len(data):
        if data.startswith(b":\n", at):
            at += 2
            continue
        match = EVENT.match(data, at)
        assert match, data[at : at + 200]
        found.append((match[1].decode(), json.loads(match[2]), match[3].decode()))
        at = match.end()
    return found


class Follower:
    """One reader of the stream, that can be cut and come back."""

    def __init__(self, server, query: str = ""):
        self.server, self.query = server, query
        self.cursor: str | None = None
        self.events: list[tuple[str, dict, str]] = []
        self.resets: list[dict] = []

    @asynccontextmanager
    async def connected(self, *headers: str):
        async with wire(self.server.url) as w:
            more = [f"Last-Event-ID: {self.cursor}"] if self.cursor else []
            await w.ask(f"/v1/events{self.query}", "GET", *more, *headers)
            assert w.status == 200, w.head
            yield w

    def take(self, data: bytes) -> None:
        for name, event, event_id in parsed(data):
            self.cursor = event_id
            if name == "reset":
                self.resets.append(event)
            elif name != "ping":
                assert (event["event"], event["data"]["event"]) == (name, name)
                self.events.append((name, event, event_id))

    async def read(self, w: Wire, done) -> None:
        with trio.fail_after(BOUND_S):
            while not done():
                self.take(await w.chunk())

    def of(self, turn: str) -> list[dict]:
        return [event for _, event, _ in self.events if event["turn_id"] == turn]

    def ended(self, *turns: str):
        return lambda: all(any(e["event"] == "stream_end" for e in self.of(turn)) for turn in turns)


async def check_whole(server, follower: Follower, turn: str, session: str | None = None) -> None:
    """What the stream said of a turn is what the turn's own stream says."""
    own = await server.events(turn)
    said = follower.of(turn)
    assert [event["seq"] for event in said] == [seq for seq, _, _ in own]
    assert [event["data"] for event in said] == [data for _, _, data in own]
    assert session is None or {event["session_id"] for event in said} == {session}


async def test_it_begins_with_a_reset_that_has_every_open_turn_and_a_cursor(server):
    turn = await server.plan(["say", "one "], ["wait"], ["say", "two"])
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{turn}/events")
        while b'"one "' not in w.received:
            await w.chunk()
    follower = Follower(server)
    async with follower.connected() as w:
        assert w.header("content-type") == "text/event-stream; charset=utf-8"
        assert w.header("x-accel-buffering") == "no"
        first = await w.chunk()
        assert first.startswith(b"retry: 20\nevent: reset\n")
        follower.take(first)
        (open_turn,) = [t for t in follower.resets[0]["turns"] if t["snapshot"]["turn_id"] == turn]
        assert open_turn["snapshot"]["text"] == "one "
        assert open_turn["snapshot"]["state"] == "running"
        await server.say_word(turn)
        await follower.read(w, follower.ended(turn))
    seen = open_turn["snapshot"]["seq"]
    own = await server.events(turn)
    assert [e["seq"] for e in follower.of(turn)] == [seq for seq, _, _ in own if seq > seen]
    async with Follower(server).connected() as w:
        (reset,) = parsed(await w.chunk())
        assert turn not in {t["snapshot"]["turn_id"] for t in reset[1]["turns"]}, "it has ended"


async def test_turns_that_begin_while_one_follows_are_there_from_their_first_event(server):
    follower = Follower(server)
    async with follower.connected() as w:
        await follower.read(w, lambda: follower.resets)
        sessions = [await server.session(agent="plan") for _ in range(3)]
        steps = [["say", "x "], ["sleep", 0.01]] * 20
        turns = [await server.plan(*steps, session=session) for session in sessions]
        await follower.read(w, follower.ended(*turns))
    for turn, session in zip(turns, sessions, strict=True):
        await check_whole(server, follower, turn, session)
    positions = [int(event_id.partition(":")[2]) for _, _, event_id in follower.events]
    assert positions == sorted(set(positions))


async def test_cut_anywhere_and_come_back_with_the_cursor(server):
    """By a proxy, at every kind of place; what was missed comes from the ring or the journal."""
    follower = Follower(server)
    async with follower.connected() as w:
        await follower.read(w, lambda: follower.resets)
    steps = [["say", "🦉 "], ["tool", "t"], ["sleep", 0.005]] * 30
    turns = [await server.plan(*steps) for _ in range(2)]
    cuts: list[int | bytes] = [
        b"\nid: ",
        b'"seq":',
        "🦉".encode()[:2],
        b"event: tool_complete\nda",
        0,
        40,
        900,
        b"}\n",
    ] * 3
    async with cutting_proxy(server.url, cuts) as proxy:
        done = follower.ended(*turns)
        with trio.fail_after(BOUND_S):
            while not done():
                rest = bytearray()
                try:
                    async with wire(proxy.url) as w:
                        await w.ask("/v1/events", "GET", f"Last-Event-ID: {follower.cursor}")
                        while not done():
                            rest += await w.chunk()
                            whole = rest.rfind(b"\n\n") + 2
                            if whole > 1:
                                follower.take(bytes(rest[:whole]))
                                del rest[:whole]
                except (AssertionError, trio.BrokenResourceError):
                    continue
    assert len(follower.resets) == 1, "every cursor was known"
    for turn in turns:
        await check_whole(server, follower, turn)


async def test_only_the_sessions_that_were_asked_for(server):
    one, two, three = [await server.session(agent="plan") for _ in range(3)]
    follower = Follower(server, f"?session_id={one}&session_id={two}")
    async with follower.connected() as w:
        await follower.read(w, lambda: follower.resets)
        turns = [await server.plan(["say", "x"], ["sleep", 0.05], ["say", "y"], session=s) for s in (three, one, two)]
        await follower.read(w, follower.ended(*turns[1:]))
    assert follower.of(turns[0]) == []
    await check_whole(server, follower, turns[1], one)
    await check_whole(server, follower, turns[2], two)
    late = Follower(server, f"?session_id={three}")
    late.cursor = follower.resets and f"{follower.cursor.partition(':')[0]}:0"
    async with late.connected() as w:
        await late.read(w, late.ended(turns[0]))
    assert late.resets == []
    assert {e["session_id"] for _, e, _ in late.events} == {three}
    await check_whole(server, late, turns[0], three)


async def test_the_whole_journal_can_be_read_from_its_first_position(server):
    turn = await server.plan(*([["say", "x"]] * 300))
    await server.events(turn)
    follower = Follower(server)
    async with follower.connected() as w:
        await follower.read(w, lambda: follower.resets)
    follower.cursor = f"{follower.cursor.partition(':')[0]}:0"
    async with follower.connected() as w:
        await follower.read(w, follower.ended(turn))
    assert len(follower.resets) == 1
    await check_whole(server, follower, turn)


@pytest.mark.parametrize("bad", ["{name}:99999999", "other:1", "{name}:", "{name}:-1", "nonsense", "7", "{name}:1e1"])
async def test_a_cursor_that_leads_nowhere_is_answered_by_a_reset(server, bad):
    async with Follower(server).connected() as w:
        ((_, _, event_id),) = parsed(await w.chunk())
    follower = Follower(server)
    follower.cursor = bad.format(name=event_id.partition(":")[0])
    async with follower.connected() as w:
        (first, *_) = parsed(await w.chunk())
    assert first[0] == "reset"
    assert first[1]["reason"] != "this is where it begins"
    assert first[2].partition(":")[0] == event_id.partition(":")[0]


async def test_heartbeats_pings_and_head_are_as_in_a_turns_own_stream(server):
    follower = Follower(server, "?ping=1&session_id=nobody")
    async with follower.connected() as w:
        await follower.read(w, lambda: follower.resets)
        assert await w.chunk() == f":\nevent: ping\ndata: {{}}\nid: {follower.cursor}\n\n".encode()
    async with wire(server.url) as w:
        await w.ask("/v1/events?session_id=nobody")
        await w.chunk()
        assert [await w.chunk() for _ in range(3)] == [b":\n"] * 3
        async with wire(server.url) as other:
            await other.ask("/v1/events", "HEAD")
            assert (other.status, other.header("content-length")) == (200, None)
            await other.ask("/v1/health")
            assert other.status == 200


async def test_a_hundred_sessions_and_no_more(server):
    async with wire(server.url) as w:
        await w.ask("/v1/events?" + "&".join(f"session_id=s{n}" for n in range(101)))
        assert w.status == 400
        await w.body()


async def test_when_the_server_stops_its_readers_are_told_and_the_next_one_goes_on(own_server):
    server = own_server
    follower = Follower(server)
    async with follower.connected() as w:
        await follower.read(w, lambda: follower.resets)
        turn = await server.plan(["say", "x"])
        await follower.read(w, follower.ended(turn))
        server.process.terminate()
        with pytest.raises(AssertionError, match="closed"):
            while True:
                data = await w.chunk()
                if b"draining" in data:
                    notice = data
    assert re.match(rb"retry: \d+\nevent: draining\ndata: \{.*\}\nid: " + follower.cursor.encode(), notice)
    await server.wait(30)
    await server.start()
    again = await server.plan(["say", "y"])
    async with follower.connected() as w:
        await follower.read(w, follower.ended(again))
    assert len(follower.resets) == 1
    for each in (turn, again):
        await check_whole(server, follower, each)
