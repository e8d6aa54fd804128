"""A turn's events as a response that stays open: rules 1 to 10 of the stream (docs/streams.md).

Quart answers the request, and hands the open response over (`Exchange`): from then on it is one task, the connection's
own, with nothing of the request left. Nearly always that task sleeps, waiting for the client to hang up, while whoever
publishes writes on its socket (direct.py). It is woken when the socket is full, when the turn ends, or when there is no
socket to write on directly; then it reads on from its cursor, and parks again when it has caught up.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import trio
from quart import Response, request
from quart.utils import encode_headers
from quart_trio.asgi import TrioASGIHTTPConnection

from hermetic.protocol.events import DrainingNotice, Reset, ResetAll, encode
from hermetic.protocol.sse import HEARTBEAT, Cursor, parse_cursor, sse_frame
from hermetic.supervisor.hub import Reader, TenantReader
from hermetic.supervisor.supervisor import Supervisor
from hermetic.web.auth import caller
from hermetic.web.direct import Direct, bound_send_buffer, direct

PAUSE_S = 0.001
"""Between two sends to a reader that is behind: time to hear that it has hung up, and for those who are not behind."""
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}


def cursor_of(turn_id: str, said: Iterable[str | None]) -> Cursor | None:
    """Where the reader says it stands: the farthest of `?after=`, `?last_event_id=` and `Last-Event-ID`.

    The farthest, not the first: an EventSource keeps its URL when it reconnects and says where it is in the header, so
    that a page which began with `?after=0` would otherwise read everything again. Seq -1: none of them can be read.
    """
    texts = [text for text in said if text]
    if not texts:
        return None
    read = [cursor for text in texts if (cursor := parse_cursor(text, turn_id))]
    ours = [cursor for cursor in read if cursor.turn_id == turn_id]
    return max(ours or read, default=Cursor(turn_id, -1), key=lambda cursor: cursor.seq)


Rewrite = Callable[[bytes], Awaitable[bytes]]
"""From whole events to the same events in other words."""


async def turn_stream(
    supervisor: Supervisor, turn_id: str, said: Iterable[str | None], *, ping: bool, rewrite: Rewrite | None = None
) -> Response:
    """200 with the stream, or 204 when the turn has ended and the cursor has seen all of it.

    HEAD gets the same without a stream: who only asks is no reader, whose leaving might cancel the turn. A stream with
    `rewrite` is not sent directly, since that may wait.
    """
    found = await supervisor.reader(turn_id, cursor_of(turn_id, said), by=caller())
    if found is None:
        return _without_body(Response(b"", 204, {"Cache-Control": "no-store"}))
    if request.method == "HEAD":
        return _without_body(Response(b"", 200, HEADERS))
    reader, reset = found
    return _without_body(StreamResponse(Stream(supervisor, reader, reset, ping=ping, rewrite=rewrite)))


async def tenant_stream(
    supervisor: Supervisor, said: Iterable[str | None], *, sessions: frozenset[str] | None, ping: bool
) -> Response:
    """The stream of all the caller's turns."""
    texts = [text for text in said if text]
    reader, reset = await supervisor.tenant_reader(
        max(texts, key=_position, default=None), by=caller(), sessions=sessions
    )
    if request.method == "HEAD":
        return _without_body(Response(b"", 200, HEADERS))
    return _without_body(StreamResponse(Stream(supervisor, reader, reset, ping=ping, rewrite=None)))


def _position(text: str) -> int:
    """The farthest cursor counts, for the reason that `cursor_of` has."""
    cursor = parse_cursor(text, "")
    return -1 if cursor is None else cursor.seq


def _without_body(response: Response) -> Response:
    """A 204, and a stream, have no length that could be named (RFC 9110, 8.6); Quart names one."""
    del response.headers["Content-Length"]
    if response.status_code == 204:
        del response.headers["Content-Type"]
    return response


