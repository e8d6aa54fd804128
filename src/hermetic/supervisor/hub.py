"""One turn's events on their way to its readers.

Events are published here after the journal has them. A `Feed` keeps the newest as finished SSE bytes, encoded once for
all readers; a `Reader` is a cursor that pulls: it takes from the feed what the feed still has, and from the journal what
it has not. Because an event is in the journal before it is in the feed, and the feed is without holes, a reader that
moves from one to the other can neither miss an event nor meet one twice. Nothing is queued per reader, so a slow one
costs the turn nothing.

A reader that has caught up may park: it costs nothing then, no task wakes for it. The task that publishes hands it the
new bytes at once (`Parked.take`), and a reader that cannot take them goes on from its own cursor, in its own task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol, Self

import trio

from hermetic.protocol.sse import sse_frame
from hermetic.supervisor.store.interface import Entry, EventLog, Place

READ_BYTES_MAX = 64 << 10
"""What one read gives at most: a socket's usual send buffer, so that one read is one write."""
TICKS = 32
"""Of the pulse in one heartbeat: so that the heartbeats of ten thousand readers do not all fall into one moment."""


Sessions = frozenset[str] | None
"""The sessions whose turns a reader follows; None: all."""


class Parked(Protocol):
    """A reader that waits for what comes next. Both are called by whoever has news, and must not block or raise."""

    def take(self, data: bytes, seq: int) -> bool:
        """Here is everything up to `seq`. False: not taken, the reader's own task goes on; it is parked no longer."""

    def wake(self) -> None:
        """There is something to do that only its own task can."""


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
        self._parked: dict[Parked, None] = {}
        self._news = trio.Event()

    def publish(self, entries: Sequence[Entry], *, last: bool = False) -> None:
        """The journal has these. `last`: the turn has ended with them."""
        frames = [sse_frame(f"{self.turn_id}:{entry.seq}", entry.name, entry.data) for entry in entries]
        self._frames.extend(frames)
        self._held += sum(map(len, frames))
        if entries:
            self.last_seq = entries[-1].seq
        while len(self._frames) > self._ring_events or (self._held > self._ring_bytes and len(self._frames) > 1):
            self._held -= len(self._frames.popleft())
        self.closed = last
        if self._parked:
            self._tell(b"".join(frames))
        if self._news.statistics().tasks_waiting:
            self._news.set()
            self._news = trio.Event()

    def _tell(self, data: bytes) -> None:
        if data:
            for parked in [p for p in self._parked if not p.take(data, self.last_seq)]:
                del self._parked[parked]
        if self.closed:
            for parked in self._parked:
                parked.wake()
            self._parked.clear()

    def park(self, parked: Parked) -> None:
        """Only with a cursor at `last_seq`, and while the feed is not closed."""
        self._parked[parked] = None

    def unpark(self, parked: Parked) -> None:
        self._parked.pop(parked, None)

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

    endless = False

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

    @property
    def cursor(self) -> str:
        """The id of the last event that was given out."""
        return f"{self.turn_id}:{self.seq}"

    def park(self, parked: Parked) -> None:
        """Only when caught up."""
        assert self.feed
        self.feed.park(parked)

    def unpark(self, parked: Parked) -> None:
        if self.feed:
            self.feed.unpark(parked)

    def caught_up(self) -> bool:
        """Nothing is there that was not given out, and more will come."""
        return self.feed is not None and self.seq == self.feed.last_seq and not self.feed.closed

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


class TenantFeed:
    """What all turns of a tenant say, in the order of its journal, while anybody follows it.

    Like a `Feed` with positions for numbers; a reader of some sessions passes over the others' events.
    """

    def __init__(self, name: str, position: int, *, ring_bytes: int, ring_events: int) -> None:
        self.name = name
        """The first half of its cursors: another tenant's, or another database's, have another."""
        self.position = position
        self.readers = 0
        self._ring: deque[tuple[int, str, bytes]] = deque()
        self._ring_from = position
        """What comes after this position is in the ring."""
        self._held = 0
        self._ring_bytes = ring_bytes
        self._ring_events = ring_events
        self._parked: dict[Parked, Sessions] = {}

    def publish(self, turn_id: str, session_id: str, entries: Sequence[Entry], position: int) -> None:
        """The journal has these, the last of them at `position`."""
        self.position = position
        if not self.readers:
            self._ring.clear()
            self._held, self._ring_from = 0, position
            return
        first = position - len(entries) + 1
        news = [
            (at, session_id, tenant_frame(self.name, Place(at, turn_id, session_id, entry)))
            for at, entry in enumerate(entries, first)
        ]
        self._ring.extend(news)
        self._held += sum(len(frame) for _, _, frame in news)
        while self._ring and (len(self._ring) > self._ring_events or self._held > self._ring_bytes):
            self._ring_from, _, frame = self._ring.popleft()
            self._held -= len(frame)
        data = b"".join(frame for _, _, frame in news)
        for parked in [
            parked
            for parked, sessions in self._parked.items()
            if not parked.take(data if sessions is None or session_id in sessions else b"", position)
        ]:
            del self._parked[parked]

    def park(self, parked: Parked, sessions: Sessions) -> None:
        self._parked[parked] = sessions

    def unpark(self, parked: Parked) -> None:
        self._parked.pop(parked, None)

    def since(self, position: int, sessions: Sessions) -> tuple[bytes, int] | None:
        """Frames after `position`, about READ_BYTES_MAX of them, and how far they reach; None when it left the ring."""
        if position < self._ring_from:
            return None
        missed = []
        for news in reversed(self._ring):
            if news[0] <= position:
                break
            missed.append(news)
        frames: list[bytes] = []
        held = 0
        for at, session_id, frame in reversed(missed):
            if sessions is None or session_id in sessions:
                frames.append(frame)
                held += len(frame)
                if held >= READ_BYTES_MAX:
                    return b"".join(frames), at
        return b"".join(frames), self.position


