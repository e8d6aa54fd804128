"""The peer: sse-starlette on uvicorn with uvloop and httptools, a queue per reader, as its documentation shows it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import uvicorn
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from bench.gate import is_open
from bench.peers import common


async def main() -> None:
    options = common.options()
    readers: list[set[asyncio.Queue[ServerSentEvent]]] = [set() for _ in range(options.turns)]

    async def tick(turn: int) -> None:
        seq = 0
        while True:
            while not is_open(options.gate):
                await asyncio.sleep(common.GATE_S)
            due = common.first_due(options.rate)
            checked = time.monotonic()
            while True:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if time.monotonic() - checked > common.GATE_S:
                    if not is_open(options.gate):
                        break
                    checked = time.monotonic()
                due += 1 / options.rate
                seq += 1
                event = ServerSentEvent(common.data(), event="token", id=f"{turn:016x}:{seq}", sep="\n")
                for queue in readers[turn]:
                    queue.put_nowait(event)

    async def events(request: Request) -> EventSourceResponse:
        turn = int(request.path_params["turn"])

        async def pieces() -> AsyncIterator[ServerSentEvent]:
            queue: asyncio.Queue[ServerSentEvent] = asyncio.Queue()
            readers[turn].add(queue)
            try:
                while True:
                    yield await queue.get()
            finally:
                readers[turn].discard(queue)

        return EventSourceResponse(pieces(), sep="\n", ping=10)  # our heartbeat's period

    app = Starlette(routes=[Route("/{turn:int}/events", events)])
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, loop="uvloop", http="httptools"))
    tickers = [asyncio.create_task(tick(turn)) for turn in range(options.turns)]
    common.announce(listener.getsockname()[1])
    await server.serve(sockets=[listener])
    for ticker in tickers:
        ticker.cancel()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
