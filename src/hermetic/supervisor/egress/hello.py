"""The server name in a TLS ClientHello, read from the first bytes of a tunnel (RFC 8446 4.1.2, RFC 6066 3).

A tunnel's host is what the list was asked about; the name in the ClientHello is whom a shared front end (a CDN) will
connect the client with. When the two differ, a listed host is used as a way to one that is not (domain fronting).
"""

from __future__ import annotations

from typing import Final

HELLO_BYTES_MAX: Final = 16 << 10
"""Of a ClientHello with its record headers. With post-quantum key shares it has some 2 KiB."""

_HANDSHAKE_RECORD: Final = 22
_CLIENT_HELLO: Final = b"\x01"
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0


class NotAHello(ValueError):
    """These bytes do not begin a TLS connection as a client that means well would."""


class Hello:
    """`server_name` None: the client named none."""

    def __init__(self, server_name: str | None) -> None:
        self.server_name = server_name


def read_hello(data: bytes) -> Hello | None:
    """The first bytes of a connection → its ClientHello; None: more bytes are needed. Raises NotAHello.

    A client may split the hello over records and over packets as it likes; one that is longer than HELLO_BYTES_MAX is
    refused.
    """
    handshake = b""
    position = 0
    while position < len(data):
        if data[position] != _HANDSHAKE_RECORD:
            raise NotAHello
        header = data[position : position + 5]
        if len(header) > 1 and header[1] != 3:
            raise NotAHello
        if len(header) < 5:
            break
        length = int.from_bytes(header[3:5])
        if not 0 < length <= 1 << 14:
            raise NotAHello
        handshake += data[position + 5 : position + 5 + length]
        position += 5 + length
        if handshake[:1] not in (b"", _CLIENT_HELLO):
            raise NotAHello
        if len(handshake) >= 4 and len(handshake) >= 4 + int.from_bytes(handshake[1:4]):
            return Hello(_server_name(_Reader(handshake[4 : 4 + int.from_bytes(handshake[1:4])])))
    if len(data) > HELLO_BYTES_MAX:
        raise NotAHello
    return None


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.left = len(data)

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise NotAHello
        start = len(self._data) - self.left
        self.left -= count
        return self._data[start : start + count]

    def vector(self, length_bytes: int) -> bytes:
        return self.take(int.from_bytes(self.take(length_bytes)))


def _server_name(hello: _Reader) -> str | None:
    hello.take(2 + 32)  # version, random
    hello.vector(1)  # session id
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression methods
    extensions = _Reader(hello.vector(2) if hello.left else b"")
    names: list[str] = []
    while extensions.left:
        kind, body = int.from_bytes(extensions.take(2)), _Reader(extensions.vector(2))
        if kind == _SERVER_NAME:
            entries = _Reader(body.vector(2))
            while entries.left:
                if entries.take(1)[0] != _HOST_NAME:
                    raise NotAHello
                names.append(entries.vector(2).decode("ascii", "replace").lower().removesuffix("."))
    if len(names) > 1:  # which one counts would be for the server to choose
        raise NotAHello
    return names[0] if names else None
