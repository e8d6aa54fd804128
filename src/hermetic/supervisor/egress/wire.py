"""The side of both proxies that faces the turn: one HTTP request on one connection, read by h11 under bounds.

One request, then the connection closes. What a client sends behind its request is never looked at, so there is nothing
to smuggle a second request into, and whatever goes on to a server is written anew from what h11 understood: no byte of
the request's head or framing is passed through.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import h11
import structlog
import trio
from msgspec import Struct
from msgspec.structs import asdict, replace

from hermetic.protocol.events import EgressDenied

log = structlog.get_logger()

READ_BYTES = 64 << 10
Headers = list[tuple[bytes, bytes]]


class Bounds(Struct, frozen=True, kw_only=True):
    """Of one turn. Not configuration: they keep a hostile turn from others, and no honest one meets them."""

    connections_max: int = 32
    """At once, of each proxy; more wait to be accepted. Each costs the server two descriptors, of 1,024 that a process
    has where nobody changed it."""
    accepts_per_s: float = 100.0
    """New connections, after a first burst of as many: what a turn that does nothing but connect may cost the others."""
    head_bytes_max: int = 32 << 10
    """Of a request's or response's head; servers refuse above 8 to 64 KiB."""
    head_s: float = 20.0
    """For a request's whole head, and for a ClientHello: a client has it ready when it connects."""
    resolves_max: int = 4
    """Look-ups at once. One holds a thread for up to half a minute when a name server is silent."""
    resolve_s: float = 15.0
    attempt_s: float = 5.0
    """To connect to one address."""
    addresses_max: int = 6
    """Tried of one name, in the resolver's order."""
    idle_s: float = 300.0
    """Without a byte in either direction."""
    think_s: float = 900.0
    """Of a model between two bytes; longer than the ten minutes for which common clients wait."""
    body_bytes_max: int = 64 << 20
    """Of a request to the model, with images and files in it; more than the largest provider takes."""
    tunnel_bytes_max: int | None = None
    """Each way, of one connection of the CONNECT proxy. None: no bound but the turn's wall clock."""
    denials_told: int = 50
    """Different denials that are told of, each once; of the rest those that double the count. An agent that tries the same
    again and again must not fill the journal."""


