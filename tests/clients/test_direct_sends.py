"""Direct sends reach under hypercorn (web/direct.py). If a new version has changed what they rely on, this says so."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager

import h11
import httpx
import pytest
import trio
from test_stream_connections import FLOOD, plan_here, read_until, server_here, stalled
from wire import BOUND_S, Wire, wire

from hermetic.web import direct as web_direct
from hermetic.web import server as web_server
from hermetic.web.connection import Connection
from hermetic.web.direct import Direct, chunk

pytestmark = pytest.mark.xdist_group("stream_connections")

IDS = re.compile(rb"\nid: \w+:(\d+)\n\n")


@pytest.fixture
def sends(monkeypatch):
    """Of each direct send: the socket took all of it."""
    said: list[bool] = []
    send = Direct.send

    def counted(self, data):
        taken = send(self, data)
        said.append(taken and not self.clogged)
        return taken

    monkeypatch.setattr(Direct, "send", counted)
    return said


async def say_word(url: str, turn: str) -> None:
    async with httpx.AsyncClient() as http:
        (await http.post(f"{url}/v1/turns/{turn}/messages", json={"message": "go"})).raise_for_status()


def test_a_chunk_is_what_h11_would_make_of_it():
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    connection.next_event()
    connection.send(h11.Response(status_code=200, headers=[("Transfer-Encoding", "chunked")]))
    for data in (b"x", b"event: token\n\n" * 1000):
        assert chunk(data) == chunk(bytes(data)) == connection.send(h11.Data(data=data))


async def test_who_has_caught_up_is_sent_to_directly(tmp_path, sends):
    """Fails when hypercorn has become another: then every event takes the long way, at ten times the cost."""
    async with server_here(tmp_path) as url, wire(url) as w:
        turn = await plan_here(url, '[["say", "a"], ["wait"], ["say", "b"], ["sleep", 0.2], ["say", "c"]]')
        await w.ask(f"/v1/turns/{turn}/events")
        await parked(w)
        sends.clear()
        await say_word(url, turn)
        await w.chunks()
        assert sends and all(sends)
        assert IDS.findall(w.received) == [b"%d" % (n + 1) for n in range(len(IDS.findall(w.received)))]
        assert w.received.endswith(b"\r\n0\r\n\r\n")


async def test_a_client_of_http_1_0_gets_no_chunks(tmp_path, sends):
    async with server_here(tmp_path) as url:
        turn = await plan_here(url, '[["say", "a"], ["wait"], ["say", "b"]]')
        host, _, port = url.removeprefix("http://").rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(f"GET /v1/turns/{turn}/events HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n".encode())
            received = bytearray()
            async for data in stream:
                received += data
                if received.endswith(b":\n") and b'"text":"a"' in received and not sends:
                    sends.append(True)
                    await say_word(url, turn)
        assert sends == [True], "none of them was direct"
        assert b"chunked" not in received
        assert re.search(rb'"text":"b"\}\nid: .*\n\n', received)


async def parked(w: Wire) -> None:
    """Until the turn has begun to speak, its reader has it and waits."""
    await read_until(w, b'"text":"a"')
    while await w.chunk() != b":\n":
        pass


@asynccontextmanager
async def reads_late(url: str, turn: str):
    async with stalled(url, f"/v1/turns/{turn}/events") as raw:
        w = Wire(trio.SocketStream(raw), url.removeprefix("http://"))
        await w.read_head()
        yield w


async def test_what_a_full_socket_did_not_take_comes_in_order_when_it_is_read(tmp_path, sends):
    async with server_here(tmp_path) as url:
        turn = await plan_here(url, f'[["say", "a"], ["wait"], ["flood", {FLOOD[1]}, "{FLOOD[2][:2000]}"], ["wait"]]')
        async with wire(url) as live, reads_late(url, turn) as slow:
            await live.ask(f"/v1/turns/{turn}/events")
            await parked(live)
            await parked(slow)
            sends.clear()
            await say_word(url, turn)
            with trio.fail_after(BOUND_S):
                while live.received.count(b"event: token\n") < FLOOD[1] + 1:
                    await live.chunk()
                while slow.received.count(b"event: token\n") < FLOOD[1] + 1:
                    await slow.chunk()
            assert False in sends, "a socket was full"
            await say_word(url, turn)
            await live.chunks()
            await slow.chunks()
        for w in live, slow:
            seqs = [int(seq) for seq in IDS.findall(w.received)]
            assert seqs == list(range(1, len(seqs) + 1))
        assert IDS.findall(live.received) == IDS.findall(slow.received)


@pytest.mark.parametrize("way", ["direct", "plain"])
async def test_a_reader_that_stalls_is_cut_and_its_cursor_brings_the_rest(tmp_path, monkeypatch, way):
    """Without the bound of connection.py its task, and the 64 KiB that it holds, would stay for as long as it likes."""
    if way == "plain":
        monkeypatch.setattr("hermetic.web.stream.direct", lambda scope: None)
    there: list[set[Connection]] = []

    class Seen(Connection):
        def __init__(self, app, config, context, stall_s, others, stream):
            there.append(others)
            super().__init__(app, config, context, 0.5, others, stream)

    monkeypatch.setattr(web_server, "Connection", Seen)
    async with server_here(tmp_path) as url:
        turn = await plan_here(url, f'[["say", "a"], ["wait"], ["flood", {FLOOD[1]}, "{FLOOD[2]}"], ["wait"]]')
        async with reads_late(url, turn) as slow:
            await parked(slow)
            await say_word(url, turn)
            with trio.fail_after(BOUND_S):
                while there[0]:
                    await trio.sleep(0.02)
            with pytest.raises((trio.BrokenResourceError, AssertionError)):
                await slow.chunks()
        last = int(IDS.findall(slow.received)[-1])
        async with wire(url) as w:
            await w.ask(f"/v1/turns/{turn}/events?after={last}")
            while w.received.count(b"event: token\n") < FLOOD[1] + 1 - slow.received.count(b"event: token\n"):
                await w.chunk()
            assert int(IDS.findall(w.received)[0]) == last + 1
            await say_word(url, turn)
            await w.chunks()


async def test_a_connection_that_its_client_has_closed_is_gone_at_once(tmp_path, monkeypatch):
    """Not after KEEP_ALIVE_S, as with hypercorn alone: 10,000 clients that come and go would leave as many behind."""
    there: list[set[Connection]] = []

    class Seen(Connection):
        def __init__(self, app, config, context, stall_s, others, stream):
            there.append(others)
            super().__init__(app, config, context, stall_s, others, stream)

    monkeypatch.setattr(web_server, "Connection", Seen)
    async with server_here(tmp_path) as url:
        turn = await plan_here(url, '[["say", "a"]]')
        for path in ("/v1/health", f"/v1/turns/{turn}/events", "/v1/nothing"):
            async with wire(url) as w:
                await w.ask(path)
                await (w.body() if w.header("content-length") else w.chunks())
        async with wire(url):
            pass  # never asked
        with trio.fail_after(web_server.KEEP_ALIVE_S / 2):
            while there[0]:
                await trio.sleep(0.01)


def test_what_is_not_a_plain_connection_of_ours_is_not_sent_to_directly():
    assert web_direct.direct({"type": "http"}) is None
    assert web_direct.direct({"type": "http", "state": {"hermetic.connection": object()}}) is None
