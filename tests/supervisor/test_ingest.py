"""Pipes through one epoll: everything arrives in order, alone at once, and under load together."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from hermetic.supervisor.ingest import BURST, Ingest

WINDOW_S = 0.01


@asynccontextmanager
async def running(window_s=WINDOW_S):
    ingest = Ingest(window_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ingest.run)
        yield ingest
        nursery.cancel_scope.cancel()


@pytest.fixture
async def pipe():
    """→ (the end that is read, the number of the end that is written)."""
    reads, writes = os.pipe()
    async with trio.lowlevel.FdStream(reads) as stream:
        yield stream, writes
    try:
        os.close(writes)
    except OSError:
        pass


async def test_bytes_come_in_order_and_the_end_is_empty(pipe):
    stream, writes = pipe
    async with running() as ingest:
        got = []
        for n in range(300):
            os.write(writes, b"%d " % n)
            got.append(await ingest.receive(stream, 4096))
        assert b"".join(got) == b"".join(b"%d " % n for n in range(300))
        os.close(writes)
        assert await ingest.receive(stream, 4096) == b""


async def test_no_more_than_was_asked_for_is_read_at_once(pipe):
    stream, writes = pipe
    os.write(writes, b"0123456789")
    async with running() as ingest:
        assert [await ingest.receive(stream, 4) for _ in range(3)] == [b"0123", b"4567", b"89"]


async def test_who_speaks_alone_is_never_held_back(pipe, autojump_clock):
    """By the test's clock: only what waits for a timer lets it move."""
    stream, writes = pipe
    async with running() as ingest:
        for _ in range(200):
            os.write(writes, b"x")
            before = trio.current_time()
            await ingest.receive(stream, 10)
            assert trio.current_time() == before
            await trio.sleep(WINDOW_S)


async def test_a_burst_is_let_through_and_then_there_is_one_wake_up_in_a_window(pipe, autojump_clock):
    stream, writes = pipe
    async with running() as ingest:
        begun = trio.current_time()
        for _ in range(BURST):
            os.write(writes, b"x")
            await ingest.receive(stream, 10)
        assert trio.current_time() == begun
        for _ in range(50):
            os.write(writes, b"x")
            await ingest.receive(stream, 10)
        assert trio.current_time() - begun == pytest.approx(50 * WINDOW_S)
        await trio.sleep(BURST * WINDOW_S)
        begun = trio.current_time()
        for _ in range(BURST):
            os.write(writes, b"x")
            await ingest.receive(stream, 10)
        assert trio.current_time() == begun, "quiet gives the credit back"


async def test_under_load_what_came_in_one_window_is_read_in_one(autojump_clock):
    async with running() as ingest, trio.open_nursery() as nursery:
        ends = [os.pipe() for _ in range(20)]
        got = [b""] * len(ends)

        async def read(n, fd):
            async with trio.lowlevel.FdStream(fd) as stream:
                while data := await ingest.receive(stream, 10):
                    got[n] += data

        for n, (reads, _) in enumerate(ends):
            nursery.start_soon(read, n, reads)
        for _ in range(100):
            for _, writes in ends:
                os.write(writes, b"x")
                await trio.sleep(WINDOW_S / 20)
        woken = ingest.wakeups
        for _, writes in ends:
            os.close(writes)
    assert got == [b"x" * 100] * len(ends)
    assert woken <= 100 + 2 * BURST, "2,000 events"


async def test_a_cancelled_receive_has_taken_nothing_and_leaves_nothing_behind(pipe):
    stream, writes = pipe
    async with running() as ingest:
        for _ in range(3):
            with trio.move_on_after(0.01):
                await ingest.receive(stream, 10)
        os.write(writes, b"x")
        assert await ingest.receive(stream, 10) == b"x"


async def test_a_pipe_that_is_closed_and_another_of_its_number_are_two(autojump_clock):
    async with running() as ingest:
        for round_ in range(5):
            reads, writes = os.pipe()
            stream = trio.lowlevel.FdStream(reads)
            with trio.move_on_after(1):
                await ingest.receive(stream, 10)
            os.write(writes, b"%d" % round_)
            assert await ingest.receive(stream, 10) == b"%d" % round_
            await stream.aclose()
            os.close(writes)


async def test_a_stream_that_is_no_pipe_is_read_as_it_is():
    sends, receives = trio.testing.memory_stream_one_way_pair()
    async with running() as ingest:
        await sends.send_all(b"x")
        assert await ingest.receive(receives, 10) == b"x"
        await sends.aclose()
        assert await ingest.receive(receives, 10) == b""
