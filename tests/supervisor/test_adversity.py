"""Each of these once broke something, or would have: hostile children, clients that hang up, hosts that fail."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing
from scripted_child import READY, RefusingStore, ScriptedChild, check_ended, new_turn, opens

from hermetic.protocol import api, commands, events
from hermetic.protocol.control import KILL, TERMINATE
from hermetic.protocol.errors import Conflict, StorageError
from hermetic.supervisor import ballast, run_turn
from hermetic.supervisor.cgroups import Cgroups
from hermetic.supervisor.config import Config, Limits, Turns
from hermetic.supervisor.ending import Cause, session_change
from hermetic.supervisor.identity import OPERATOR
from hermetic.supervisor.run_turn import COMMANDS_MAX
from hermetic.supervisor.sealing import Sealing
from hermetic.supervisor.store.group_commit import GroupCommit
from hermetic.supervisor.store.interface import Session
from hermetic.supervisor.store.sqlite import open_sqlite
from hermetic.supervisor.supervisor import Supervisor
from hermetic.testing import MemoryStore

STOP = Cause("stop", "cancelled", "client")
FAR = 1e12


async def settle():
    await trio.testing.wait_all_tasks_blocked()


# --- one turn, on a clock that jumps ------------------------------------------------------------------------------


@asynccontextmanager
async def running(monkeypatch, child, store=None, config=None):
    """A turn that has begun to run; at the end it must end."""
    store = store or MemoryStore()
    live = await new_turn(store, config)
    async with trio.open_nursery() as nursery:
        monkeypatch.setattr(run_turn, "open_child", opens(child, nursery))
        nursery.start_soon(live.run)
        await settle()
        yield live
        with trio.fail_after(100_000):
            await live.ended.wait()


async def test_a_keeper_that_was_stopped_and_never_reports_is_killed(monkeypatch, autojump_clock):
    """An agent without a namespace of its own can SIGSTOP its keeper, and say Ready itself."""
    store = MemoryStore()
    child = ScriptedChild([(0, READY)], reports=False, heeds_term=False, heeds_kill=False)
    async with running(monkeypatch, child, store) as live:
        with trio.fail_after(100):
            await live.stop("cancelled", STOP)
    assert (await check_ended(store, live))[1]["event"] == "cancel"


@pytest.mark.parametrize("last", [events.Result(), events.Token(text="a")])
async def test_an_order_to_kill_that_has_no_effect_is_not_the_last_word(monkeypatch, autojump_clock, last):
    store = MemoryStore()
    child = ScriptedChild([(0, READY), (0, last)], heeds_term=False, heeds_kill=False)
    async with running(monkeypatch, child, store) as live:
        if not isinstance(last, events.Result):
            await live.stop("cancelled", STOP)
    await check_ended(store, live)
    assert child.orders[-1] == KILL


@pytest.mark.parametrize("before", [[], [(0, READY)], [(0, READY), (0, b'{"event":"tok')]])
async def test_a_child_that_closes_its_events_and_lives_on_is_ended(monkeypatch, autojump_clock, before):
    """It was waited for until the wall clock, an hour."""
    store = MemoryStore()
    async with running(monkeypatch, ScriptedChild([*before, (0, "close_events")]), store) as live:
        with trio.fail_after(20):
            await live.ended.wait()
    _, end = await check_ended(store, live)
    assert (end["state"], end["type"]) == ("failed", "protocol")


async def test_an_answer_to_a_child_that_does_not_read_counts_once(monkeypatch, autojump_clock):
    store = MemoryStore()
    asks = events.Approval(approval_id="a", command="ls", expires_at=FAR)
    child = ScriptedChild([(0, READY), (0, asks)], reads=False)
    async with running(monkeypatch, child, store) as live:
        with pytest.raises(Conflict):
            for _ in range(COMMANDS_MAX + 2):
                await live.steer("more")
        with pytest.raises(Conflict, match="not delivered"):
            await live.approve("a", "once")
        assert not live.pending and live.state.name == "running"
        assert await live.approve("a", "once") == "once"
        await live.stop("cancelled", STOP)
    await check_ended(store, live)


async def test_an_answer_that_the_journal_refuses_does_not_reach_the_child(monkeypatch, autojump_clock):
    store = RefusingStore()
    asks = events.Approval(approval_id="a", command="rm -r /", expires_at=FAR)
    child = ScriptedChild([(0, READY), (0, asks)], heeds_kill=False)
    async with running(monkeypatch, child, store) as live:
        store.refuses = True
        with pytest.raises(StorageError):
            await live.approve("a", "once")
        store.refuses = False
        await settle()
        assert not [c for c in child.heard if isinstance(c, commands.Approve)]
    await check_ended(store, live)


async def test_nothing_is_approved_after_stop(monkeypatch, autojump_clock):
    store = MemoryStore()
    asks = events.Approval(approval_id="a", command="rm -r /", expires_at=FAR)
    child = ScriptedChild([(0, READY), (0, asks)], heeds_term=False)
    async with running(monkeypatch, child, store) as live:
        await live.stop("cancelled", STOP)
        with pytest.raises(Conflict, match="cancelling"):
            await live.approve("a", "once")
    await check_ended(store, live)


async def test_no_stderr_is_kept_where_none_is_wanted(monkeypatch, autojump_clock):
    store = MemoryStore()
    config = Config(limits=Limits(stderr_bytes_max=0, stderr_lines=0))
    child = ScriptedChild([(0, READY), (0, "print_much"), (1, "print_much"), (1, 3.0)])
    async with running(monkeypatch, child, store, config) as live:
        pass
    assert (await store.turn("t")).stderr is None
    assert (await check_ended(store, live))[1]["stderr"] == []
    assert len(live.stderr_text()) == 0


async def test_what_breaks_us_at_the_end_costs_the_answer_and_not_the_end(monkeypatch, autojump_clock):
    """A result that some library cannot take, a host without threads: run() must not raise into the nursery of all."""
    store, tries = MemoryStore(), []
    finish = store.finish

    async def breaks(end, then=None):
        tries.append(end)
        if end.messages or len(tries) < 3:
            raise OverflowError("too big for anybody")
        await finish(end, then)

    monkeypatch.setattr(store, "finish", breaks)
    child = ScriptedChild([(0, READY), (0, events.Token(text="a")), (0, events.Result()), (0, 0.0)])
    async with running(monkeypatch, child, store) as live:
        pass
    entries = await store.read("t", 0)
    assert [e.name for e in entries] == ["started", "token", "apperror", "stream_end"]
    assert (await store.turn("t")).state == live.state.name == "failed"


async def test_a_loop_of_tool_calls_ends_the_turn_and_does_not_stop_the_others(monkeypatch, autojump_clock):
    """All with one id, and nothing between them: telling them apart took seconds of everybody's time."""
    store = MemoryStore()
    calls = b'{"event":"tool","name":"x","tid":"x"}\n' * (run_turn.CALLS_MAX + 100)
    child = ScriptedChild([(0, READY), (0, calls), (1000, 0.0)])
    async with running(monkeypatch, child, store) as live:
        pass
    _, end = await check_ended(store, live)
    assert end["type"] == "over_limit"
    call_ids = [call["id"] for call in (await store.messages("local", "s"))[-1]["tool_calls"]]
    assert len(set(call_ids)) == len(call_ids) > run_turn.CALLS_MAX


