"""The HTTP proxy of a sealed turn: tunnels (CONNECT, RFC 9110 9.3.6) and plain HTTP requests, to listed hosts.

For each connection, in this order: the list is asked about the host and port; the name is resolved, once; each address
is judged; one that passed is connected to, as an address. A second look-up, whose answer nobody has judged, does not
happen.

**TLS in tunnels.** A tunnel to port 443 must begin with a ClientHello that names the tunnel's host, and one to any other
port must if it begins with a ClientHello at all. Without that a listed host behind a CDN would be a door to every other
host there. What is inside the encryption stays the tenant's: a front end that routes by the Host header and lets it
differ from the server name can still be used that way, so list no such host for a tenant whom you do not trust.
SSH on port 443 does not pass; list it at its own port. An encrypted ClientHello names its public front end outside, so it
passes only where that front end is the listed host.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import h11
import trio

from hermetic.supervisor.egress.hello import NotAHello, read_hello
from hermetic.supervisor.egress.network import Network, leads_home
from hermetic.supervisor.egress.rules import Address, Host, Rules, canonical, parse_authority
from hermetic.supervisor.egress.wire import (
    READ_BYTES,
    Bounds,
    Denials,
    Headers,
    Peer,
    Refused,
    denied,
    end_to_end,
    has_body,
    next_event,
    pair,
)

TLS_PORT: Final = 443
PLAIN_METHODS: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
_HANDSHAKE_RECORD: Final = 22

_MESSAGES: Final = {
    "host_not_listed": "is not on the list of hosts that this agent may reach",
    "port_not_listed": "is listed with another port",
    "address_not_listed": "is an address, and only listed addresses may be reached as such",
    "address_not_public": "has no address on the Internet",
    "own_address": "is the machine that runs this agent",
    "host_header_differs": "is not what the Host header says",
    "server_name_differs": "is not the name in the TLS ClientHello",
    "not_tls": "may be reached by TLS only",
}


class ConnectProxy:
    """Serves the connections of one turn. `rules` without entries denies all."""

    def __init__(self, rules: Rules, denials: Denials, bounds: Bounds, network: Network) -> None:
        self._rules = rules
        self._denials = denials
        self._bounds = bounds
        self._network = network
        self._resolving = trio.Semaphore(bounds.resolves_max)

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection, to its end. Raises trio.BrokenResourceError when the client is gone."""
        peer = Peer(stream, self._bounds)
        try:
            request = await peer.request()
            if request is None:
                return
            if request.method == b"CONNECT":
                await self._tunnel(peer, request)
            else:
                await self._forward(peer, request)
        except Refused as refused:
            if refused.denial:
                await self._denials.happened(refused.denial)
            reason = b"Egress denied" if refused.denial else b""
            await peer.refuse(refused.status, b"text/plain; charset=utf-8", f"{refused.message}\n".encode(), reason)

    # --- tunnels --------------------------------------------------------------------------------------------------

    async def _tunnel(self, peer: Peer, request: h11.Request) -> None:
        if has_body(request):
            raise Refused(400, "malformed_request", "CONNECT has no body.")
        try:
            host, port = parse_authority(request.target.decode("ascii"))
        except ValueError:
            raise Refused(400, "malformed_request", "The target of CONNECT is HOST:PORT.") from None
        async with self._connected("CONNECT", host, port) as server:
            await peer.stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            try:
                await self._relay(peer, server, host, port)
            except trio.BrokenResourceError:
                pass  # one side is gone, so the other has nobody to talk to
            except Refused as refused:  # too late for an answer; the tunnel closes
                if refused.denial:
                    await self._denials.happened(refused.denial)

    async def _relay(self, peer: Peer, server: trio.SocketStream, host: Host, port: int) -> None:
        """Until both directions have ended. One that ends is passed on as such: the other may have more to say."""
        client, idle_s = peer.stream, self._bounds.idle_s
        with trio.CancelScope(deadline=trio.current_time() + idle_s) as idle:

            async def pump(source: trio.abc.ReceiveStream, target: trio.abc.HalfCloseableStream, data: bytes) -> None:
                passed = 0
                while True:
                    passed += len(data)
                    if self._bounds.tunnel_bytes_max is not None and passed > self._bounds.tunnel_bytes_max:
                        idle.cancel()
                    await target.send_all(data)
                    idle.deadline = trio.current_time() + idle_s
                    data = bytes(await source.receive_some(READ_BYTES))
                    if not data:
                        break
                await target.send_eof()

            async def upstream() -> None:
                await pump(client, server, await self._checked_start(peer, host, port))

            async with pair() as nursery:
                nursery.start_soon(pump, server, client, b"")
                nursery.start_soon(upstream)

    async def _checked_start(self, peer: Peer, host: Host, port: int) -> bytes:
        """The first bytes of the client, a whole ClientHello where there is one. Raises Refused."""
        data = peer.unread()
        if not data and port != TLS_PORT:  # the server may be the one who speaks first, and long
            data = bytes(await peer.stream.receive_some(READ_BYTES))
        if port != TLS_PORT and not (data and data[0] == _HANDSHAKE_RECORD):
            return data
        with trio.move_on_after(self._bounds.head_s):
            while True:
                try:
                    hello = read_hello(data)
                except NotAHello:
                    raise self._denied("not_tls", "CONNECT", host, port) from None
                if hello:
                    expected = host if isinstance(host, str) else None
                    if hello.server_name != expected:
                        raise self._denied("server_name_differs", "CONNECT", host, port)
                    return data
                more = await peer.stream.receive_some(READ_BYTES)
                if not more:
                    return b""
                data += more
        raise Refused(408, "timeout", "The client said nothing.")

    # --- plain HTTP -----------------------------------------------------------------------------------------------

    async def _forward(self, peer: Peer, request: h11.Request) -> None:
        host, port, authority, path = _plain_target(request)
        method = request.method.decode("ascii")
        said = [value for name, value in request.headers if name == b"host"]
        try:
            agrees = len(said) == 1 and parse_authority(said[0].decode("ascii"), 80) == (host, port)
        except ValueError:
            agrees = False
        if not agrees:
            raise self._denied("host_header_differs", method, host, port)
        headers = [(n, v) for n, v in end_to_end(request.headers.raw_items()) if n.lower() != b"host"]
        async with self._connected(method, host, port) as server:
            exchange = _Exchange(peer, server, self._bounds)
            head = h11.Request(
                method=request.method,
                target=path,
                headers=[(b"Host", authority), *headers, *_framing(request), (b"Connection", b"close")],
            )
            await exchange.run(head)

    # --- the way out ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _connected(self, method: str, host: Host, port: int) -> AsyncIterator[trio.SocketStream]:
        """Raises Refused: the rules forbid it, or it cannot be reached."""
        if reason := self._rules.refusal(host, port):
            raise self._denied(reason, method, host, port)
        addresses = await self._resolved(host, port)
        allowed = [a for a in addresses if not self._rules.address_refusal(a, port)]
        if addresses and not allowed:
            raise self._denied("address_not_public", method, host, port)
        server, address = await self._dialled(allowed[: self._bounds.addresses_max], host, port)
        async with server:
            if leads_home(server, address) and not self._rules.is_named(address, port):
                raise self._denied("own_address", method, host, port)
            yield server

    async def _resolved(self, host: Host, port: int) -> list[Address]:
        if not isinstance(host, str):
            return [host]
        async with self._resolving:
            try:
                with trio.fail_after(self._bounds.resolve_s):
                    found = await self._network.resolve(host, port)
            except (OSError, UnicodeError):
                raise Refused(502, "not_resolved", f"The name {host} cannot be resolved.") from None
            except trio.TooSlowError:
                raise Refused(504, "not_resolved", f"The name {host} was not resolved in time.") from None
        return [canonical(address) for address in found]

    async def _dialled(self, addresses: list[Address], host: Host, port: int) -> tuple[trio.SocketStream, Address]:
        for address in addresses:
            try:
                with trio.fail_after(self._bounds.attempt_s):
                    return await self._network.dial(address, port), address
            except (OSError, trio.TooSlowError):
                continue
        raise Refused(502, "not_connected", f"{host}, port {port}, cannot be reached.")

    def _denied(self, reason: str, method: str, host: Host, port: int) -> Refused:
        message = f"Egress denied: {host}, port {port}, {_MESSAGES[reason]} ({reason})."
        return denied(reason, message, method=method, host=str(host), port=port)


