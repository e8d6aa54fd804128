"""Events → server-sent events (WHATWG HTML, section 9.2), and cursors.

Rules kept here, each found by running real clients (docs/streams.md): LF only, an `id:` on every event, one line of
JSON per `data:`, every event written whole, a heartbeat of one comment line with no blank line after it, and no block
that dispatches nothing (so `retry:` rides in the first real event).

The id stands behind the data. A parser should take it up when the event is whole, but @microsoft/fetch-event-source does
so on the line itself: were the id first, a connection cut inside the data would cost that reader the event.
"""

from __future__ import annotations

from typing import NamedTuple

HEARTBEAT = b":\n"
"""One comment line. A blank line after it would dispatch a phantom event in several clients."""


class Cursor(NamedTuple):
    """Where a reader stands: everything up to and with event `seq` of `turn_id` has been seen."""

    turn_id: str
    seq: int

    def __str__(self) -> str:
        return f"{self.turn_id}:{self.seq}"


def parse_cursor(text: str, turn_id: str) -> Cursor | None:
    """`<turn>:<seq>` or a bare `<seq>` of the turn at hand; None when it is neither."""
    turn, colon, seq = text.strip().rpartition(":")
    if not (seq.isascii() and seq.isdigit() and len(seq) <= 18):
        return None
    return Cursor(turn if colon else turn_id, int(seq))


def sse_frame(event_id: str, name: str, data: bytes, retry_ms: int | None = None) -> bytes:
    """One event as it goes out. `data` is one line of JSON."""
    retry = b"" if retry_ms is None else b"retry: %d\n" % retry_ms
    return b"%sevent: %s\ndata: %s\nid: %s\n\n" % (retry, name.encode(), data, event_id.encode())
