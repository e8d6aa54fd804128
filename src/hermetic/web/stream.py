"""A turn's events as a response that stays open: rules 1 to 10 of the stream (docs/streams.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import trio
from quart import Response, request

from hermetic.protocol.events import Reset, encode
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
            while True:
                data: bytes | None = None
                with trio.move_on_after(stream.heartbeat_s):
                    data = await reader.read()
                if data is None:
                    yield HEARTBEAT + _ping(reader) if ping else HEARTBEAT
                elif data:
                    yield first + data
                    first = b""
                else:
                    return
    finally:
        with trio.CancelScope(shield=True):
            await supervisor.left(reader)
