"""One turn's events on their way to its readers.

Events are published here after the journal has them. A `Feed` keeps the newest as finished SSE bytes, encoded once for
all readers; a `Reader` is a cursor that pulls: it takes from the feed what the feed still has, and from the journal what
it has not. Because an event is in the journal before it is in the feed, and the feed is without holes, a reader that
moves from one to the other can neither miss an event nor meet one twice. Nothing is queued per reader, so a slow one
costs the turn nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Self

import trio

from hermetic.protocol.sse import sse_frame
from hermetic.supervisor.store.interface import Entry, EventLog

READ_BYTES_MAX = 64 << 10
"""What one read gives at most: a socket's usual send buffer, so that one read is one write."""


class Feed:
    """The newest events of a live turn. `ring_bytes` and `ring_events` bound what it keeps."""

    def __init__(self, turn_id: str, last_seq: int, *, ring_bytes: int, ring_events: int) -> None:
        self.turn_id = turn_id
        self.last_seq = last_seq
        self.closed = False
        """True after the turn's last event."""
        self.readers = 0
        self._frames: deque[bytes] = deque()
        self._held = 0
        self._ring_bytes = ring_bytes
        self._ring_events = ring_events
        self._news = trio.Event()

    def publish(self, entries: Sequence[Entry], *, last: bool = False) -> None:
        """The journal has these. `last`: the turn has ended with them."""
        for entry in entries:
            frame = sse_frame(f"{self.turn_id}:{entry.seq}", entry.name, entry.data)
            self._frames.append(frame)
            self._held += len(frame)
            self.last_seq = entry.seq
        while len(self._frames) > self._ring_events or (self._held > self._ring_bytes and len(self._frames) > 1):
            self._held -= len(self._frames.popleft())
        self.closed = last
        self._news.set()
        self._news = trio.Event()

    def since(self, seq: int) -> list[bytes] | None:
        """Frames after `seq`, about READ_BYTES_MAX of them; None when the first of them has left the ring."""
        missing = self.last_seq - seq
        if missing > len(self._frames):
            return None
        frames: list[bytes] = []
        held = 0
        for index in range(len(self._frames) - missing, len(self._frames)):
            frames.append(self._frames[index])
            held += len(self._frames[index])
            if held >= READ_BYTES_MAX:
                break
        return frames

    async def wait_news(self, seq: int) -> None:
        """Until there is an event after `seq`, or the turn has ended."""
        while self.last_seq <= seq and not self.closed:
            await self._news.wait()


class Reader:
    """A cursor into one turn. Use as `with`: the feed counts its readers."""

    def __init__(self, turn_id: str, after: int, feed: Feed | None, log: EventLog) -> None:
        self.turn_id = turn_id
        self.seq = after
        """The last event that was given out."""
        self.feed = feed
        """None: the turn has ended and all that it said is in the journal."""
        self._log = log

    def __enter__(self) -> Self:
        if self.feed:
            self.feed.readers += 1
        return self

    def __exit__(self, *exc: object) -> None:
        if self.feed:
            self.feed.readers -= 1

    async def read(self) -> bytes:
        """Whole SSE events, at least one; waits for it. Empty: the turn has ended and everything was given out.

        A cancelled read has taken nothing: the cursor moves only on return.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self.feed:
                await self.feed.wait_news(self.seq)
                frames = self.feed.since(self.seq)
                if frames is not None:
                    self.seq += len(frames)
                    return b"".join(frames)
            entries = await self._log.read(self.turn_id, self.seq, bytes_max=READ_BYTES_MAX)
            if not entries:
                return b""
            self.seq = entries[-1].seq
            return b"".join(sse_frame(f"{self.turn_id}:{e.seq}", e.name, e.data) for e in entries)
