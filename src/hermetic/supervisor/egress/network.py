"""The two things that the CONNECT proxy asks of the world, so that a test can stand in for the Internet."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

import trio
from msgspec import Struct

from hermetic.supervisor.egress.rules import Address


async def resolve(host: str, port: int) -> list[Address]:
    """All addresses of a name, in the order of RFC 6724. Raises OSError. Each call asks anew.

    In a thread that is left behind when we are cancelled. Its limiter is its own: a name server that does not answer
    must not take the threads that files are read with.
    """
    found = await trio.to_thread.run_sync(
        lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP),
        abandon_on_cancel=True,
        limiter=trio.CapacityLimiter(1),
    )
    return list(dict.fromkeys(ip_address(str(where[0]).partition("%")[0]) for *_, where in found))


async def dial(address: Address, port: int) -> trio.SocketStream:
    """A connection to exactly this address: nothing is looked up again. Raises OSError."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    connection = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        await connection.connect((str(address), port))
    except BaseException:
        connection.close()
        raise
    return trio.SocketStream(connection)


class Network(Struct, frozen=True, kw_only=True):
    resolve: Callable[[str, int], Awaitable[list[Address]]] = resolve
    dial: Callable[[Address, int], Awaitable[trio.SocketStream]] = dial


def leads_home(connection: trio.SocketStream, address: Address) -> bool:
    """Whether the other end is this very machine: then both ends have one address.

    A host's own public address passes every rule about addresses, and behind it are services that trust the host.
    """
    return ip_address(str(connection.socket.getsockname()[0]).partition("%")[0]) == address