def _plain_target(request: h11.Request) -> tuple[Host, int, bytes, bytes]:
    """`http://host[:port]/path?query` → host, port, authority, path with query. Raises Refused."""
    scheme, separator, rest = request.target.partition(b"://")
    if not separator or scheme.lower() != b"http" or b"#" in rest:
        raise Refused(400, "malformed_request", "This is a proxy: send CONNECT host:port, or http:// URLs.")
    if request.method not in PLAIN_METHODS:
        raise Refused(405, "method_not_allowed", "This method is not forwarded.")
    end = min((i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0), default=len(rest))
    authority, path = rest[:end], rest[end:]
    try:
        host, port = parse_authority(authority.decode("ascii"), 80)  # user:password@ is no name
    except ValueError:
        raise Refused(400, "malformed_request", "The URL's host is neither a name nor an address.") from None
    return host, port, authority, path if path.startswith(b"/") else b"/" + path


def _framing(request: h11.Request) -> Headers:
    """h11 has understood one framing; it is said again in our words."""
    return [(b"Transfer-Encoding", b"chunked")] if b"transfer-encoding" in dict(request.headers) else []


class _Exchange:
    """A request to a server and its response back, each passed on as it comes."""

    def __init__(self, peer: Peer, server: trio.SocketStream, bounds: Bounds) -> None:
        self._peer = peer
        self._server = server
        self._bounds = bounds
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=bounds.head_bytes_max)
        self._answered = False

    async def run(self, head: h11.Request) -> None:
        """Raises Refused before a response has begun; later the connection just breaks, so that it is seen as cut."""
        async with pair() as nursery:
            nursery.start_soon(self._ask, head, nursery.cancel_scope)
            await self._answer()
            nursery.cancel_scope.cancel()

    async def _ask(self, head: h11.Request, scope: trio.CancelScope) -> None:
        try:
            await self._send(head)
            async for data in self._peer.body(self._bounds.tunnel_bytes_max):
                await self._send(h11.Data(data=data))
            await self._send(h11.EndOfMessage())
        except trio.BrokenResourceError:
            pass  # the server may have answered and closed before it had all
        await self._peer.wait_gone()
        scope.cancel()

    async def _send(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        if data:
            await self._server.send_all(data)

    async def _answer(self) -> None:
        try:
            while True:
                event = await self._next_event()
                if isinstance(event, h11.Response):
                    self._answered = True
                    await self._peer.respond(event.status_code, end_to_end(event.headers.raw_items()), event.reason)
                elif isinstance(event, h11.Data):
                    await self._peer.send(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    await self._peer.end()
                    return
                elif event is None:
                    return
        except (h11.RemoteProtocolError, h11.LocalProtocolError, OSError, trio.BrokenResourceError):
            if not self._answered:
                raise Refused(502, "bad_response", "The server's answer is not HTTP/1.1.") from None

    async def _next_event(self) -> h11.Event | None:
        with trio.move_on_after(self._bounds.idle_s):
            return await next_event(self._h11, self._server)
        raise trio.BrokenResourceError("the server says nothing")