class TenantReader:
    """A cursor into a tenant's journal; `sessions`: only theirs. Use as `with`."""

    endless = True

    def __init__(self, tenant: str, after: int, feed: TenantFeed, log: EventLog, sessions: Sessions) -> None:
        self.tenant = tenant
        self.seq = after
        """The position up to which everything was given out, or passed over."""
        self.feed = feed
        self._log = log
        self._sessions = sessions

    def __enter__(self) -> Self:
        self.feed.readers += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self.feed.readers -= 1

    @property
    def cursor(self) -> str:
        return f"{self.feed.name}:{self.seq}"

    def caught_up(self) -> bool:
        return self.seq == self.feed.position

    def park(self, parked: Parked) -> None:
        self.feed.park(parked, self._sessions)

    def unpark(self, parked: Parked) -> None:
        self.feed.unpark(parked)

    async def read(self) -> bytes:
        """Whole SSE events; empty when there were none for this reader in what was looked through."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if (found := self.feed.since(self.seq, self._sessions)) is not None:
            data, self.seq = found
            return data
        places, self.seq = await self._log.read_tenant(
            self.tenant, self.seq, self.feed.position, sessions=self._sessions, bytes_max=READ_BYTES_MAX
        )
        return b"".join(tenant_frame(self.feed.name, place) for place in places)


def tenant_frame(feed: str, place: Place) -> bytes:
    """One event with whose it is, as `TurnEvent` says."""
    at, turn_id, session_id, (seq, name, data) = place
    whose = b'{"event":"%b","turn_id":"%b","session_id":"%b","seq":%d,"data":' % (
        name.encode(), turn_id.encode(), session_id.encode(), seq
    )  # fmt: skip  # names and ids are plain (journal_rows.pack, SESSION_ID)
    return sse_frame(f"{feed}:{at}", name, whose + data + b"}")


class Beating(Protocol):
    """What the pulse watches over."""

    heard_at: int
    """The pulse's tick when something was last written to this reader."""

    def beat(self) -> None:
        """Nothing was written for a heartbeat's time."""

    def wake(self) -> None: ...


class Pulse:
    """One timer for the heartbeats of all readers, instead of one each.

    A wheel of ticks: a reader stands in the slot where its heartbeat would be due if nothing were written to it. When
    the slot comes up, who was written to since moves on to where it is due now; so each reader is looked at once in a
    heartbeat's time, and one that is busy costs no more than one that is idle.
    """

    def __init__(self, heartbeat_s: float) -> None:
        self.now = 0
        self._tick_s = heartbeat_s / TICKS
        self._wheel: list[dict[Beating, None]] = [{} for _ in range(TICKS + 1)]
        self._slots: dict[Beating, int] = {}
        self._somebody = trio.Event()

    def join(self, reader: Beating) -> None:
        reader.heard_at = self.now
        self._put(reader, self.now + TICKS)
        self._somebody.set()

    def leave(self, reader: Beating) -> None:
        del self._wheel[self._slots.pop(reader)][reader]

    def wake_all(self) -> None:
        for reader in self._slots:
            reader.wake()

    def _put(self, reader: Beating, tick: int) -> None:
        slot = self._slots[reader] = tick % len(self._wheel)
        self._wheel[slot][reader] = None

    def tick(self) -> None:
        self.now += 1
        slot = self.now % len(self._wheel)
        due, self._wheel[slot] = self._wheel[slot], {}
        for reader in due:
            # The last write was within its tick, so after TICKS of them it is at most a heartbeat ago.
            if self.now - reader.heard_at >= TICKS:
                reader.heard_at = self.now
                reader.beat()
            self._put(reader, reader.heard_at + TICKS)

    async def run(self) -> None:
        """Ticks while there is anybody to tick for."""
        at = trio.current_time()
        while True:
            if not self._slots:
                self._somebody = trio.Event()
                await self._somebody.wait()
                at = trio.current_time()
            at += self._tick_s
            await trio.sleep_until(at)
            self.tick()
