"""A reader meets every event once, in order, wherever its cursor stands and however the feed and the journal share it."""

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from hermetic.supervisor.hub import READ_BYTES_MAX, Feed, Reader
from hermetic.supervisor.store.interface import Entry


class Log:
    """A journal in a list."""

    def __init__(self):
        self.entries = []

    async def read(self, turn_id, after, *, bytes_max=0):
        await trio.lowlevel.checkpoint()
        return self.entries[after : after + 3]


def entry(seq, size=10):
    return Entry(seq, "token", b'{"event":"token","text":"%s"}' % (b"x" * size))


def seqs(data: bytes):
    return [int(line.rpartition(b":")[2]) for line in data.split(b"\n") if line.startswith(b"id: ")]


def publish(log, feed, count, *, size=10, last=False):
    """Journal first, then the feed."""
    new = [entry(feed.last_seq + n + 1, size) for n in range(count)]
    log.entries += new
    feed.publish(new, last=last)


async def read_all(reader):
    got = []
    with reader:
        while data := await reader.read():
            got += seqs(data)
    return got


@given(
    batches=st.lists(st.integers(1, 20), max_size=12),
    ring=st.integers(1, 30),
    after=st.integers(0, 60),
)
def test_every_event_after_the_cursor_once_and_in_order(batches, ring, after):
    async def main():
        log, feed = Log(), Feed("t", 0, ring_bytes=1 << 20, ring_events=ring)
        after_ = min(after, sum(batches))
        got = []

        async def read():
            got.extend(await read_all(Reader("t", after_, feed, log)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for count in batches:
                publish(log, feed, count)
                await trio.lowlevel.checkpoint()
            publish(log, feed, 1, last=True)
        assert got == list(range(after_ + 1, sum(batches) + 2))

    trio.run(main)


async def test_the_ring_holds_no_more_than_its_bounds():
    log, feed = Log(), Feed("t", 0, ring_bytes=1000, ring_events=5)
    publish(log, feed, 50)
    assert feed.since(45) is not None and feed.since(44) is None
    publish(log, feed, 3, size=600)
    assert feed.since(52) is not None and feed.since(51) is None


async def test_one_read_gives_about_a_socket_buffer():
    log, feed = Log(), Feed("t", 0, ring_bytes=1 << 30, ring_events=1 << 20)
    publish(log, feed, 100, size=10_000)
    data = await Reader("t", 0, feed, log).read()
    assert READ_BYTES_MAX <= len(data) < READ_BYTES_MAX + 20_000


async def test_a_cancelled_read_has_taken_nothing(autojump_clock):
    log, feed = Log(), Feed("t", 0, ring_bytes=1 << 20, ring_events=100)
    reader = Reader("t", 0, feed, log)
    with trio.move_on_after(1):
        await reader.read()
    publish(log, feed, 2)
    with trio.CancelScope() as scope:
        scope.cancel()
        await reader.read()
    assert seqs(await reader.read()) == [1, 2]


async def test_a_reader_of_an_ended_turn_reads_the_journal_to_its_end():
    log, feed = Log(), Feed("t", 0, ring_bytes=1 << 20, ring_events=100)
    publish(log, feed, 10, last=True)
    assert await read_all(Reader("t", 4, None, log)) == [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("readers", [1, 7])
async def test_a_feed_counts_its_readers(readers):
    feed = Feed("t", 0, ring_bytes=1, ring_events=1)
    opened = [Reader("t", 0, feed, Log()).__enter__() for _ in range(readers)]
    assert feed.readers == readers
    for reader in opened:
        reader.__exit__()
    assert feed.readers == 0
