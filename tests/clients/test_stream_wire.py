"""The rules of docs/streams.md, on the bytes themselves."""

from __future__ import annotations

import json
import re

import pytest
import trio
from wire import wire

pytestmark = pytest.mark.xdist_group("stream_wire")

EVENT = re.compile(rb"(?:retry: \d+\n)?event: ([a-z_]+)\ndata: ([^\n]+)\nid: ([^\n]+)\n\n")
STEPS = [["say", "a\u2028\r\n\n\ufeff"], ["tool", "t"], ["say", "🦉"], *([["say", "more "]] * 50)]


def parsed(written: bytes) -> list[tuple[str, dict, str]]:
    """One write's events; AssertionError for anything that is not whole events."""
    found, at = [], 0
    while at < len(written):
        match = EVENT.match(written, at)
        assert match, written[at : at + 200]
        found.append((match[1].decode(), json.loads(match[2]), match[3].decode()))
        at = match.end()
    return found


async def stream_of(server, turn: str, query: str = "", *headers: str) -> list[tuple[str, dict, str]]:
    """The events of a stream that ends, without its heartbeats."""
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{turn}/events{query}", "GET", *headers)
        assert w.status == 200
        return [event for data in await w.chunks() if data != b":\n" for event in parsed(data)]


@pytest.fixture(scope="module")
def ended_turn(server) -> str:
    async def run() -> str:
        turn = await server.plan(*STEPS)
        await stream_of(server, turn)
        return turn

    return trio.run(run)


@pytest.fixture
async def live_turn(server):
    """A turn that has said a word and waits for one."""
    turn = await server.plan(["say", "one "], ["wait"], ["say", "two"])
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{turn}/events")
        seen = b""
        while b'"one "' not in seen:
            seen += await w.chunk()
    yield turn
    await server.call("POST", f"/v1/turns/{turn}/cancel")


# --- bytes ----------------------------------------------------------------------------------------------------------


async def test_whole_events_per_write_each_with_its_id_and_one_line_of_json(server):
    turn = await server.plan(*STEPS)
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{turn}/events")
        chunks = await w.chunks()
    body = b"".join(chunks)
    assert b"\r" not in body, "LF only"
    assert not body.startswith(b"\xef\xbb\xbf"), "no byte order mark"
    body.decode()
    events = [event for data in chunks if data != b":\n" for event in parsed(data)]
    assert [event_id for _, _, event_id in events] == [f"{turn}:{seq}" for seq in range(1, len(events) + 1)]
    assert all(data["event"] == name for name, data, _ in events)


async def test_one_terminal_event_then_stream_end_then_the_end_of_the_body(server):
    turn = await server.plan(["say", "x"])
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{turn}/events")
        events = [event for data in await w.chunks() if data != b":\n" for event in parsed(data)]
        names = [name for name, _, _ in events]
        assert names[-2:] == ["done", "stream_end"]
        assert sum(name in ("done", "apperror", "cancel") for name in names) == 1
        assert w.received.endswith(b"\r\n0\r\n\r\n"), "the end can be told from a cut"
        await w.ask("/v1/health")
        assert w.status == 200, "the connection can be used again"


@pytest.mark.parametrize("state", ["ended", "live"])
async def test_retry_is_said_once_and_inside_the_first_event(server, ended_turn, live_turn, state):
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{live_turn if state == 'live' else ended_turn}/events")
        while (first := await w.chunk()) == b":\n":
            pass
        assert first.startswith(b"retry: 20\nevent: ")
        rest = b"".join([await w.chunk() for _ in range(3)]) if state == "live" else b"".join(await w.chunks())
        assert (first + rest).count(b"retry: ") == 1


async def test_retry_waits_for_the_first_event_when_heartbeats_come_before_it(server, live_turn):
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{live_turn}/events?after=2")
        assert [await w.chunk() for _ in range(3)] == [b":\n"] * 3
        await server.say_word(live_turn)
        while (data := await w.chunk()) == b":\n":
            pass
        assert data.startswith(b"retry: 20\nevent: steer\n")


