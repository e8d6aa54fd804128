"""Whatever a child does, whatever users do, whenever the store refuses: a turn ends once, whole, for everybody.

Random scripts on a clock that jumps, so that an hour of timers takes a millisecond.
"""

from __future__ import annotations

import time

import pytest
import trio
import trio.testing
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scripted_child import READY, RefusingStore, ScriptedChild, check_ended, new_turn, opens, read_all

from hermetic.protocol import events
from hermetic.protocol.errors import HermeticError
from hermetic.supervisor import run_turn
from hermetic.supervisor.config import Config, Limits, Turns
from hermetic.supervisor.ending import Cause

DELAYS = st.sampled_from([0.0, 0.0, 0.01, 0.5, 3.0, 40.0])
FAR = time.time() + 1e6

said = st.one_of(
    st.just(READY),
    st.sampled_from([events.Token(text="a"), events.Token(text="é"), events.Reasoning(text="r")]),
    st.builds(
        lambda n, far: events.Approval(approval_id=f"a{n}", command="ls", expires_at=FAR if far else 0.0),
        st.integers(1, 3),
        st.booleans(),
    ),
    st.builds(lambda n: events.Clarify(clarify_id=f"c{n}", question="?", expires_at=FAR), st.integers(1, 2)),
    st.sampled_from([events.Result(), events.Result(interrupted=True), events.Failed(message="no")]),
    st.sampled_from([b'{"event":"tok', b"garbage\n", b"\xff\n", b"x" * 70_000, b"\n", b'{"event":"done"}\n']),
    st.sampled_from([0.0, 3.0]),
    st.sampled_from(["close_events", "close_stderr", "print_much", "die_but_leave_a_writer", "die"]),
)
polite = st.sampled_from([[(0.0, READY)], [(0.01, READY), (0.0, events.Token(text="hi "))]])
scripts = st.builds(
    lambda greeting, rest: greeting + rest,
    st.one_of(polite, polite, st.just([])),
    st.lists(st.tuples(DELAYS, said), max_size=8),
)
children = st.fixed_dictionaries(
    {"heeds_term": st.booleans(), "heeds_kill": st.booleans(), "reads": st.booleans(), "reports": st.booleans()}
)
users = st.lists(
    st.tuples(DELAYS, st.sampled_from(["stop", "time_out", "approve", "deny", "answer", "steer", "announce", "read"])),
    max_size=6,
)
refusals = st.lists(st.tuples(DELAYS, DELAYS), max_size=2)
CONFIG = Config(
    turns=Turns(ready_s=30, wall_s=600, approval_s=100, grace_s=5, exit_s=5),
    limits=Limits(frame_bytes_max=65536, event_bytes_max=66_000),
)


@settings(max_examples=300, phases=[Phase.generate])  # a failure here is hours of virtual time: shrinking takes minutes
@given(script=scripts, how=children, acts=users, refused=refusals, starts_after=DELAYS)
def test_a_turn_ends_once_and_whole(script, how, acts, refused, starts_after):
    async def main():
        store = RefusingStore()
        live = await new_turn(store, CONFIG)
        child = ScriptedChild(script, **how)
        read = []

        async def reader():
            read.append(await read_all(live, store))

        async def user():
            for delay, act in acts:
                await trio.sleep(delay)
                try:
                    await do(act)
                except HermeticError:
                    pass

        async def do(act):
            match act:
                case "stop":
                    await live.stop("cancelled", Cause("stop", "cancelled", "client"))
                case "time_out":
                    await live.stop("timed_out", Cause("late", "timed_out"))
                case "approve" | "deny":
                    for ask in live.pending:
                        if isinstance(ask, events.Approval):
                            await live.approve(ask.approval_id, "once" if act == "approve" else "deny")
                case "answer":
                    for ask in live.pending:
                        if isinstance(ask, events.Clarify):
                            await live.answer(ask.clarify_id, "yes")
                case "steer":
                    await live.steer("left")
                case "announce":
                    await live.announce_queued(1)
                case "read":
                    nursery.start_soon(reader)

        async def disk():
            for after, lasts in refused:
                await trio.sleep(after)
                store.refuses = True
                await trio.sleep(lasts)
                store.refuses = False

        with pytest.MonkeyPatch.context() as patch, trio.fail_after(100_000):
            async with trio.open_nursery() as nursery:
                patch.setattr(run_turn, "open_child", opens(child, nursery))
                nursery.start_soon(reader)
                nursery.start_soon(user)
                nursery.start_soon(disk)
                await trio.sleep(starts_after)
                await live.run()
                assert live.ended.is_set()
        assert child.dead.is_set() or not child.orders
        for one in read:
            await check_ended(store, live, read=one)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
