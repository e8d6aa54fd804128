"""The client's event stream against a server of bare sockets that cuts, stalls, repeats and lies."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from hermetic import client as client_module
from hermetic.client import BadAnswer, Client, EventDecoder, ServerError, Unreachable, backoff_s
from hermetic.protocol.events import (
    Done,
    DrainingNotice,
    Reset,
    Snapshot,
    StreamEnd,
    Token,
    Usage,
    encode,
    event_name,
)
from hermetic.protocol.sse import HEARTBEAT, Cursor, sse_frame

TURN = "turn1"
WORDS = ["Grüße ", "aus ", "Köln ", "🦉 ", "“quoted”\n", "\ttail"]
TRUTH = "".join(WORDS)
EVENTS = [
    *(Token(text=word) for word in WORDS),
    Done(turn_id=TURN, session={"title": "ü" * 2000}, usage=Usage()),
    StreamEnd(turn_id=TURN, state="done"),
]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

Script = Callable[["Connection"], Awaitable[None]]


def frame(seq: int, event=None, retry_ms: int | None = None, turn: str = TURN) -> bytes:
    event = event or EVENTS[seq - 1]
    return sse_frame(f"{turn}:{seq}", event_name(event), encode(event), retry_ms)


def frames(after: int = 0, upto: int = len(EVENTS)) -> bytes:
    return b"".join(frame(seq) for seq in range(after + 1, upto + 1))


class Connection:
    """One accepted connection: the request that came, and raw or chunked bytes to answer with."""

    def __init__(self, stream: trio.SocketStream, head: str):
        self.stream = stream
        self.head = head
        self.after = int(head.split("after=")[1].split()[0]) if "after=" in head else None

    async def raw(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def last_chunk(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def answer(self, status: str, body: bytes = b"", *headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
        await self.raw("\r\n".join(lines).encode() + body)

    async def until_it_leaves(self) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while await self.stream.receive_some(4096):
                pass


class Server:
    """Serves its scripts one after the other, one per connection; afterwards it hangs up on everyone."""

    def __init__(self, *scripts: Script):
        self.scripts = list(scripts)
        self.seen: list[Connection] = []
        self.open = 0
        self.idle = trio.Event()
        self.url = ""
        self.listening = trio.CancelScope()

    async def handle(self, stream: trio.SocketStream) -> None:
        self.open += 1
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := await stream.receive_some(65536)):
                    return
                head += data
            connection = Connection(stream, head.decode())
            self.seen.append(connection)
            if self.scripts:
                with contextlib.suppress(trio.BrokenResourceError):
                    await self.scripts.pop(0)(connection)
        finally:
            with trio.CancelScope(shield=True):
                await stream.aclose()
            self.open -= 1
            if not self.open:
                self.idle.set()


@contextlib.asynccontextmanager
async def serving(*scripts: Script) -> AsyncIterator[Server]:
    server = Server(*scripts)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"

        async def listen() -> None:
            with server.listening:
                await trio.serve_listeners(server.handle, listeners, handler_nursery=nursery)

        nursery.start_soon(listen)
        with trio.fail_after(20):
            yield server
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(client_module, "BACKOFF_S_MAX", 0.02)
    monkeypatch.setattr(client_module, "BACKOFF_S_MIN", 0.001)


async def read(server: Server, after: int = 0, heartbeat_s: float = 5.0, **options) -> list:
    got = []
    async with Client(server.url, heartbeat_s=heartbeat_s) as client, client.events(TURN, after, **options) as stream:
        async for item in stream:
            got.append(item)
    return got


def text(got: list) -> str:
    return "".join(event.text for _, event in got if isinstance(event, Token))


def assert_whole(got: list) -> None:
    assert text(got) == TRUTH
    assert [cursor for cursor, _ in got] == [Cursor(TURN, seq) for seq in range(1, len(EVENTS) + 1)]
    assert [event for _, event in got] == EVENTS


async def rest(c: Connection) -> None:
    await c.raw(HEAD)
    await c.chunk(frames(c.after))
    await c.last_chunk()


# --- whole streams ------------------------------------------------------------------------------------------------


async def test_a_stream_that_comes_whole_is_given_whole_and_ends_after_stream_end():
    async with serving(rest) as server:
        assert_whole(await read(server))
        assert len(server.seen) == 1


async def test_a_server_that_keeps_the_connection_open_after_stream_end_does_not_hold_the_reader():
    async def script(c):
        await c.raw(HEAD)
        await c.chunk(frames())
        await c.until_it_leaves()

    async with serving(script) as server:
        assert_whole(await read(server))
        await server.idle.wait()


async def test_bytes_that_come_one_at_a_time_give_the_same_events():
    async def script(c):
        await c.raw(HEAD)
        for byte in frames():
            await c.chunk(bytes([byte]))
        await c.last_chunk()

    async with serving(script) as server:
        assert_whole(await read(server))


async def test_heartbeats_between_and_inside_events_are_not_events():
    async def script(c):
        await c.raw(HEAD)
        for seq in range(1, len(EVENTS) + 1):
            await c.chunk(HEARTBEAT + frame(seq).replace(b"\ndata:", b"\n:\ndata:") + HEARTBEAT * 2)
        await c.last_chunk()

    async with serving(script) as server:
        assert_whole(await read(server))


async def test_reading_after_a_cursor_gives_only_what_comes_after_it():
    async with serving(rest) as server:
        got = await read(server, after=4)
        assert text(got) == "".join(WORDS[4:])


async def test_a_turn_that_has_ended_and_was_seen_gives_nothing():
    async def script(c):
        await c.raw(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with serving(script) as server:
        assert await read(server, after=len(EVENTS)) == []


# --- broken streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(1, len(frames(0, 5)), 7))
async def test_a_stream_cut_at_any_byte_goes_on_without_a_gap_or_a_double(cut):
    async def script(c):
        await c.raw(HEAD)
        await c.chunk(frames(0, 5)[:cut])  # no last chunk: the socket just closes

    async with serving(script, rest) as server:
        assert_whole(await read(server))
        assert server.seen[1].after == frames(0, 5)[:cut].count(b"\n\n")


async def test_a_cut_in_the_middle_of_a_character_goes_on_without_a_broken_character():
    data = frames(0, 4)
    inside_the_owl = data.index("🦉".encode()) + 2

    async def script(c):
        await c.raw(HEAD)
        await c.chunk(data[:inside_the_owl])

    async with serving(script, rest) as server:
        assert_whole(await read(server))


async def test_a_clean_end_before_the_turns_end_is_a_cut_too():
    async def script(c):
        await c.raw(HEAD)
        await c.chunk(frames(0, 2) + frame(3)[:-1])
        await c.last_chunk()

    async with serving(script, rest) as server:
        assert_whole(await read(server))
        assert server.seen[1].after == 2


async def test_a_server_that_repeats_itself_on_reconnect_is_not_heard_twice():
    async def first(c):
        await c.raw(HEAD)
        await c.chunk(frames(0, 4))

    async def from_the_start(c):
        await c.raw(HEAD)
        await c.chunk(frames(0))
        await c.last_chunk()

    async with serving(first, from_the_start) as server:
        assert_whole(await read(server))


async def test_a_cut_between_the_terminal_event_and_stream_end_still_gives_stream_end_once():
    async def script(c):
        await c.raw(HEAD)
        await c.chunk(frames(0, len(EVENTS) - 1))

    async with serving(script, rest) as server:
        assert_whole(await read(server))


async def test_a_silent_stream_is_taken_for_broken_after_three_heartbeats():
    async def silent(c):
        await c.raw(HEAD)
        await c.chunk(frames(0, 3))
        await c.until_it_leaves()

    async with serving(silent, rest) as server:
        breaks = []
        got = await read(server, heartbeat_s=0.05, on_break=lambda why, pause_s: breaks.append(why))
        assert_whole(got)
        assert len(breaks) == 1


async def test_a_stream_with_heartbeats_alone_is_not_taken_for_broken():
    async def quiet(c):
        await c.raw(HEAD)
        for _ in range(20):
            await c.chunk(HEARTBEAT)
            await trio.sleep(0.05)
        await c.chunk(frames())
        await c.last_chunk()

    async with serving(quiet) as server:
        assert_whole(await read(server, heartbeat_s=0.15))
        assert len(server.seen) == 1


async def test_the_pause_before_a_reconnect_is_the_one_the_server_asked_for(monkeypatch):
    monkeypatch.setattr(client_module, "BACKOFF_S_MAX", 15.0)

    async def first(c):
        await c.raw(HEAD)
        await c.chunk(frame(1, retry_ms=120))

    async with serving(first, rest) as server:
        pauses = []
        assert_whole(await read(server, on_break=lambda why, pause_s: pauses.append(pause_s)))
        assert len(pauses) == 1 and 0.06 <= pauses[0] <= 0.12


async def test_503_on_reconnect_is_waited_out_for_as_long_as_retry_after_says():
    async def first(c):
        await c.raw(HEAD)
        await c.chunk(frames(0, 2))

    async def busy(c):
        await c.answer("503 Service Unavailable", b"later", "Retry-After: 1")

    async with serving(first, busy, rest) as server:
        pauses = []
        assert_whole(await read(server, on_break=lambda why, pause_s: pauses.append(pause_s)))
        assert pauses[0] < 1 and pauses[1] == 1.0


async def test_a_server_that_is_gone_is_given_up_after_give_up_s_with_its_address_in_the_error():
    async def last_words(c):
        server.listening.cancel()
        await c.raw(HEAD)
        await c.chunk(frames(0, 2))

    async with serving(last_words) as server:
        got = []
        async with Client(server.url, heartbeat_s=1) as client:
            with pytest.raises(Unreachable, match="No server answers") as caught:
                async for item in client.events(TURN, give_up_s=0.3):
                    got.append(item)
        assert text(got) == "".join(WORDS[:2])
        assert server.url in str(caught.value)


async def test_a_server_that_hangs_up_on_every_reconnect_is_given_up_too():
    async with serving() as server:
        with pytest.raises(Unreachable, match="broke"):
            await read(server, give_up_s=0.3)
        assert len(server.seen) > 2


async def test_a_refusal_that_will_not_pass_is_raised_at_once_with_the_servers_words():
    problem = (
        b'{"type":"t","title":"Not found","status":404,"detail":"No turn turn1.","code":"not_found",'
        b'"fault":"client","hint":"Check the identifier."}'
    )

    async def script(c):
        await c.answer("404 Not Found", problem, "Content-Type: application/problem+json")

    async with serving(script) as server:
        with pytest.raises(ServerError, match=r"No turn turn1\.") as caught:
            await read(server)
        assert caught.value.problem.code == "not_found"
        assert caught.value.hint == "Check the identifier."
        assert len(server.seen) == 1


# --- reset, draining, what must not be believed -------------------------------------------------------------------


async def test_a_reset_is_handed_out_and_the_reader_goes_on_after_its_snapshot():
    snapshot = Snapshot(turn_id=TURN, state="running", seq=4, text="".join(WORDS[:4]))
    reset = Reset(reason="unknown cursor", snapshot=snapshot)

    async def script(c):
        assert c.after == 99
        await c.raw(HEAD)
        await c.chunk(frame(4, reset))
        await c.chunk(frame(5))  # and cut: the reconnect must name 5, not 99

    async with serving(script, rest) as server:
        got = await read(server, after=99)
        assert got[0] == (Cursor(TURN, 4), reset)
        assert snapshot.text + text(got) == TRUTH
        assert server.seen[1].after == 5


async def test_a_draining_notice_is_handed_out_and_the_reader_comes_back():
    async def script(c):
        await c.raw(HEAD)
        await c.chunk(frames(0, 2) + frame(2, DrainingNotice(retry_ms=5)))
        await c.last_chunk()

    async with serving(script, rest) as server:
        got = await read(server)
        assert got[2] == (Cursor(TURN, 2), DrainingNotice(retry_ms=5))
        del got[2]
        assert_whole(got)


async def test_a_hole_is_asked_for_once_more_and_then_refused():
    async def hole(c):
        await c.raw(HEAD)
        await c.chunk((frames(0, 2) if c.after == 0 else b"") + frames(3))
        await c.last_chunk()

    async with serving(hole, rest) as server:
        assert_whole(await read(server))
    async with serving(hole, hole) as server:
        with pytest.raises(BadAnswer, match="left out"):
            await read(server)


async def test_an_event_of_a_newer_server_is_passed_over_and_still_counted():
    async def script(c):
        await c.raw(HEAD)
        await c.chunk(frames(0, 1) + sse_frame(f"{TURN}:2", "hologram", b'{"event":"hologram"}'))
        await c.chunk(frame(3))

    async with serving(script, rest) as server:
        got = await read(server)
        assert [cursor.seq for cursor, _ in got] == [1, 3, 4, 5, 6, 7, 8]
        assert server.seen[1].after == 3


@pytest.mark.parametrize(
    "data",
    [
        frame(1, turn="another"),
        b"event: token\ndata: {}\n\n",
        b'id: turn1:1\nevent: token\ndata: {"event":"token","text":"\xff"}\n\n',
        b'id: turn1:1\nevent: token\ndata: {"event":"token","te\n\n',
    ],
    ids=["another turn's", "without an id", "not UTF-8", "half a JSON"],
)
async def test_an_event_that_hermetic_would_not_send_is_refused(data):
    async def script(c):
        await c.raw(HEAD)
        await c.chunk(data)
        await c.until_it_leaves()

    async with serving(script) as server:
        with pytest.raises(BadAnswer):
            await read(server)
        await server.idle.wait()


async def test_a_page_in_place_of_the_stream_is_refused():
    async def script(c):
        await c.answer("200 OK", b"<html>hello", "Content-Type: text/html")

    async with serving(script) as server:
        with pytest.raises(BadAnswer, match="event stream"):
            await read(server)


async def test_an_event_over_the_limit_is_refused_before_it_is_whole(monkeypatch):
    monkeypatch.setattr(client_module, "EVENT_BYTES_MAX", 1000)

    async def script(c):
        await c.raw(HEAD + b"ffffff\r\nid: turn1:1\ndata: ")
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await c.raw(b"x" * 100)

    async with serving(script) as server:
        with pytest.raises(BadAnswer, match="1000"):
            await read(server)
        await server.idle.wait()


# --- leaving ------------------------------------------------------------------------------------------------------


async def endless(c: Connection) -> None:
    await c.raw(HEAD)
    await c.chunk(frames(0, 2))
    await c.until_it_leaves()


async def test_a_cancelled_reader_leaves_no_connection():
    async with serving(endless) as server, Client(server.url, heartbeat_s=5) as client:
        with trio.CancelScope() as scope:
            async for cursor, _ in client.events(TURN):
                if cursor.seq == 2:
                    scope.cancel()
        await server.idle.wait()
        assert scope.cancelled_caught


async def test_a_reader_that_stops_in_the_middle_leaves_no_connection():
    async with serving(endless) as server, Client(server.url, heartbeat_s=5) as client:
        async with client.events(TURN) as stream:
            async for _ in stream:
                break
        await server.idle.wait()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_many_streams_of_one_client_run_at_the_same_time():
    count = 130  # over the HTTP library's own default of 100 connections
    async with serving(*[endless] * count) as server, Client(server.url, heartbeat_s=5) as client:
        started = []

        async def one() -> None:
            async for cursor, _ in client.events(TURN):
                if cursor.seq == 2:
                    started.append(cursor)
                    if len(started) == count:
                        nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(one)
        assert len(started) == count
        await server.idle.wait()


# --- the decoder and the pause, without sockets -------------------------------------------------------------------


@given(st.lists(st.text(), min_size=1, max_size=5), st.data())
def test_any_split_of_any_stream_decodes_to_the_same_events(texts, data):
    whole = b"".join(frame(seq, Token(text=t)) + HEARTBEAT for seq, t in enumerate(texts, 1))
    if data.draw(st.booleans(), label="CRLF"):
        whole = whole.replace(b"\n", b"\r\n")
    decoder, got, at = EventDecoder(), [], 0
    while at < len(whole):
        step = data.draw(st.integers(1, 40))
        got += decoder.feed(whole[at : at + step])
        at += step
    assert got == [(f"{TURN}:{seq}", "token", encode(Token(text=t))) for seq, t in enumerate(texts, 1)]


@given(st.binary())
def test_any_bytes_decode_or_are_refused(data):
    EventDecoder().feed(data)


def test_the_pause_doubles_is_jittered_and_bounded(monkeypatch):
    monkeypatch.undo()
    assert [backoff_s(n, 1.0, lambda low, high: high) for n in (0, 1, 2, 3, 4, 99)] == [1, 2, 4, 8, 15, 15]
    assert backoff_s(0, 1.0, lambda low, high: low) == 0.5
    assert backoff_s(0, 0.0, lambda low, high: low) == 0.05
