"""The socket between a launcher and a turn's processes: one letter and a payload a packet, with descriptors.

A standby is handed its turn on it, and says on it how far it has come.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress

from hermetic.protocol.launch import PACKET_BYTES_MAX

FORKED = b"F"
"""Init: the agent's process exists, and waits."""
INIT_ENTERED = b"I"
"""Init: its seal holds; the payload is `mechanisms`. With it come the listeners' descriptors."""
ENTERED = b"A"
"""The agent: its seal holds as well; the payload is `mechanisms`."""
REFUSED = b"R"
"""Either: the seal cannot be made; the payload says why, for people."""
STATUS = b"S"
"""Init: the agent has ended; the payload is its wait status in decimal."""

_CMSG_CLOEXEC = 0x40000000
FDS_MAX = 64
"""Of one packet; a turn has three and its listeners."""


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(to: socket.socket, packet: bytes, fds: Sequence[int] = ()) -> None:
    """Raises OSError when the other side is gone."""
    if fds:
        socket.send_fds(to, [packet], list(fds))
    else:
        to.send(packet)


def receive(from_: socket.socket) -> tuple[bytes, list[int]]:
    """A packet with its descriptors, which are closed on exec. The empty packet: the other side is gone."""
    for _ in range(2):
        # The other side has ended with something unread: that is told once, and first, before what it said last.
        with suppress(ConnectionResetError):
            packet, fds, _, _ = socket.recv_fds(from_, PACKET_BYTES_MAX, FDS_MAX, _CMSG_CLOEXEC)
            return packet, fds
    return b"", []


def encode_mechanisms(held: list[str], missing: list[str]) -> bytes:
    return " ".join(held).encode() + b"\n" + " ".join(missing).encode()


def decode_mechanisms(payload: bytes) -> tuple[list[str], list[str]]:
    held, _, missing = payload.decode().partition("\n")
    return held.split(), missing.split()


def close_all_but(*kept: int) -> None:
    """All descriptors above stderr but these."""
    first = 3
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, 1 << 30)
