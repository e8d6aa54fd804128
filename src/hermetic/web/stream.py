"""A turn's events as a response that stays open: rules 1 to 10 of the stream (docs/streams.md)."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterable

import trio
from quart import Response, request

from hermetic.protocol.events import DrainingNotice, Reset, encode
from hermetic.protocol.sse import HEARTBEAT, Cursor, parse_cursor, sse_frame
from hermetic.supervisor.config import Stream
from hermetic.supervisor.hub import Reader
from hermetic.supervisor.supervisor import Supervisor

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}


def _ping(reader: Reader) -> bytes:
    """For clients that ask for it with ?ping=1: a watchdog in JavaScript cannot see comments. Its id is where the reader
    stands anyway: not every client carries an id over to an event that has none."""
    return sse_frame(f"{reader.turn_id}:{reader.seq}", "ping", b"{}")


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


async def turn_stream(supervisor: Supervisor, turn_id: str, said: Iterable[str | None], *, ping: bool) -> Response:
    """200 with the stream, or 204 when the turn has ended and the cursor has seen all of it.

    HEAD gets the same without a stream: who only asks is no reader, whose leaving might cancel the turn.
    """
    found = await supervisor.reader(turn_id, cursor_of(turn_id, said))
    if found is None:
        return _without_body(Response(b"", 204, {"Cache-Control": "no-store"}))
    if request.method == "HEAD":
        return _without_body(Response(b"", 200, HEADERS))
    reader, reset = found
    response = Response(_frames(supervisor, reader, reset, supervisor.config.stream, ping=ping), 200, HEADERS)
    response.timeout = None  # Quart's 60 s would cut every long turn
    return response


def _without_body(response: Response) -> Response:
    """A 204, and a HEAD of a stream, have no length that could be named (RFC 9110, 8.6); Quart names one."""
    del response.headers["Content-Length"]
    if response.status_code == 204:
        del response.headers["Content-Type"]
    return response


async def _is_queued(supervisor: Supervisor, reader: Reader) -> bool:
    return reader.feed is not None and (await supervisor.turn(reader.turn_id)).state == "queued"


async def _read(reader: Reader, seconds: float, draining: trio.Event | None) -> bytes | None:
    """The reader's next events. None: there were none for `seconds`, or the server has begun to drain."""
    data = None
    with trio.move_on_after(seconds):
        if draining is None:
            data = await reader.read()
        else:
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    await draining.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(watch)
                data = await reader.read()
                nursery.cancel_scope.cancel()
    return data  # also what was read in the very moment of the deadline: the reader has moved on


def _draining(reader: Reader, retry_ms: int) -> bytes:
    """Come back later, with the same cursor. Jittered: not all readers at once on a server that has just started. The
    body does not end after it, it is cut: after a clean end some clients stay away."""
    retry_ms = int(retry_ms * random.uniform(1, 3))
    event_id = f"{reader.turn_id}:{reader.seq}"
    return sse_frame(event_id, "draining", encode(DrainingNotice(retry_ms=retry_ms)), retry_ms)


async def _frames(
    supervisor: Supervisor, reader: Reader, reset: Reset | None, stream: Stream, *, ping: bool
) -> AsyncIterator[bytes]:
    first = b"retry: %d\n" % stream.retry_ms  # rides in the first event: alone it would be a phantom
    try:
        with reader:
            if reset:
                event_id = f"{reader.turn_id}:{reader.seq}"
                yield first + sse_frame(event_id, "reset", encode(reset))
                first = b""
            queued = await _is_queued(supervisor, reader)
            while True:
                # only a queued turn outlives the server's drain; the others end, and their readers are told so
                data = await _read(reader, stream.heartbeat_s, supervisor.draining if queued else None)
                if queued and supervisor.draining.is_set() and not data:
                    yield _draining(reader, stream.retry_ms)
                    first = b""
                    queued = False  # said once; the stream stays open until the server cuts it
                elif data is None:
                    yield HEARTBEAT + _ping(reader) if ping else HEARTBEAT
                elif data:
                    queued = queued and await _is_queued(supervisor, reader)
                    yield first + data
                    first = b""
                else:
                    return
    finally:
        with trio.CancelScope(shield=True):
            await supervisor.left(reader)
