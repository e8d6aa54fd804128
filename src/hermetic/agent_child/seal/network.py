"""A network with nothing in it.

In a new network namespace there is one interface, the loopback, and it is down. Nothing leads out: what the turn may
reach, it reaches through listeners that its init opens here and hands to the supervisor, which stays outside and
accepts on them. Who connects is thereby known: this turn and nobody else.
"""

from __future__ import annotations

import fcntl
import socket
import struct

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_BACKLOG = 128
"""Connections that wait for the supervisor: as many as a tool may well open at once."""


def bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh22x", b"lo", 0)  # netdevice(7)
        name, flags = struct.unpack("16sh22x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", name, flags | _IFF_UP))


def listen(port: int) -> int:
    """A descriptor that listens on 127.0.0.1. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen(_BACKLOG)
        return listener.detach()