class StreamResponse(Response):
    """To Quart it has no body; see `Exchange`."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(b"", 200, HEADERS)
        self.stream = stream


class Exchange(TrioASGIHTTPConnection):
    """One request and its response. A stream begins where Quart has ended: without its request, its context, its tasks
    and its time limit of a response."""

    _response: StreamResponse | None = None
    _hung_up = False

    async def __call__(self, receive: Any, send: Any) -> None:
        await super().__call__(receive, send)
        if self._response is not None:
            stream, headers = self._response.stream, encode_headers(self._response.headers)
            self._response = None
            await stream.run(self.scope, receive, send, headers, hung_up=self._hung_up)

    async def handle_messages(self, nursery: trio.Nursery, request: Any, receive: Any) -> None:  # type: ignore[override]
        await super().handle_messages(nursery, request, receive)
        self._hung_up = True

    async def _send_response(self, send: Any, response: Any) -> None:
        if isinstance(response, StreamResponse):
            self._response = response
        else:
            await super()._send_response(send, response)


class Stream:
    """One reader's open response."""

    def __init__(
        self,
        supervisor: Supervisor,
        reader: Reader | TenantReader,
        reset: Reset | ResetAll | None,
        *,
        ping: bool,
        rewrite: Rewrite | None,
    ) -> None:
        self._supervisor = supervisor
        self._settings = supervisor.config.stream
        self._pulse = supervisor.pulse
        self._reader = reader
        self._reset = reset
        self._ping = ping
        self._rewrite = rewrite
        self._retry = b"retry: %d\n" % self._settings.retry_ms  # rides in the first event: alone it would be a phantom
        self._outlives = supervisor.outlives_drain(reader)
        self._direct: Direct | None = None
        self._parked: trio.CancelScope | None = None
        self._beat_due = False
        self.heard_at = 0

    async def run(self, scope: Any, receive: Receive, send: Send, headers: Any, *, hung_up: bool) -> None:
        """From the head to the last chunk, or until the client hangs up, which it may have done already."""
        try:
            with self._reader:
                if not hung_up:
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    bound_send_buffer(scope)
                    self._direct = direct(scope) if self._settings.direct and self._rewrite is None else None
                    if await self._follow(receive, send):
                        await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if isinstance(self._reader, Reader):
                with trio.CancelScope(shield=True):
                    await self._supervisor.left(self._reader)

    async def _follow(self, receive: Receive, send: Send) -> bool:
        """True: everything has been sent. False: the client has hung up."""
        self._pulse.join(self)
        try:
            while (data := await self._due()) != b"":
                if data is None:
                    if await self._park(receive):
                        return False
                else:
                    self.heard_at = self._pulse.now
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    pause = trio.CancelScope(deadline=trio.current_time() + PAUSE_S)
                    if not self._reader.caught_up() and await _hung_up(receive, pause):
                        return False
            return True
        finally:
            self._pulse.leave(self)

    async def _due(self) -> bytes | None:
        """What is to be sent now. Empty: there will be nothing more. None: nothing yet."""
        if self._reset is not None:
            event, self._reset = sse_frame(self._reader.cursor, "reset", encode(self._reset)), None
            return self._first(event)
        while not self._reader.caught_up():
            data = await self._reader.read()
            if not data and self._reader.endless:
                continue  # what there was is not for this reader
            if self._rewrite is not None:
                data = await self._rewrite(data)
            self._outlives = self._outlives and self._supervisor.outlives_drain(self._reader)
            return data and self._first(data)
        # A turn that runs ends in the server's drain, and its readers are told so.
        if self._outlives and self._supervisor.draining.is_set():
            self._outlives = False  # said once; the stream stays open until the server cuts it
            self._retry = b""
            return _draining(self._reader, self._settings.retry_ms)
        if self._beat_due:
            self._beat_due = False
            return self._heartbeat()
        return None

    def _first(self, data: bytes) -> bytes:
        retry, self._retry = self._retry, b""
        return retry + data

    def _heartbeat(self) -> bytes:
        """With a ping for clients that ask for it: a watchdog in JavaScript cannot see comments. The ping's id is where
        the reader stands anyway: not every client carries an id over to an event that has none."""
        return HEARTBEAT + sse_frame(self._reader.cursor, "ping", b"{}") if self._ping else HEARTBEAT

    # --- parked ---------------------------------------------------------------------------------------------------

    async def _park(self, receive: Receive) -> bool:
        """Until there is something that this task must do. True: the client has hung up."""
        self._parked = trio.CancelScope()
        self._reader.park(self)
        try:
            if await _hung_up(receive, self._parked):
                return True
        finally:
            self._reader.unpark(self)
            self._parked = None
        if self._direct is not None:
            await self._direct.flush()
        return False

    def wake(self) -> None:
        if self._parked is not None:
            self._parked.cancel()

    def take(self, data: bytes, seq: int) -> bool:
        if not data:
            self._reader.seq = seq  # passed over
            return True
        by_task = self._retry or (self._outlives and not self._reader.endless)  # it has more to say, or to look after
        if by_task or self._direct is None or not self._direct.send(data):
            self.wake()
            return False
        self._reader.seq = seq
        self.heard_at = self._pulse.now
        if self._direct.clogged:
            self.wake()
            return False
        return True

    def beat(self) -> None:
        if self._parked is not None:
            self._beat_due = self._direct is None or not self._direct.send(self._heartbeat())
            if self._beat_due or (self._direct is not None and self._direct.clogged):
                self.wake()


async def _hung_up(receive: Receive, until: trio.CancelScope) -> bool:
    """Waits for the client to hang up. False: `until` was cancelled first."""
    with until:
        while (await receive())["type"] != "http.disconnect":
            pass  # parts of the request's body, which a GET may have
        return True
    return False


def _draining(reader: Reader | TenantReader, retry_ms: int) -> bytes:
    """Come back later, with the same cursor. Jittered: not all readers at once on a server that has just started. The
    body does not end after it, it is cut: after a clean end some clients stay away."""
    retry_ms = int(retry_ms * random.uniform(1, 3))
    return sse_frame(reader.cursor, "draining", encode(DrainingNotice(retry_ms=retry_ms)), retry_ms)
