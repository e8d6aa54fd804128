"""A child that plays a script, a store that refuses at times, and what must be true of every turn that has ended."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, suppress

import msgspec
import trio
from trio.testing import memory_stream_one_way_pair

from hermetic.protocol import PROTOCOL_VERSION, commands, events, launch
from hermetic.protocol.control import KILL, TERMINATE, Exited, Spawned
from hermetic.protocol.errors import StorageError
from hermetic.protocol.framing import frame
from hermetic.supervisor.cgroups import Cgroups
from hermetic.supervisor.child import KILL_S
from hermetic.supervisor.config import Config
from hermetic.supervisor.hub import Reader
from hermetic.supervisor.launchers import Launch
from hermetic.supervisor.run_turn import LiveTurn, Start
from hermetic.supervisor.sealing import Sealing
from hermetic.supervisor.store.interface import Session, TurnSpec
from hermetic.testing import MemoryStore

READY = events.Ready(protocol=PROTOCOL_VERSION, pid=2, python="3")
TERMINAL = ("done", "apperror", "cancel")


class ScriptedChild:
    """Stands for `hermetic.supervisor.child.Child`. `script`: pairs of a delay in seconds and what is done then:
    an event or bytes (said), a float (the agent exits with that code), or the name of a method."""

    def __init__(self, script=(), *, heeds_term=True, heeds_kill=True, reads=True, reports=True):
        self.script, self.heeds_term, self.heeds_kill, self.reads = script, heeds_term, heeds_kill, reads
        self.says, self.events = memory_stream_one_way_pair()
        self.prints, self.stderr = memory_stream_one_way_pair()
        self._reports_in, self._reports = trio.open_memory_channel(10)
        if reports:
            self._reports_in.send_nowait(Spawned(pid=7, init_pid=6))
        self.heard: list[commands.Command] = []
        self.orders: list[bytes] = []
        self.dead = trio.Event()
        self.lost = False

    async def play(self):
        for delay, act in self.script:
            await trio.sleep(delay)
            if self.dead.is_set():
                return
            if isinstance(act, float):
                self.die(Exited(exit_code=int(act)))
            elif isinstance(act, str):
                getattr(self, act)()
            else:
                try:
                    await self.says.send_all(act if isinstance(act, bytes) else frame(act))
                except trio.ClosedResourceError:
                    pass

    def close_events(self):
        self.says.close()

    def close_stderr(self):
        self.prints.close()

    def print_much(self):
        with suppress(trio.ClosedResourceError):
            self.stderr.put_data(b"x" * 200_000)

    def die(self, report=None, *, streams=True):
        if self.dead.is_set():
            return
        if report:
            self._reports_in.send_nowait(report)
        else:
            self.lost = True
        self._reports_in.close()
        if streams:
            self.says.close()
            self.prints.close()
        self.dead.set()

    def die_but_leave_a_writer(self):
        self.die(Exited(signal="SIGKILL"), streams=False)

    # --- what the supervisor calls ---

    async def report(self):
        try:
            return await self._reports.receive()
        except trio.EndOfChannel:
            return None

    async def send(self, command):
        if not self.reads:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        self.heard.append(command)

    async def order(self, byte):
        await trio.lowlevel.checkpoint()
        self.orders.append(byte)
        if byte == KILL and self.heeds_kill:
            self.die(Exited(signal="SIGKILL"))
        if byte == TERMINATE and self.heeds_term:
            self.die(Exited(exit_code=0))

    async def kill_late(self):
        await trio.sleep(KILL_S)
        self.die()

    async def wait_exited(self):
        await self.dead.wait()
        return "the launcher died" if self.lost else None


def opens(child, nursery):
    """In the place of `open_child`; the script is played in `nursery`."""

    @asynccontextmanager
    async def open_child(*_arguments):
        nursery.start_soon(child.play)
        try:
            yield child
        finally:
            child.die()

    return open_child


class RefusingStore(MemoryStore):
    """Refuses to write while `refuses`."""

    refuses = False

    def _refuse(self):
        if self.refuses:
            raise StorageError("the disk is full")

    async def append(self, *arguments):
        self._refuse()
        await super().append(*arguments)

    async def append_durable(self, *arguments, act=None):
        self._refuse()
        await super().append_durable(*arguments, act=act)

    async def finish(self, *arguments):
        self._refuse()
        await super().finish(*arguments)

    async def claim(self, *arguments, **named):
        self._refuse()
        return await super().claim(*arguments, **named)


async def new_turn(store, config=None, **spec):
    """A `LiveTurn` that is saved and waits."""
    config = config or Config()
    await store.create_session(Session(session_id="s"))
    spec = TurnSpec(
        turn_id="t", session_id="s", agent="demo", profile="default", workspace="/w", message="hello", **spec
    )
    await store.enqueue(spec, {"role": "user", "content": "hello", "turn_id": "t"}, queue_max=9)

    async def prepare(_live):
        await trio.lowlevel.checkpoint()
        start = commands.Start(protocol=PROTOCOL_VERSION, turn_id="t", session_id="s", message="hello", workspace="/w")
        return Start(launch.Spawn(turn_id="t", workspace="/w"), start, Launch(agent="demo", profile="default"))

    async def is_free(_: str) -> bool:
        return True

    return LiveTurn(
        spec,
        store=store,
        config=config,
        prepare=prepare,
        on_storage_error=lambda: None,
        on_continued=lambda before, after: None,
        is_free=is_free,
        launchers=None,
        sealing=Sealing(Cgroups([]), [], can_run=True),
    )


async def read_all(live, store, after=0):
    """→ all bytes that a reader gets."""
    read = b""
    with Reader(live.turn_id, after, live.feed, store) as reader:
        while data := await reader.read():
            read += data
    return read


async def check_ended(store, live=None, turn="t", session="s", read=None):
    """What is true of every turn that has ended; → `(its journal's names, its terminal event)`."""
    row = await store.turn(turn)
    journal = await store.read(turn, 0, bytes_max=1 << 40)
    names = [entry.name for entry in journal]
    assert [entry.seq for entry in journal] == list(range(1, len(journal) + 1))
    assert [name for name in names if name in TERMINAL] == [names[-2]] and names[-1] == "stream_end", names
    assert names.count("stream_end") == 1 and names.count("started") <= 1
    decoded = [msgspec.json.decode(entry.data) for entry in journal]
    assert row.state == decoded[-1]["state"] == decoded[-2]["state"]
    assert row.ended_at is not None
    asked = [e.get("approval_id") or e.get("clarify_id") for e in decoded if e["event"] in ("approval", "clarify")]
    settled = [e.get("approval_id") or e.get("clarify_id") for e in decoded if e["event"].endswith("_resolved")]
    assert sorted(asked) == sorted(settled), "each question is settled once"
    messages = await store.messages("local", session)
    assert messages[0]["role"] == "user"
    said = "".join(e["text"] for e in decoded if e["event"] == "token")
    if said:
        assert messages[-1]["role"] == "assistant" and messages[-1]["content"] == said
        assert messages[-1].get("partial", False) == (row.state != "done")
    if live:
        assert live.ended.is_set() and live.state.name == row.state and not live.pending
    if read is not None:
        assert [int(n) for n in re.findall(rb"(?m)^id: t:(\d+)$", read)] == list(range(1, len(journal) + 1))
        assert re.findall(rb"(?m)^data: (.*)$", read) == [entry.data for entry in journal]
    return names, decoded[-2]