async def test_a_heartbeat_is_one_comment_line_and_nothing_else(server, live_turn):
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{live_turn}/events")
        parsed(await w.chunk())
        assert [await w.chunk() for _ in range(5)] == [b":\n"] * 5


@pytest.mark.parametrize("after", [0, 1, 2])
async def test_ping_is_an_event_for_those_who_ask_and_its_id_is_the_cursor(server, live_turn, after):
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{live_turn}/events?ping=1&after={after}")
        chunks = [await w.chunk() for _ in range(4)]
    ping = f":\nevent: ping\ndata: {{}}\nid: {live_turn}:2\n\n".encode()
    assert chunks[-3:] == [ping] * 3
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{live_turn}/events?ping=0&after=2")
        assert await w.chunk() == b":\n"


# --- HTTP -----------------------------------------------------------------------------------------------------------


async def test_headers_keep_every_cache_and_proxy_out_of_the_way(server, ended_turn):
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{ended_turn}/events", "GET", "Accept-Encoding: gzip, deflate, br, zstd")
        assert w.head.startswith(b"HTTP/1.1 200")
        assert w.header("content-type") == "text/event-stream; charset=utf-8"
        assert w.header("cache-control") == "no-store, no-transform"
        assert w.header("x-accel-buffering") == "no"
        assert w.header("transfer-encoding") == "chunked"
        assert w.header("content-length") is None
        assert w.header("content-encoding") is None, "a compressor holds events back"


async def test_who_has_seen_the_end_gets_204_without_a_body(server, ended_turn):
    last = (await stream_of(server, ended_turn))[-1][2]
    for query, header in (
        (f"?after={last}", "X: y"),
        ("", f"Last-Event-ID: {last}"),
        ("?after=0", f"Last-Event-ID: {last}"),
    ):
        async with wire(server.url) as w:
            await w.ask(f"/v1/turns/{ended_turn}/events{query}", "GET", header)
            assert w.status == 204
            assert (w.header("content-length"), w.header("transfer-encoding"), w.header("content-type")) == (None,) * 3
            assert w.header("cache-control") == "no-store"
            await w.ask("/v1/health")
            assert w.status == 200, "nothing of a body came in between"


async def test_head_is_answered_at_once_and_is_no_reader(server, live_turn):
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{live_turn}/events", "HEAD")
        assert (w.status, w.header("content-type")) == (200, "text/event-stream; charset=utf-8")
        assert w.header("content-length") is None, "nobody knows how long it will be"
        await w.ask("/v1/health")
        assert w.status == 200


async def test_a_head_that_leaves_cancels_nothing(server):
    turn = await server.plan(["wait"], ["say", "still here"], on_disconnect="cancel")
    await server.wait_state(turn, "running")
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{turn}/events", "HEAD", "Connection: close")
        assert await w.at_end()
    await server.say_word(turn)
    assert (await server.wait_state(turn, "done"))["state"] == "done"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_other_methods_are_problems(server, ended_turn, method):
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{ended_turn}/events", method, "Content-Length: 0")
        assert (w.status, w.header("content-type")) == (405, "application/problem+json")
        assert {"GET", "HEAD"} <= set((w.header("allow") or "").split(", "))
        problem = json.loads(await w.body())
    assert (problem["code"], problem["fault"]) == ("method_not_allowed", "client")


@pytest.mark.parametrize("path", ["/v1/turns/nobody/events", "/v1/turns/nobody/events?after=nobody:3&ping=1"])
async def test_an_unknown_turn_is_a_problem_and_no_stream(server, path):
    async with wire(server.url) as w:
        await w.ask(path, "GET", "Accept: text/event-stream")
        assert (w.status, w.header("content-type")) == (404, "application/problem+json")
        assert json.loads(await w.body())["code"] == "not_found"