async def test_a_turn_that_breaks_while_it_is_stopped_ends_all_the_same(monkeypatch, autojump_clock):
    store = MemoryStore()
    append = store.append
    child = ScriptedChild([(0, READY), (5, events.Token(text="a"))], heeds_term=False)

    async def breaks(turn_id, epoch, first_seq, records):
        if records[0][0] == "token":
            raise ZeroDivisionError
        await append(turn_id, epoch, first_seq, records)

    async def slow(*arguments):
        await trio.sleep(1)
        await append(*arguments)

    monkeypatch.setattr(store, "append", breaks)
    monkeypatch.setattr(store, "append_durable", slow)

    async def stop():
        await trio.sleep(4.5)
        await live.stop("cancelled", STOP)

    async with running(monkeypatch, child, store) as live, trio.open_nursery() as nursery:
        nursery.start_soon(stop)
    await check_ended(store, live)


async def test_an_end_without_room_leaves_out_the_reasoning_too(monkeypatch, autojump_clock):
    store = RefusingStore()
    script = [(0, READY)] + [(0, events.Reasoning(text="r" * 50_000))] * 40 + [(0, events.Result(text="yes")), (9, 0.0)]
    finish = store.finish

    async def small_ones_only(end, then=None):
        if sum(len(data) for _, data in end.records) + len(msgspec.json.encode(end.messages)) > 300_000:
            raise StorageError("the disk is full")
        await finish(end, then)

    monkeypatch.setattr(store, "finish", small_ones_only)
    async with running(monkeypatch, ScriptedChild(script), store) as live:
        pass
    assert (await check_ended(store, live))[1]["event"] == "done"
    message = (await store.messages("local", "s"))[-1]
    assert message["content"].startswith("yes") and "reasoning" not in message


def test_costs_that_add_up_to_infinity_leave_a_session_that_can_be_read():
    """msgspec writes infinity as null, and then no list that has the session could be read any more."""
    session = Session(session_id="s")
    for _ in range(3):
        usage = events.Usage(estimated_cost=1.7e308, input_tokens=(1 << 53) - 1)
        session = session_change(0, usage, None)(session)
    again = msgspec.json.decode(msgspec.json.encode(session), type=Session)
    assert again == session and again.input_tokens == (1 << 53) - 1


