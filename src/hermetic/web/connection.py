"""One connection of a client: hypercorn's, with what hypercorn 0.18 leaves out.

Three things. A send is bounded: hypercorn shields `send_all`, so that a client which does not read holds its task, and
the server's exit, for as long as it likes; here it is cut when a piece does not leave within `stall_s`. A connection
that its client has closed ends at once: hypercorn keeps it until the keep-alive timeout, because its idle timer does
not hear of it. And an application finds its connection in the scope's `state`, which direct.py builds on.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import hypercorn
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, LifespanState

PIECE_BYTES = 64 << 10
"""What has to leave within `stall_s`: with the default of 30 s a client that reads 2 KiB a second is not cut."""
KEY = "hermetic.connection"
BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class Cuts:
    """Connections of this process that were cut because their client did not read."""

    count = 0


class Connection(TCPServer):
    """`others`: all open connections of the server, for its end."""

    def __init__(
        self,
        app: AppWrapper,
        config: hypercorn.Config,
        context: WorkerContext,
        stall_s: float,
        others: set[Connection],
        stream: trio.SSLStream[trio.SocketStream] | trio.SocketStream,
    ) -> None:
        state: LifespanState = {KEY: self}
        super().__init__(app, config, context, state, stream)  # type: ignore[arg-type]  # plain streams as well
        self._stall_s = stall_s
        self._others = others
        self._gone = False
        self._sending: trio.CancelScope | None = None

    @property
    def transport(self) -> trio.SocketStream:
        stream: Any = self.stream
        found: trio.SocketStream = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        return found

    async def run(self) -> None:
        self._others.add(self)
        try:
            await super().run()
        finally:
            self._others.discard(self)

    async def _read_data(self) -> None:
        await super()._read_data()
        self._gone = True
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._send(event.data)
        elif not (isinstance(event, Updated) and self._gone):  # else it would be idle again until the timeout
            await super().protocol_send(event)

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        async with self.send_lock:
            whole = False
            with trio.CancelScope(shield=True) as self._sending, suppress(*BROKEN):
                for at in range(0, len(view), PIECE_BYTES):
                    self._sending.deadline = trio.current_time() + self._stall_s
                    await self.stream.send_all(view[at : at + PIECE_BYTES])
                whole = True
            Cuts.count += self._sending.cancelled_caught
            self._sending = None
        if not whole:
            self.abort()
            await self.protocol.handle(Closed())

    def give_up_sending(self) -> None:
        """Cuts the connection if it is in the middle of a send: the server ends."""
        if self._sending is not None:
            self._sending.cancel()

    def abort(self) -> None:
        """Closes at once, with a reset: what the client has not read is not worth keeping the socket for."""
        transport = self.transport
        with suppress(*BROKEN):  # closed already
            transport.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.socket.close()


def connection_of(scope: Mapping[str, Any]) -> Connection | None:
    """The connection of an ASGI scope; None under another server, as in tests of the application alone."""
    found = scope.get("state", {}).get(KEY)
    return found if isinstance(found, Connection) else None
