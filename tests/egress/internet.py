"""An Internet of the test's own: names with answers that may change, and addresses behind which are local servers."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any

import trio
import trustme

from hermetic.protocol.events import EgressDenied
from hermetic.supervisor.egress.model_rules import Provider
from hermetic.supervisor.egress.network import Network, dial
from hermetic.supervisor.egress.rules import Address, parse_rules
from hermetic.supervisor.egress.serve import Egress, serve_egress
from hermetic.supervisor.egress.wire import Bounds

Handler = Callable[[trio.abc.Stream], Awaitable[None]]

CA = trustme.CA()


def server_tls(*names: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CA.issue_cert(*names).configure_cert(context)
    return context


def client_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    return context


class Internet:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.answers: dict[str, list[list[str]]] = {}
        """Of each name, the answers in their order; the last one stays."""
        self.local_ports: dict[tuple[str, int], int] = {}
        self.asked: list[str] = []
        self.dialled: list[tuple[str, int]] = []

    async def serve(self, address: str, port: int, handler: Handler) -> int:
        """→ the port on loopback."""
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.local_ports[address, port] = listener.socket.getsockname()[1]

        async def handle(stream: trio.abc.Stream) -> None:
            try:
                async with stream:
                    await handler(stream)
            except trio.BrokenResourceError:
                pass

        self._nursery.start_soon(trio.serve_listeners, handle, [listener])
        return self.local_ports[address, port]

    async def _resolve(self, host: str, port: int) -> list[Address]:
        await trio.lowlevel.checkpoint()
        self.asked.append(host)
        answers = self.answers.get(host)
        if not answers:
            raise OSError("no such name")
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return [ip_address(text) for text in answer]

    async def _dial(self, address: Address, port: int) -> trio.SocketStream:
        self.dialled.append((str(address), port))
        if (str(address), port) not in self.local_ports:
            await trio.lowlevel.checkpoint()
            raise OSError("nobody there")
        return await dial(ip_address("127.0.0.1"), self.local_ports[str(address), port])

    @property
    def network(self) -> Network:
        return Network(resolve=self._resolve, dial=self._dial)


class WayOut:
    """`serve_egress` on loopback, as a turn would see it from its namespace."""

    def __init__(self) -> None:
        self.denied: list[EgressDenied] = []
        self.ports: list[int] = []
        self.scope = trio.CancelScope()

    @property
    def reasons(self) -> list[str]:
        return [event.reason for event in self.denied]

    async def open(
        self,
        nursery: trio.Nursery,
        entries: list[str],
        *,
        network: Network | None = None,
        provider: Provider | None = None,
        transport: Any = None,
        bounds: Bounds | None = None,
    ) -> WayOut:
        listeners = []
        for _ in range(2 if provider else 1):
            listeners += await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.ports = [listener.socket.getsockname()[1] for listener in listeners]

        async def tell(event: EgressDenied) -> None:
            await trio.lowlevel.checkpoint()
            self.denied.append(event)

        async def serve() -> None:
            with self.scope:
                await serve_egress(
                    listeners,
                    Egress(rules=parse_rules(entries), provider=provider),
                    transport=transport,
                    tell=tell,
                    turn_id="t1",
                    bounds=bounds or Bounds(),
                    network=network or Network(),
                )

        nursery.start_soon(serve)
        return self

    @property
    def connect_url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def model_url(self) -> str:
        return f"http://127.0.0.1:{self.ports[1]}"

    async def dial(self, index: int = 0) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.ports[index])

    async def say(self, data: bytes, index: int = 0) -> bytes:
        """Sends it, reads until the end → everything that came back."""
        async with await self.dial(index) as stream:
            try:
                await stream.send_all(data)
                return await read_all(stream)
            except trio.BrokenResourceError:
                return b""

    async def tunnel(self, target: str) -> trio.SocketStream:
        stream = await self.dial()
        await stream.send_all(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = await read_until(stream, b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        return stream


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    data = b""
    try:
        while piece := await stream.receive_some(65536):
            data += piece
    except trio.BrokenResourceError:
        pass
    return data


async def read_until(stream: trio.abc.ReceiveStream, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        piece = await stream.receive_some(1)
        if not piece:
            return data
        data += piece
    return data


async def echo(stream: trio.abc.Stream) -> None:
    """Sends everything back; at its end `bye`."""
    while data := await stream.receive_some(65536):
        await stream.send_all(data)
    await stream.send_all(b"bye")
