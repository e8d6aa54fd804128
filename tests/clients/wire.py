"""HTTP/1.1 by hand: what really went over the socket, write by write."""

from __future__ import annotations

from contextlib import asynccontextmanager

import trio

BOUND_S = 60
"""For anything that is to happen; only a hang takes so long."""


class Wire:
    """One connection. Chunks are what the server wrote: hypercorn makes one of each."""

    def __init__(self, stream: trio.SocketStream, host: str):
        self.stream = stream
        self.host = host
        self.received = bytearray()
        """All of it, for assertions on bytes."""
        self.head = b""
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self._rest = bytearray()

    async def ask(self, path: str, method: str = "GET", *headers: str, body: bytes = b"") -> None:
        """Sends a request and reads the answer's head."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}", *headers, "", ""]
        await self.stream.send_all("\r\n".join(lines).encode() + body)
        await self.read_head()

    async def read_head(self) -> None:
        self.head = await self._until(b"\r\n\r\n")
        first, *lines = self.head.decode().removesuffix("\r\n\r\n").split("\r\n")
        self.status = int(first.split()[1])
        self.headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} more than once"
        return values[0] if values else None

    async def chunk(self) -> bytes:
        """The next chunk; empty: the last one."""
        size = int((await self._until(b"\r\n")).split(b";")[0], 16)
        data = await self._exactly(size + 2)
        assert data.endswith(b"\r\n")
        return data[:-2]

    async def chunks(self) -> list[bytes]:
        """All up to the last one, which is not among them."""
        found = []
        while data := await self.chunk():
            found.append(data)
        return found

    async def body(self) -> bytes:
        """Of an answer with a length."""
        return await self._exactly(int(self.header("content-length") or "0"))

    async def at_end(self) -> bool:
        """The server has closed, and said nothing more. Waits for it."""
        return not self._rest and not await self._more()

    async def _more(self) -> bytes:
        with trio.fail_after(BOUND_S):
            data = bytes(await self.stream.receive_some(65536))
        self.received += data
        return data

    async def _until(self, mark: bytes) -> bytes:
        while mark not in self._rest:
            data = await self._more()
            assert data, f"closed before {mark!r}: {self.received[-300:]!r}"
            self._rest += data
        return self._take(self._rest.index(mark) + len(mark))

    async def _exactly(self, size: int) -> bytes:
        while len(self._rest) < size:
            data = await self._more()
            assert data, f"closed in the middle: {self.received[-300:]!r}"
            self._rest += data
        return self._take(size)

    def _take(self, size: int) -> bytes:
        found = bytes(self._rest[:size])
        del self._rest[:size]
        return found


@asynccontextmanager
async def wire(url: str):
    host = url.removeprefix("http://")
    name, _, port = host.rpartition(":")
    async with await trio.open_tcp_stream(name, int(port)) as stream:
        yield Wire(stream, host)