def test_a_reserve_that_cannot_be_removed_is_no_error(tmp_path, monkeypatch):
    """A file system that has gone read-only: its error reached the nursery of all turns."""
    reserve = ballast.Ballast(tmp_path / "ballast")

    def read_only(*_arguments, **_named):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.unlink", read_only)
    reserve.drop()
    assert reserve.full


async def test_a_host_without_threads_fails_the_write_and_not_the_store(monkeypatch, tmp_path):
    """An agent's fork bomb takes the processes of the server's user, and threads are processes to the kernel."""
    commit = GroupCommit(lambda batch: None)

    async def no_thread(*_arguments, **_named):
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    async with open_sqlite(tmp_path / "db") as store, trio.open_nursery() as nursery:
        nursery.start_soon(commit.run)
        with monkeypatch.context() as patch:
            patch.setattr(trio.to_thread, "run_sync", no_thread)
            with pytest.raises(StorageError):
                await commit.write(lambda: None, durable=False)
            with pytest.raises(StorageError):
                await store.create_session(Session(session_id="s"))
            with pytest.raises(StorageError):
                await store.session("local", "s")
        await store.create_session(Session(session_id="s"))
        commit.close()


# --- a supervisor of fakes ----------------------------------------------------------------------------------------


@asynccontextmanager
async def supervisor_with(tmp_path, monkeypatch, *children, store=None, config=None):
    """`children` are started one after the other."""
    waiting = list(children)
    async with trio.open_nursery() as nursery:
        monkeypatch.setattr(run_turn, "open_child", lambda *_: opens(waiting.pop(0), nursery)())
        sealing = Sealing(Cgroups([]), [], can_run=True)
        yield Supervisor(
            config or Config(), store or MemoryStore(), tmp_path, nursery, sealing, os.environ, upstream=None
        )
        nursery.cancel_scope.cancel()


async def wait_state(supervisor, turn_id, *states):
    with trio.fail_after(10):
        while (await supervisor.turn(turn_id, by=OPERATOR)).state not in states:
            await trio.sleep(0.005)


async def cancelled_at_checkpoint(number, call):
    """Runs `call` as a request whose client hangs up at its `number`-th wait; → whether it got that far."""
    with trio.CancelScope() as scope:
        waits = 0

        class Count(trio.abc.Instrument):
            def before_task_step(self, task):
                nonlocal waits
                if task is request:
                    waits += 1
                    if waits == number:
                        scope.cancel()

        request = trio.lowlevel.current_task()
        instrument = Count()
        trio.lowlevel.add_instrument(instrument)
        try:
            await call()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancelled_caught


@pytest.mark.parametrize("number", range(1, 9))
async def test_a_stop_whose_client_hangs_up_is_a_stop_or_nothing(tmp_path, monkeypatch, number):
    """A page that is closed right after "Stop": the turn was left `cancelling` without a timer, for ever."""
    child = ScriptedChild([(0, READY)], heeds_term=False)
    config = Config(turns=Turns(grace_s=0.01))
    async with supervisor_with(tmp_path, monkeypatch, child, config=config) as supervisor:
        session = (await supervisor.sessions.create(api.NewSession(), by=OPERATOR)).session_id
        turn = (await supervisor.start_turn(session, api.NewTurn(message="hi"), by=OPERATOR)).turn_id
        await wait_state(supervisor, turn, "running")
        live = supervisor._live[turn]
        await cancelled_at_checkpoint(number, lambda: supervisor.cancel(turn, by=OPERATOR))
        await settle()
        if (await supervisor.store.turn(turn)).cancel_requested:
            with trio.fail_after(5):
                await live.ended.wait()
            assert TERMINATE in child.orders and KILL in child.orders
        else:
            assert live.state.name == "running"
            await supervisor.cancel(turn, by=OPERATOR)
        await wait_state(supervisor, turn, "cancelled")


@pytest.mark.parametrize("number", range(1, 12))
async def test_a_turn_whose_client_hangs_up_is_started_or_nothing(tmp_path, monkeypatch, number):
    child = ScriptedChild([(0, READY), (0, events.Result()), (0, 0.0)])
    store = MemoryStore()
    async with supervisor_with(
        tmp_path, monkeypatch, child, ScriptedChild([(0, READY), (0, 1.0)]), store=store
    ) as supervisor:
        session = (await supervisor.sessions.create(api.NewSession(), by=OPERATOR)).session_id
        await cancelled_at_checkpoint(
            number, lambda: supervisor.start_turn(session, api.NewTurn(message="hi", idempotency_key="k"), by=OPERATOR)
        )
        again = await supervisor.start_turn(session, api.NewTurn(message="hi", idempotency_key="k"), by=OPERATOR)
        await wait_state(supervisor, again.turn_id, "done")
        assert len(await store.session_turns("local", session)) == 1


