"""Direct sends: the task that has news writes it on the sockets of all readers that wait, without waking theirs.

Waking a task for each reader and event, and the way through the layers of the server, costs ten times what the system
call does. So a reader that has caught up leaves its socket to whoever publishes: the bytes are framed as one HTTP chunk,
once for all readers, and written without blocking. What a socket does not take at once is left to the reader's own task.

This reaches under hypercorn: past HTTPStream and H11Protocol to the socket. It is done only where every type on the way
is the one that it was written for, on plain HTTP/1.1, in the middle of a chunked body, while nobody else sends; `direct`
gives None for all else, and the reader's own task writes through the server as ever.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import h11
from hypercorn.events import RawData
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol

from hermetic.web.connection import BROKEN, Connection, connection_of

SEND_BUFFER_BYTES = 256 << 10
"""What the kernel keeps for a reader that does not read. Left to itself it goes up to 4 MiB, times ten thousand."""

_framed: tuple[bytes, bytes] = (b"", b"")


def chunk(data: bytes) -> bytes:
    """`data` as a chunk (RFC 9112, 7.1). Remembers the last: it is asked for the same bytes once per reader."""
    global _framed
    if _framed[0] is not data:
        _framed = (data, b"%x\r\n%b\r\n" % (len(data), data))
    return _framed[1]


class Direct:
    """The socket of one response whose body is being sent."""

    __slots__ = ("_connection", "_fileno", "_locked", "_rest")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._locked = connection.send_lock.locked
        self._fileno = connection.transport.socket.fileno
        self._rest = b""

    def send(self, data: bytes) -> bool:
        """Writes `data` as a chunk, as far as that goes without blocking. True: it is on its way, or will be with the
        next `flush` if `clogged`. False: nothing of it was written."""
        if self._rest or self._locked():
            return False
        framed = chunk(data)
        try:
            sent = os.write(self._fileno(), framed)
        except OSError:  # full, or broken: the reader's own task will find out which
            return False
        if sent < len(framed):
            self._rest = framed[sent:]
        return True

    @property
    def clogged(self) -> bool:
        """A part of a chunk has been written, and nothing else may be before the rest of it."""
        return bool(self._rest)

    async def flush(self) -> None:
        rest, self._rest = self._rest, b""
        if rest:
            await self._connection.protocol_send(RawData(rest))


def direct(scope: Mapping[str, Any]) -> Direct | None:
    """For a response whose head has been sent. None: it has to go the ordinary way (TLS, HTTP/2, HTTP/1.0, or a server
    that we do not know)."""
    connection = connection_of(scope)
    if connection is None or connection.transport is not connection.stream:  # type: ignore[comparison-overlap]
        return None
    wrapper = connection.protocol
    if type(wrapper) is not ProtocolWrapper or type(wrapper.protocol) is not H11Protocol:
        return None
    http = wrapper.protocol.connection
    if type(http) is not h11.Connection or http.our_state is not h11.SEND_BODY or http.their_http_version != b"1.1":
        return None
    return Direct(connection)


def bound_send_buffer(scope: Mapping[str, Any]) -> None:
    """For a response that may last for hours to a client that may not read it."""
    if (connection := connection_of(scope)) is not None:
        with suppress(*BROKEN):  # the client has gone; whoever writes next is told
            connection.transport.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
