"""A TCP proxy that cuts connections where it is told to, and remembers what went through it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from contextlib import asynccontextmanager, suppress

import trio

BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


class Proxy:
    """`cuts`: for each connection in turn, after which bytes of the answer it is cut: a number, or the end of a
    pattern's first appearance. Later connections are left alone. `reset`: cut with RST, which also takes from the
    client what it has not read; else with FIN."""

    def __init__(self, target: str, cuts: Sequence[int | bytes] = (), *, reset: bool = False):
        self.url = ""
        self.requests: list[bytes] = []
        """What each connection has asked, from the client's first byte."""
        self.answers: list[bytearray] = []
        """What each connection was given."""
        self._target = target.removeprefix("http://").split(":")
        self._cuts = list(cuts)
        self._reset = reset
        self.news = trio.Event()

    async def wait_answered(self, pattern: bytes, times: int = 1) -> None:
        """Until `pattern` has gone out `times` times on one connection."""
        while not any(answer.count(pattern) >= times for answer in self.answers):
            await self.news.wait()

    async def _serve(self, client: trio.SocketStream) -> None:
        number = len(self.requests)
        self.requests.append(b"")
        self.answers.append(bytearray())
        cut = self._cuts[number] if number < len(self._cuts) else None
        try:
            server = await trio.open_tcp_stream(self._target[0], int(self._target[1]))
        except OSError:
            await trio.aclose_forcefully(client)
            return
        async with server, client, trio.open_nursery() as nursery:

            async def upstream() -> None:
                with suppress(*BROKEN):
                    async for data in client:
                        self.requests[number] += data
                        await server.send_all(data)
                nursery.cancel_scope.cancel()  # the client has gone

            nursery.start_soon(upstream)
            with suppress(*BROKEN):
                async for data in server:
                    whole = self.answers[number] + data
                    end = _cut_at(whole, cut)
                    await client.send_all(whole[len(self.answers[number]) : end])
                    self.answers[number] = whole[:end]
                    self.news.set()
                    self.news = trio.Event()
                    if end is not None:
                        break
            if self._reset and cut is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            nursery.cancel_scope.cancel()


def _cut_at(whole: bytearray, cut: int | bytes | None) -> int | None:
    if isinstance(cut, bytes):
        found = whole.find(cut)
        return None if found < 0 else found + len(cut)
    return cut if cut is not None and len(whole) >= cut else None


@asynccontextmanager
async def cutting_proxy(target: str, cuts: Sequence[int | bytes] = (), *, reset: bool = False):
    proxy = Proxy(target, cuts, reset=reset)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, proxy._serve, [listener])
        proxy.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        yield proxy
        nursery.cancel_scope.cancel()
