"""Requests on bare sockets: what a client library costs must not be in the figure."""

from __future__ import annotations

import json
import re
import socket
import time
from typing import NamedTuple

from bench.servers import Contestant, Hermetic


class Begun(NamedTuple):
    """From before the POST's connection, in ms."""

    first_ms: float
    """To the first event, whatever it is."""
    token_ms: float
    """To the first token."""


def _connect(port: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=60)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _receive(connection: socket.socket, until: bytes, have: bytes = b"") -> bytes:
    while until not in have:
        data = connection.recv(1 << 16)
        if not data:
            raise ConnectionError(f"the stream has ended without {until!r}: {have[-500:]!r}")
        have += data
    return have


def post_to_first(server: Contestant, path: str, stream: str, body: object) -> Begun:
    """POST on a new connection, then the turn's stream on another. `stream`: a path with `{}` for the turn's id."""
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n{server.authorization()}"
    begun = time.perf_counter()
    with _connect(server.port) as posting:
        posting.sendall(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
        answer = _receive(posting, b"}", _receive(posting, b"\r\n\r\n"))
        found = re.search(rb'"turn_id":\s*"(\w+)"', answer)
        if not found:
            raise RuntimeError(f"POST {path}: {answer[:500]!r}")
        with _connect(server.port) as reading:
            reading.sendall(_get(server, stream.format(found[1].decode())))
            seen = _receive(reading, b"data: ")
            first = time.perf_counter()
            _receive(reading, b"event: token", seen)
            token = time.perf_counter()
    return Begun((first - begun) * 1e3, (token - begun) * 1e3)


def first_token(server: Hermetic, session: str) -> Begun:
    """Of a turn in this session, once the session is idle."""
    return post_to_first(
        server, f"/v1/sessions/{session}/turns", "/v1/turns/{}/events", {"message": "go", "on_busy": "queue"}
    )


def first_byte_ms(server: Contestant, path: str) -> float:
    """From before the connection to the first byte of the stream's first event."""
    begun = time.perf_counter()
    with _connect(server.port) as connection:
        connection.sendall(_get(server, path))
        _receive(connection, b"data: ")
        return (time.perf_counter() - begun) * 1e3


def read_whole(server: Contestant, path: str) -> int:
    """The stream to its end. → its bytes."""
    total = 0
    with _connect(server.port) as connection:
        connection.sendall(_get(server, path))
        tail = b""
        while b"\r\n0\r\n\r\n" not in tail:  # the last chunk
            data = connection.recv(1 << 18)
            if not data:
                break
            total += len(data)
            tail = tail[-8:] + data
    return total


def glimpse(server: Contestant, path: str) -> None:
    """Reads up to the first event and hangs up."""
    with _connect(server.port) as connection:
        connection.sendall(_get(server, path))
        _receive(connection, b"data: ")


def _get(server: Contestant, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{server.authorization()}\r\n".encode()