class Refused(Exception):
    """A request that is answered by us. `denial`: one that the rules forbid, of which readers are told."""

    def __init__(self, status: int, code: str, message: str, *, denial: EgressDenied | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.denial = status, code, message, denial


def denied(reason: str, message: str, *, method: str, host: str, port: int, path: str = "") -> Refused:
    """403, with the event. What came from the child is cut to what names and methods can be."""
    event = EgressDenied(method=method[:20], host=host[:255], port=port, reason=reason, path=path[:200])
    return Refused(403, reason, message, denial=event)


class Denials:
    """Counts a turn's denials, and tells of those that are worth it."""

    def __init__(self, tell: Callable[[EgressDenied], Awaitable[None]], bounds: Bounds, turn_id: str = "") -> None:
        self.total = 0
        self._tell = tell
        self._told: set[EgressDenied] = set()
        self._told_max = bounds.denials_told
        self._doubled = 1
        self._turn_id = turn_id

    async def happened(self, event: EgressDenied) -> None:
        self.total += 1
        if event not in self._told and len(self._told) < self._told_max:
            self._told.add(event)
        elif self.total < self._doubled:
            return
        self._doubled = 2 * self.total
        log.warning("egress_denied", turn_id=self._turn_id, **(asdict(event) | {"total": self.total}))
        await self._tell(replace(event, total=self.total))


class Peer:
    """One accepted connection: `request()`, then `body()`, then `respond()` and `send()`; or bytes, as `stream`."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, bounds: Bounds) -> None:
        self.stream = stream
        self.request_over = trio.Event()
        """Set when the whole request has been read."""
        self._bounds = bounds
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=bounds.head_bytes_max)

    async def request(self) -> h11.Request | None:
        """The head. None: the client left without a request. Raises Refused for what is no request of HTTP/1.1."""
        with trio.move_on_after(self._bounds.head_s) as scope:
            event = await self._next_event()
        if scope.cancelled_caught:
            raise Refused(408, "timeout", "The request's head did not come in time.")
        if not isinstance(event, h11.Request):
            return None
        _check_framing(event)
        return event

    async def body(self, bytes_max: int | None = None) -> AsyncIterator[bytes]:
        """Its pieces as they come. Raises Refused."""
        received = 0
        if self._h11.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        while True:
            with trio.move_on_after(self._bounds.idle_s) as scope:
                event = await self._next_event()
            if scope.cancelled_caught:
                raise Refused(408, "timeout", "The request's body did not come in time.")
            if not isinstance(event, h11.Data):
                break
            received += len(event.data)
            if bytes_max is not None and received > bytes_max:
                raise Refused(413, "too_large", f"The request's body has more than {bytes_max} bytes.")
            yield bytes(event.data)
        self.request_over.set()

    def unread(self) -> bytes:
        """What came behind the head of a CONNECT request."""
        return self._h11.trailing_data[0]

    async def wait_gone(self) -> None:
        """Until the client has hung up. What it says after its request is thrown away."""
        await self.request_over.wait()
        try:
            while await self.stream.receive_some(READ_BYTES):
                pass
        except trio.BrokenResourceError:
            pass

    async def respond(self, status: int, headers: Headers, reason: bytes = b"") -> None:
        await self._send(h11.Response(status_code=status, headers=[*headers, (b"Connection", b"close")], reason=reason))

    async def send(self, data: bytes) -> None:
        if data:
            await self._send(h11.Data(data=data))

    async def end(self) -> None:
        await self._send(h11.EndOfMessage())

    async def refuse(self, status: int, content_type: bytes, body: bytes, reason: bytes = b"") -> None:
        """A whole response of ours, when none has begun."""
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        length = str(len(body)).encode()
        await self.respond(status, [(b"Content-Type", content_type), (b"Content-Length", length)], reason)
        await self.send(body)
        await self.end()
        await self._linger()

    async def _linger(self) -> None:
        """Closing with bytes unread resets the connection, and the client may lose our answer (RFC 9112 9.6)."""
        with trio.move_on_after(_LINGER_S):
            await self.stream.send_eof()
            for _ in range(_LINGER_READS):
                if not await self.stream.receive_some(READ_BYTES):
                    break

    async def _next_event(self) -> h11.Event | None:
        try:
            return await next_event(self._h11, self.stream)
        except h11.RemoteProtocolError as error:
            raise Refused(error.error_status_hint, "malformed_request", "This is not a request of HTTP/1.1.") from None

    async def _send(self, event: h11.Event) -> None:
        try:
            data = self._h11.send(event)
        except h11.LocalProtocolError:  # a server's response that is none
            raise trio.BrokenResourceError("the response cannot be sent") from None
        if data:
            with trio.move_on_after(self._bounds.idle_s) as scope:
                await self.stream.send_all(data)
            if scope.cancelled_caught:
                raise trio.BrokenResourceError("the client does not read")


async def next_event(connection: h11.Connection, stream: trio.abc.ReceiveStream) -> h11.Event | None:
    """None: nothing more will come. Raises h11.RemoteProtocolError."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(bytes(await stream.receive_some(READ_BYTES)))
    return event if isinstance(event, h11.Event) else None


@asynccontextmanager
async def pair() -> AsyncIterator[trio.Nursery]:
    """A nursery for the two directions of one connection. It raises one error, not a group: the one that tells most."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        raise max(_leaves(group), key=_tells) from None


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _tells(error: BaseException) -> int:
    if isinstance(error, trio.BrokenResourceError):
        return 0
    if isinstance(error, Refused):
        return 1
    return 3 if isinstance(error, trio.Cancelled) else 2


_LINGER_S = 2.0
_LINGER_READS = 64

HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authentication-info", b"proxy-authorization",
    b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect", b"http2-settings",
})  # fmt: skip
"""Of one connection, not of the message (RFC 9110 7.6.1), and what must not reach a server from a client of a proxy."""


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Without what belongs to the connection, and without what its `Connection` header names."""
    headers = list(headers)
    named = {
        token.strip().lower() for name, value in headers if name.lower() == b"connection" for token in value.split(b",")
    }
    return [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP | (named - _KEPT)]


_KEPT = frozenset({b"host", b"content-length"})
"""`Connection: content-length` is an attack: the framing must not go with the connection's headers."""


def _check_framing(request: h11.Request) -> None:
    """h11 lets Transfer-Encoding win over Content-Length, as it may; whoever sends both is up to something."""
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        raise Refused(400, "malformed_request", "Content-Length and Transfer-Encoding exclude each other.")
    if request.http_version not in (b"1.0", b"1.1"):
        raise Refused(505, "malformed_request", "HTTP/1.1 is spoken here.")


def has_body(request: h11.Request) -> bool:
    headers = dict(request.headers)
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0").strip(b"0") != b""
