"""One contract for all clients: whoever reads a turn, however often the connection breaks, has what the journal has."""

from __future__ import annotations

import json

import pytest
import trio
from cutting_proxy import cutting_proxy
from readers import PATIENCE_S, READERS, STOP_AT_A_CLEAN_END, Said

pytestmark = pytest.mark.xdist_group("stream_clients")

OWL = "🦉"
PIECES = [
    "Grüße aus Köln ",
    "\u2028 and \u2029 and \x85 are line ends to some, ",
    "\r\n\n\r and these are in JSON only, ",
    "\n\nevent: done\nid: 7\ndata: {}\n\n",
    f"{OWL} 👩‍👩‍👧‍👦 é \ufeff \u0000 \ud7ff \ufffd ",
    ": a comment? ",
    " ",
    "long " * 40_000,
    "retry: 999999\n",
    *(f"{n} " for n in range(100)),
    "end",
]
STEPS = [["say", PIECES[0]], ["tool", "nothing"], *(["say", piece] for piece in PIECES[1:])]
CUTS = [
    b"\n\n",  # headers end with CRLF CRLF: this is the first event's end
    b'event: tool\ndata: {"event":',
    b"\nid: ",
    OWL.encode()[:2],
    b"\nda",
    0,
    40,
    b'"}\n',  # the data is whole, but its id is not there yet
    b'"90 "',
    100_000,
    b"event: stream_end\n",
]
"""Each cuts one connection of a reader that comes back: between events, in a field, in a character, in the headers."""


@pytest.fixture(params=READERS)
def client(request):
    return request.param


async def read(client: str, url: str) -> list[Said]:
    with trio.fail_after(PATIENCE_S):
        return await READERS[client](url)


async def journal(server, turn: str) -> list[Said]:
    """The truth, by the plainest of parsers."""
    body = b""
    host, port = server.url.removeprefix("http://").split(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        # HTTP/1.0 has no chunks
        await stream.send_all(f"GET /v1/turns/{turn}/events HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        async for data in stream:
            body += data
    *blocks, rest = body.partition(b"\r\n\r\n")[2].split(b"\n\n")
    assert rest == b""
    said = []
    for block in blocks:
        fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if line != b":")
        said.append(Said(fields[b"id"].decode(), fields[b"event"].decode(), json.loads(fields[b"data"])))
    assert [said.id for said in said] == [f"{turn}:{seq}" for seq in range(1, len(said) + 1)]
    return said


def text(events: list[Said]) -> str:
    return "".join(event.data["text"] for event in events if event.data["event"] == "token")


def check_same(got: list[Said], truth: list[Said]) -> None:
    assert len(got) == len(truth), [event.name for event in got]
    for ours, theirs in zip(got, truth, strict=True):
        assert ours.data == theirs.data
        assert (ours.id, ours.name) in ((theirs.id, theirs.name), (None, None))


@pytest.fixture(scope="module")
def ended_turn(server) -> str:
    async def run() -> str:
        turn = await server.plan(*STEPS)
        assert text(await journal(server, turn)) == "".join(PIECES)
        return turn

    return trio.run(run)


async def test_every_event_comes_once_in_order_and_unchanged(server, client):
    turn = await server.plan(*STEPS)
    async with cutting_proxy(server.url) as proxy:
        got = await read(client, f"{proxy.url}/v1/turns/{turn}/events")
        check_same(got, await journal(server, turn))
        assert text(got) == "".join(PIECES)
        asked = [request for request in proxy.requests if request]  # a browser connects in advance
        assert len(asked) == 1 or b"HTTP/1.1 204" in b"".join(proxy.answers), "it knows that this is the end"
        assert len(asked) <= (1 if client in STOP_AT_A_CLEAN_END else 2), "and does not ask again and again"


async def test_a_heartbeat_is_no_event(server, client):
    turn = await server.plan(["say", "before "], ["wait"], ["say", "after"])
    async with cutting_proxy(server.url) as proxy, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def word() -> None:
            await proxy.wait_answered(b'"before "')
            await proxy.wait_answered(b"\r\n:\n\r\n", times=3)
            await server.say_word(turn)

        got = await read(client, f"{proxy.url}/v1/turns/{turn}/events")
        check_same(got, await journal(server, turn))
        assert text(got) == "before after"


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_cuts_anywhere_cost_no_event_and_repeat_none(server, client, ended_turn, reset):
    truth = await journal(server, ended_turn)
    # A head that ends in a FIN is whole to Chromium, over plain HTTP: a type that is cut off ends an EventSource for good.
    cuts = [cut for cut in CUTS if not (client == "chromium" and cut == 40)]
    async with cutting_proxy(server.url, cuts, reset=reset) as proxy:
        got = await read(client, f"{proxy.url}/v1/turns/{ended_turn}/events")
        check_same(got, truth)
        assert len(proxy.requests) > len(cuts), "every cut was met"


async def test_cuts_while_the_agent_speaks_cost_nothing_either(server, client):
    steps = [step for n in range(12) for step in (["say", f"{n}{OWL} "], ["sleep", 0.02])]
    turn = await server.plan(*steps)
    cuts = [b'"text":"1', OWL.encode()[:3], 700, b"\nid: ", b'"text":"7', b"\n\n"]
    async with cutting_proxy(server.url, cuts) as proxy:
        got = await read(client, f"{proxy.url}/v1/turns/{turn}/events")
        check_same(got, await journal(server, turn))
        assert text(got) == "".join(f"{n}{OWL} " for n in range(12))


async def test_a_cut_between_the_last_event_and_the_end_of_the_body_is_the_end_too(server, client, ended_turn):
    """The one moment in which a reader has all and does not know it: 204 tells."""
    truth = await journal(server, ended_turn)
    end = f"id: {truth[-1].id}\n\n".encode()
    async with cutting_proxy(server.url, [end]) as proxy:
        got = await read(client, f"{proxy.url}/v1/turns/{ended_turn}/events")
        check_same(got, truth)
        asked = [n for n, request in enumerate(proxy.requests) if request]  # a browser connects in advance
        assert len(asked) <= 2
        if len(asked) == 2:
            assert proxy.answers[asked[1]].startswith(b"HTTP/1.1 204")


async def test_a_cut_between_the_two_line_ends_of_an_event_costs_one_client_the_event(server, client, ended_turn):
    """A known limit of docs/streams.md: fetch-event-source moves its cursor before it gives the event out."""
    truth = await journal(server, ended_turn)
    async with cutting_proxy(server.url, [f"id: {truth[4].id}\n".encode()]) as proxy:
        got = await read(client, f"{proxy.url}/v1/turns/{ended_turn}/events")
        check_same(got, truth[:4] + truth[5:] if client == "fetch-event-source" else truth)
