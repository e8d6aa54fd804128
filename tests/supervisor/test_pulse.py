"""One timer for all heartbeats: who was silent for a heartbeat's time gets one, and nobody else."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from hermetic.supervisor.hub import TICKS, Pulse


class Ear:
    def __init__(self, pulse):
        self.pulse, self.heard_at, self.beats = pulse, 0, []

    def beat(self):
        self.beats.append(self.pulse.now)

    def wake(self):
        pass


@given(joins=st.lists(st.integers(0, 5 * TICKS), min_size=1, max_size=20))
def test_a_silent_reader_has_a_heartbeat_every_heartbeats_time(joins):
    pulse, ears = Pulse(1.0), {}
    for now in range(10 * TICKS):
        for n, join in enumerate(joins):
            if join == now:
                pulse.join(ears.setdefault(n, Ear(pulse)))
        pulse.tick()
    for n, join in enumerate(joins):
        assert ears[n].beats == list(range(join + TICKS, 10 * TICKS + 1, TICKS))


@given(writes=st.sets(st.integers(0, 200)))
def test_silence_is_counted_from_the_last_write(writes):
    pulse = Pulse(1.0)
    ear = Ear(pulse)
    pulse.join(ear)
    last = 0
    for now in range(300):
        if now in writes:
            ear.heard_at = last = now
        pulse.tick()
        if ear.beats and ear.beats[-1] == pulse.now:
            assert pulse.now - last == TICKS
            last = pulse.now
        assert pulse.now - last < TICKS


def test_who_has_left_is_forgotten():
    pulse = Pulse(1.0)
    ears = [Ear(pulse) for _ in range(3)]
    for ear in ears:
        pulse.join(ear)
    pulse.leave(ears[1])
    for _ in range(TICKS):
        pulse.tick()
    assert [len(ear.beats) for ear in ears] == [1, 0, 1]
    for ear in ears[::2]:
        pulse.leave(ear)
    assert not any(pulse._wheel)


async def test_nobody_to_beat_for_means_no_timer_at_all(autojump_clock):
    """The clock jumps only when every task waits, and only to a timer: with one it would jump to it for ever."""
    pulse = Pulse(0.001)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pulse.run)
        await trio.sleep(1000)
        assert pulse.now == 0
        ear = Ear(pulse)
        pulse.join(ear)
        await trio.sleep(0.0105)
        assert pulse.now == pytest.approx(10.5 * TICKS, abs=2)
        assert len(ear.beats) == 10
        pulse.leave(ear)
        await trio.sleep(10)
        stopped = pulse.now
        await trio.sleep(1000)
        assert pulse.now == stopped
        nursery.cancel_scope.cancel()
