"""What becomes of connections: closed when they should be, and never in anyone's way.

Most of this is not what hypercorn 0.18 with quart-trio 0.12 does by itself; web/server.py and web/stream.py mend it.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
from planned import AGENT
from wire import BOUND_S, Wire, wire

from hermetic.client import Client
from hermetic.protocol.api import NewSession, NewTurn
from hermetic.supervisor import config as c
from hermetic.web import server as web_server

pytestmark = pytest.mark.xdist_group("stream_connections")

FLOOD = ["flood", 800, "x" * 16384]
"""12 MiB: more than the 4 MiB that a kernel keeps for a socket that nobody reads."""
EXIT_S = 30
"""From SIGTERM to the end of the process: drain_s (0.2) and CLOSE_S (2) on a quiet machine. Without the mend: never."""


@asynccontextmanager
async def server_here(folder: Path):
    """A server in this process, so that its constants can be made small."""
    (folder / "agents").mkdir()
    (folder / "agents" / "plan.py").write_text(AGENT)
    config = c.Config(
        server=c.Server(bind="127.0.0.1:0", data=str(folder / "data"), drain_s=0.2),
        stream=c.Stream(heartbeat_s=0.1, retry_ms=20),
        agents={"plan": c.Agent(target="plan:agent", python_path=[str(folder / "agents")])},
    )
    leave = trio.Event()
    async with trio.open_nursery() as nursery:
        yield await nursery.start(
            lambda task_status: web_server.serve_task(config, shutdown=leave.wait, task_status=task_status)
        )
        leave.set()


async def plan_here(url: str, steps: str) -> str:
    async with Client(url) as client:
        session = await client.create_session(NewSession(agent="plan"))
        return (await client.start_turn(session.session_id, NewTurn(message=steps))).turn_id


@asynccontextmanager
async def stalled(url: str, path: str):
    """A reader that asks for a stream and never reads: as little as possible fits into its buffer."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    with trio.socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await raw.connect((host, int(port)))
        await raw.send(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        yield raw


async def read_until(w: Wire, mark: bytes) -> None:
    while mark not in w.received:
        await w.chunk()


# --- the end of a connection ----------------------------------------------------------------------------------------


async def test_connection_close_closes(server):
    ended = await server.plan(["say", "x"])
    last = (await server.events(ended))[-1][0]
    for path, method, status in (
        ("/v1/health", "GET", 200),
        ("/v1/nothing", "GET", 404),
        ("/", "GET", 200),
        (f"/v1/turns/{ended}/events", "GET", 200),
        (f"/v1/turns/{ended}/events", "HEAD", 200),
        (f"/v1/turns/{ended}/events?after={last}", "GET", 204),
    ):
        async with wire(server.url) as w:
            await w.ask(path, method, "Connection: close")
            assert w.status == status
            if method == "GET" and status != 204:
                if w.header("content-length") is None:
                    await w.chunks()
                else:
                    await w.body()
            assert await w.at_end(), path


async def test_an_idle_connection_is_closed_after_its_time_but_an_open_stream_is_not_idle(tmp_path, monkeypatch):
    monkeypatch.setattr(web_server, "KEEP_ALIVE_S", 0.3)
    async with server_here(tmp_path) as url:
        async with wire(url) as idle:
            await idle.ask("/v1/health")
            await idle.body()
            assert await idle.at_end()
        turn = await plan_here(url, '[["say", "x"], ["wait"]]')
        async with wire(url) as streaming:
            await streaming.ask(f"/v1/turns/{turn}/events")
            for _ in range(15):  # heartbeats of 0.1 s: five times as long as an idle connection has
                await streaming.chunk()
            async with httpx.AsyncClient() as http:
                await http.post(f"{url}/v1/turns/{turn}/messages", json={"message": "go"})
            await streaming.chunks()
            assert streaming.received.endswith(b"0\r\n\r\n")
            assert await streaming.at_end(), "after a stream a connection is idle like any other"


async def test_a_stream_may_last_longer_than_quarts_timeout_of_responses(tmp_path, monkeypatch):
    made = web_server.make_app

    def impatient(*args, **kwargs):
        app = made(*args, **kwargs)
        app.config["RESPONSE_TIMEOUT"] = 0.3
        return app

    monkeypatch.setattr(web_server, "make_app", impatient)
    async with server_here(tmp_path) as url, wire(url) as w:
        turn = await plan_here(url, '[["wait"], ["say", "late"]]')
        await w.ask(f"/v1/turns/{turn}/events")
        for _ in range(15):
            await w.chunk()
        async with httpx.AsyncClient() as http:
            await http.post(f"{url}/v1/turns/{turn}/messages", json={"message": "go"})
        await w.chunks()
        assert b'"text":"late"' in w.received
        assert w.received.endswith(b"0\r\n\r\n")


# --- a reader that does not read ------------------------------------------------------------------------------------


async def test_a_stalled_reader_delays_neither_the_turn_nor_others_nor_the_exit(own_server):
    server = own_server
    turn = await server.plan(["wait"], FLOOD)
    path = f"/v1/turns/{turn}/events"
    async with stalled(server.url, path), stalled(server.url, path), wire(server.url) as live:
        await live.ask(path)
        await read_until(live, b"event: started\n")
        await server.say_word(turn)
        with trio.fail_after(BOUND_S):
            body = b"".join(await live.chunks())
        assert body.count(b"event: token\n") == FLOOD[1]
        assert await server.state(turn) == "done"
        async with wire(server.url) as late:
            await late.ask(path)
            assert b"".join(await late.chunks()).count(b"event: token\n") == FLOOD[1]
        assert (await server.call("GET", "/v1/health"))["status"] == "ok"
        server.process.terminate()
        assert await server.wait(EXIT_S) == 0


async def test_a_stalled_reader_of_a_running_turn_does_not_delay_the_exit_either(own_server):
    server = own_server
    turn = await server.plan(FLOOD, ["wait"])
    async with stalled(server.url, f"/v1/turns/{turn}/events"), wire(server.url) as live:
        await live.ask(f"/v1/turns/{turn}/events")
        tokens = 0
        while tokens < FLOOD[1]:
            tokens += (await live.chunk()).count(b"event: token\n")
        server.process.terminate()
        await live.chunks()
        assert re.search(rb"event: cancel\n.*\n.*\n\nevent: stream_end\n", live.received), "who reads is told the end"
        assert live.received.endswith(b"\r\n0\r\n\r\n"), "and that it is the end"
        assert await server.wait(EXIT_S) == 0


async def test_without_stalled_readers_the_exit_does_not_wait_for_them(own_server):
    server = own_server
    turn = await server.plan(["say", "x"])
    await server.events(turn)
    async with wire(server.url) as idle:
        await idle.ask("/v1/health")
        server.process.terminate()
        assert await server.wait(EXIT_S) == 0
    assert "left_with_stalled_readers" not in server.log.read_text()


async def test_the_reader_of_a_queued_turn_is_sent_to_the_next_server(own_server):
    """Its turn outlives this one. The stream is cut, not ended: after a clean end some clients stay away."""
    server = own_server
    session = await server.session(agent="plan")
    first = await server.plan(["wait"], session=session)
    await server.wait_state(first, "running")
    turn = await server.plan(["say", "here"], session=session, on_busy="queue")
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{turn}/events")
        await read_until(w, b"event: queued\n")
        await read_until(w, b":\n")
        server.process.terminate()
        with pytest.raises(AssertionError, match="closed"):
            await w.chunks()
    notice = re.search(rb"retry: (\d+)\nevent: draining\ndata: (.*)\nid: (.*)\n\n", bytes(w.received))
    assert notice, w.received
    assert 20 <= int(notice[1]) == json.loads(notice[2])["retry_ms"] <= 60
    assert w.received.count(b"event: draining\n") == 1
    assert await server.wait(EXIT_S) == 0
    await server.start()
    cursor = notice[3].decode()
    assert cursor.startswith(f"{turn}:")
    events = await server.events(turn, after=cursor)
    assert [data["text"] for _, name, data in events if name == "token"] == ["here"]
    assert events[0][0] == int(cursor.split(":")[1]) + 1


# --- readers that leave ---------------------------------------------------------------------------------------------


def fin(raw) -> None:
    raw.close()


def rst(raw) -> None:
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


def half_close(raw) -> None:
    raw.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("leave", [fin, rst, half_close])
async def test_a_reader_that_leaves_is_noticed_however_it_goes(server, leave):
    turn = await server.plan(["say", "x"], ["wait"], on_disconnect="cancel")
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{turn}/events")
        await read_until(w, b'"text":"x"')
        leave(w.stream.socket)
        await server.wait_state(turn, "cancelled")


async def test_a_reader_that_leaves_with_a_second_request_in_the_pipe_is_found_by_the_heartbeat(server):
    turn = await server.plan(["say", "x"], ["wait"], on_disconnect="cancel")
    async with wire(server.url) as w:
        await w.ask(f"/v1/turns/{turn}/events")
        await read_until(w, b'"text":"x"')
        await w.stream.send_all(f"GET /v1/health HTTP/1.1\r\nHost: {w.host}\r\n\r\n".encode())
        rst(w.stream.socket)
        await server.wait_state(turn, "cancelled")


async def test_a_stalled_reader_that_leaves_is_noticed_too(server):
    turn = await server.plan(FLOOD, ["wait"], on_disconnect="cancel")
    async with stalled(server.url, f"/v1/turns/{turn}/events") as raw:
        with trio.fail_after(BOUND_S):
            while (await server.call("GET", f"/v1/turns/{turn}"))["last_seq"] < FLOOD[1]:
                await trio.sleep(0.02)
        rst(raw)
        await server.wait_state(turn, "cancelled")


async def test_a_turn_is_cancelled_with_its_last_reader_and_not_before(server):
    turn = await server.plan(["say", "x"], ["wait"], ["say", "y"], ["wait"], on_disconnect="cancel")
    path = f"/v1/turns/{turn}/events"
    async with wire(server.url) as second:
        async with wire(server.url) as first:
            await first.ask(path)
            await second.ask(path)
            await read_until(first, b'"text":"x"')
            await read_until(second, b'"text":"x"')
        for _ in range(5):
            await second.chunk()  # heartbeats: time for the server to see that the first has gone
        await server.say_word(turn)
        await read_until(second, b'"text":"y"')
    await server.wait_state(turn, "cancelled")