# --- cursors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{turn}:5", "5"])
@pytest.mark.parametrize("where", ["after", "last_event_id", "header"])
async def test_a_cursor_is_taken_from_all_three_places(server, ended_turn, where, form):
    cursor = form.format(turn=ended_turn)
    whole = await stream_of(server, ended_turn)
    if where == "header":
        assert await stream_of(server, ended_turn, "", f"Last-Event-ID: {cursor}") == whole[5:]
    else:
        assert await stream_of(server, ended_turn, f"?{where}={cursor}") == whole[5:]


async def test_of_several_cursors_the_farthest_counts(server, ended_turn):
    """An EventSource keeps its URL, `?after=` and all, and says in the header where it has come to."""
    whole = await stream_of(server, ended_turn)
    assert await stream_of(server, ended_turn, "?after=3&last_event_id=7", "Last-Event-ID: 5") == whole[7:]
    assert await stream_of(server, ended_turn, "?after=0", f"Last-Event-ID: {ended_turn}:9") == whole[9:]
    assert await stream_of(server, ended_turn, "?after=4", "Last-Event-ID: nonsense") == whole[4:]
    assert await stream_of(server, ended_turn, "?after=other:99", "Last-Event-ID: 6") == whole[6:]
    assert await stream_of(server, ended_turn, "?after=", "Last-Event-ID: ") == whole


BAD = [
    "other:1",
    "{turn}:100000",
    "100000",
    "{turn}:-1",
    "{turn}:",
    "nonsense",
    "{turn}:1e2",
    "%D9%A3",
    "5%0A6",
    "9" * 40,
    "a:b:c",
]


@pytest.mark.parametrize("bad", BAD)
async def test_a_cursor_that_is_not_this_turns_resets_an_ended_turn(server, ended_turn, bad):
    whole = await stream_of(server, ended_turn)
    (name, reset, event_id), *rest = await stream_of(server, ended_turn, f"?after={bad.format(turn=ended_turn)}")
    assert (name, event_id) == ("reset", whole[-1][2])
    snapshot = reset["snapshot"]
    assert (snapshot["turn_id"], snapshot["state"], snapshot["seq"]) == (ended_turn, "done", len(whole))
    assert snapshot["text"] == "".join(data["text"] for name, data, _ in whole if name == "token")
    assert reset["reason"]
    assert rest == [], "the snapshot has all of it"


@pytest.mark.parametrize("bad", ["other:1", "100000", "nonsense"])
async def test_a_cursor_that_is_not_this_turns_resets_a_live_turn_which_then_goes_on(server, live_turn, bad):
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{live_turn}/events", "GET", f"Last-Event-ID: {bad}")
        first = await w.chunk()
        assert first.startswith(b"retry: 20\nevent: reset\n"), "the first real event, with its retry"
        [(_, reset, event_id)] = parsed(first)
        assert event_id == f"{live_turn}:{reset['snapshot']['seq']}" == f"{live_turn}:2"
        assert (reset["snapshot"]["text"], reset["snapshot"]["state"]) == ("one ", "running")
        await server.say_word(live_turn)
        rest = [event for data in await w.chunks() if data != b":\n" for event in parsed(data)]
    assert [event_id for _, _, event_id in rest] == [f"{live_turn}:{seq}" for seq in range(3, 3 + len(rest))]
    assert [data["text"] for name, data, _ in rest if name == "token"] == ["two"]
    assert rest[-1][0] == "stream_end"


async def test_who_asks_for_a_snapshot_draws_at_once_and_goes_on_from_its_header(server, live_turn, ended_turn):
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{live_turn}/events?after=snapshot")
        [(name, reset, event_id)] = parsed(await w.chunk())
        assert (name, reset["snapshot"]["text"], event_id) == ("reset", "one ", f"{live_turn}:2")
    whole = await stream_of(server, ended_turn)
    assert await stream_of(server, ended_turn, "?after=snapshot", "Last-Event-ID: 9") == whole[9:]


async def test_the_reader_of_a_reset_goes_on_from_its_id_without_another(server, ended_turn):
    [(_, _, event_id)] = await stream_of(server, ended_turn, "?after=other:1")
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{ended_turn}/events", "GET", f"Last-Event-ID: {event_id}")
        assert w.status == 204