async def test_a_queued_turn_that_ends_before_it_starts_does_not_block_its_session(tmp_path, monkeypatch):
    """The store refuses the `queued` event: the turn ends as failed, and was never forgotten."""
    store = RefusingStore()
    first = ScriptedChild([(0, READY)])
    third = ScriptedChild([(0, READY), (0, events.Result()), (0, 0.0)])
    async with supervisor_with(tmp_path, monkeypatch, first, third, store=store) as supervisor:
        session = (await supervisor.sessions.create(api.NewSession(), by=OPERATOR)).session_id
        running = (await supervisor.start_turn(session, api.NewTurn(message="one"), by=OPERATOR)).turn_id
        await wait_state(supervisor, running, "running")
        append, refused = store.append, []

        async def once(*arguments):
            if not refused:
                refused.append(True)
                raise StorageError("the disk is full")
            await append(*arguments)

        store.append = once
        monkeypatch.setattr(supervisor._ballast, "drop", lambda: None)
        await supervisor.start_turn(session, api.NewTurn(message="two", on_busy="queue"), by=OPERATOR)
        waits = (
            await supervisor.start_turn(session, api.NewTurn(message="three", on_busy="queue"), by=OPERATOR)
        ).turn_id
        await supervisor.cancel(running, by=OPERATOR)
        await wait_state(supervisor, waits, "done")
        assert not supervisor._live


async def test_a_drain_does_not_cancel_what_waits_when_it_cuts_the_readers(tmp_path, monkeypatch):
    config = Config(turns=Turns(concurrent_max=1))
    async with supervisor_with(tmp_path, monkeypatch, ScriptedChild([(0, READY)]), config=config) as supervisor:
        ids = []
        for _ in range(2):
            session = (await supervisor.sessions.create(api.NewSession(), by=OPERATOR)).session_id
            new = api.NewTurn(message="hi", on_disconnect="cancel")
            ids.append((await supervisor.start_turn(session, new, by=OPERATOR)).turn_id)
        reader, _ = await supervisor.reader(ids[1], None, by=OPERATOR)
        with reader:
            supervisor.draining.set()
        await supervisor.left(reader)
        assert not (await supervisor.store.turn(ids[1])).cancel_requested


async def test_a_drain_ends_though_the_journal_refuses(tmp_path, monkeypatch, autojump_clock):
    store = RefusingStore()
    live = await new_turn(store)
    async with supervisor_with(tmp_path, monkeypatch, ScriptedChild([(0, READY)]), store=store) as supervisor:
        supervisor._live["t"] = live
        supervisor._running.add("t")
        supervisor._nursery.start_soon(supervisor._run, live)
        await settle()
        store.refuses = True
        with trio.fail_after(100):
            await supervisor.drain()
    assert (await store.turn("t")).ended_at is None  # the next server's to recover


async def test_one_turn_that_cannot_be_read_does_not_keep_the_server_from_starting(tmp_path, monkeypatch):
    store = MemoryStore()
    live = await new_turn(store)
    await store.claim("t", started_at=1)
    await store.append("t", 1, 1, [("token", b'{"event":"of a newer version"}')])
    async with supervisor_with(tmp_path, monkeypatch, store=store) as supervisor:
        await supervisor.recover()
    assert (await store.turn("t")).state == "lost" and live


async def test_recovery_uses_the_reserve_when_the_disk_is_full(tmp_path, monkeypatch):
    store = RefusingStore()
    await new_turn(store)
    await store.claim("t", started_at=1)
    store.refuses = True
    async with supervisor_with(tmp_path, monkeypatch, store=store) as supervisor:
        monkeypatch.setattr(supervisor._ballast, "drop", lambda: setattr(store, "refuses", False))
        await supervisor.recover()
    assert (await store.turn("t")).state == "lost"


async def test_a_turn_that_waited_for_an_agent_that_is_gone_says_so(tmp_path, monkeypatch):
    store = MemoryStore()
    await store.create_session(Session(session_id="s"))
    from hermetic.supervisor.store.interface import TurnSpec

    spec = TurnSpec(turn_id="t", session_id="s", agent="gone", profile="default", workspace="/", message="hi")
    await store.enqueue(spec, {"role": "user", "content": "hi", "turn_id": "t"}, queue_max=9)
    async with supervisor_with(tmp_path, monkeypatch, store=store) as supervisor:
        await supervisor.recover()
        await wait_state(supervisor, "t", "failed")
    _, end = await check_ended(store)
    assert "gone" in end["message"] and end["type"] == "not_found"
