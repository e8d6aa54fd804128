"""One turn, performed: the table of turn.py decides, this does it and reports what happened.

A turn's tasks (reading its events, its stderr, its keeper's reports; its timers) live in one nursery that closes over
everything the turn started. They meet at one lock: whoever holds it may step the machine, write the journal and publish,
so that events are journaled in the order in which they are published, one append at a time. What a user does takes the
same way in: journaled first, then told to the child.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import msgspec
import structlog
import trio

from hermetic.protocol import PROTOCOL_VERSION, commands, events, launch
from hermetic.protocol.control import KILL, TERMINATE, Exited, Spawned
from hermetic.protocol.errors import (
    Conflict,
    Fenced,
    HermeticError,
    NotFound,
    ProtocolError,
    StorageError,
)
from hermetic.protocol.framing import FrameDecoder, event_decoder
from hermetic.supervisor.acting import act
from hermetic.supervisor.audit import Act
from hermetic.supervisor.child import Child, open_child
from hermetic.supervisor.config import Config, limits_of
from hermetic.supervisor.ending import (
    OUR_MISTAKE,
    Cause,
    Ending,
    cause_of,
    finish_of,
    needs_earlier,
    new_id,
    record,
)
from hermetic.supervisor.hub import Feed
from hermetic.supervisor.ingest import Ingest
from hermetic.supervisor.launchers import Launch, Launchers
from hermetic.supervisor.meter import Meter
from hermetic.supervisor.quota import Unmeasurable, measure
from hermetic.supervisor.redact import Redactor
from hermetic.supervisor.sealing import Sealing
from hermetic.supervisor.store.interface import Entry, Record, Store, TurnSpec
from hermetic.supervisor.summary import Fold, index_of_turn
from hermetic.supervisor.turn import Action, Phase, TurnState, What, step

log = structlog.get_logger()

READ_BYTES = 64 << 10
"""A pipe's capacity: more cannot be waiting."""
COMMANDS_MAX = 100
"""Commands that wait for a child that does not read; a person does not type faster."""
PENDING_MAX = 100
"""Approvals and clarifications open at once; a person can answer one at a time."""
CALLS_MAX = 10_000
"""Tool calls of one turn. At its end they become one message and one set of cards, which takes all turns' time: some 50
microseconds each. Three calls a second for an hour stay below; a loop in an agent does not."""
EOF_S = 2.0
"""From the death of the tree to the end of its pipes. Without a PID namespace a stray writer may hold one open."""
LIMITS_S = 1.0
"""Between two looks at what a turn uses: what the kernel has enforced is named that much later at most."""
QUOTA_PART = 0.05
"""Of one core, at most, goes into measuring one workspace: a large tree is measured less often."""
KERNEL_LIMITS = {"memory_bytes": "memory_bytes_max", "processes": "processes_max"}
"""Field of launch.Limits → key of the configuration."""
END_RETRY_S = 1.0
"""Between two tries to write a turn's end to a store that refuses."""


class Start(msgspec.Struct, frozen=True):
    """What the supervisor has decided about a turn's child before it is started."""

    spawn: launch.Spawn
    command: commands.Start
    launch: Launch
    """What its launcher is born with."""
    secrets: list[str] = []
    """Values of the environment that the turn must not be heard to say."""
    serve: (
        Callable[[list[trio.SocketListener], Callable[[events.EgressDenied], Awaitable[None]]], Awaitable[None]] | None
    ) = None
    """Serves the listeners inside the turn's network, until it is cancelled."""


class LiveTurn:
    """A turn that has not ended: its state, what it has said so far, and the doors for what users do."""

    def __init__(
        self,
        spec: TurnSpec,
        *,
        store: Store,
        config: Config,
        prepare: Callable[[LiveTurn], Awaitable[Start]],
        on_storage_error: Callable[[], None],
        on_continued: Callable[[str, str], None],
        is_free: Callable[[str], Awaitable[bool]],
        launchers: Launchers,
        sealing: Sealing,
        on_said: Callable[[LiveTurn, list[Entry], int], None] = lambda live, entries, position: None,
        ingest: Ingest | None = None,
        last_seq: int = 0,
    ) -> None:
        """`on_continued(old, new)` is called when the turn's end has given its session a new id, `is_free` says
        whether a session may be called so."""
        self.spec = spec
        self.turn_id = spec.turn_id
        self.epoch = 0
        self.state = TurnState()
        self.fold = Fold()
        self.started: events.Started | None = None
        self.meter: Meter | None = None
        """Of the running child, where this host counts for each turn."""
        self.started_at: float | None = None
        self.feed = Feed(
            self.turn_id, last_seq, ring_bytes=config.stream.ring_bytes, ring_events=config.stream.ring_events
        )
        self.ended = trio.Event()
        """Set when the store has the end."""
        self._store = store
        self._config = config
        agent = config.agents.get(spec.agent)
        self._limits = limits_of(config, agent) if agent else config.limits
        self._prepare = prepare
        self._on_storage_error = on_storage_error
        self._on_continued = on_continued
        self._is_free = is_free
        self._launchers = launchers
        self._sealing = sealing
        self._on_said = on_said
        self._receive = ingest.receive if ingest else _receive
        self._lock = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._stack = AsyncExitStack()
        self._child: Child | None = None
        self._spawned: Spawned | None = None
        self._start: Start | None = None
        self._spawning = trio.CancelScope()
        self._reported = trio.Event()
        """Set when the keeper has reported, or cannot any more."""
        self._exited: Exited | None = None
        self._timer = trio.CancelScope()
        self._commands_in, self._commands_out = trio.open_memory_channel[commands.Command](COMMANDS_MAX)
        self._asked: dict[str, events.Approval | events.Clarify] = {}
        self._result: events.Result | events.Failed | None = None
        self._cause: Cause | None = None
        self.ready_at: float | None = None
        """When the child was ready for its Start."""
        self.first_event_at: float | None = None
        """When the journal had the child's first event after Ready."""
        self._redactor = Redactor([])
        self._stderr = bytearray()
        self._event_bytes = 0
        self._second = (0, 0)
        """The second of the clock in which the child spoke last, and the bytes of its events in it."""
        self._ready = False
        self._killing = False
        self._late = 0
        self._id_taken = False

    # --- doors: what users and the supervisor do ------------------------------------------------------------------

    @property
    def pending(self) -> list[events.Approval | events.Clarify]:
        """What waits for a person, oldest first."""
        return list(self._asked.values())

    def stderr_text(self) -> str:
        return self._stderr.decode("utf-8", "replace")

    async def stop(self, verdict: events.Verdict, cause: Cause) -> None:
        """End it with grace. Nothing happens if it is already stopping."""
        async with self._lock:
            if self.state.verdict is None:
                self._cause = cause
            await self._happen(What.STOP, verdict)

    async def approve(self, approval_id: str, choice: events.Choice, by: str = "user") -> events.Choice:
        """Journals the answer, then tells the child. → the answer that counts.

        Raises `NotFound`, and `Conflict` when it has been answered otherwise before.
        """
        async with self._lock:
            if approval_id not in self._asked:
                self._settled(approval_id, choice)
                return choice
            asked = self._asked[approval_id]
            if not isinstance(asked, events.Approval):
                raise NotFound(f"{approval_id} is a question, not an approval", hint="Use …/clarifications/{id}.")
            self._refuse_when_stopping()
            if choice != "deny" and choice not in asked.choices:
                raise Conflict(f"this approval offers only {', '.join(asked.choices)}")
            await self._user_did(msgspec.convert(
                {"event": "approval_resolved", "approval_id": approval_id, "choice": choice, "by": by},
                events.ApprovalResolved,
            ), commands.Approve(approval_id=approval_id, choice=choice), approval_id,
                act("turn.approve", self.turn_id, approval=approval_id, choice=choice) if by == "user" else None,
            )  # fmt: skip
            return choice

    async def answer(self, clarify_id: str, text: str, by: str = "user") -> str:
        """The same for a clarification."""
        async with self._lock:
            if clarify_id not in self._asked:
                self._settled(clarify_id, text)
                return text
            if not isinstance(self._asked[clarify_id], events.Clarify):
                raise NotFound(f"{clarify_id} is an approval, not a question", hint="Use …/approvals/{id}.")
            self._refuse_when_stopping()
            await self._user_did(msgspec.convert(
                {"event": "clarify_resolved", "clarify_id": clarify_id, "text": text, "by": by}, events.ClarifyResolved
            ), commands.Answer(clarify_id=clarify_id, text=text), clarify_id,
                act("turn.answer", self.turn_id, question=clarify_id) if by == "user" else None,
            )  # fmt: skip
            return text

    async def steer(self, text: str) -> None:
        async with self._lock:
            if self.state.phase not in (Phase.RUNNING, Phase.WAITING):
                raise Conflict(
                    f"a turn that is {self.state.name} cannot be steered", hint="Send it as the next message."
                )
            done = act("turn.steer", self.turn_id)
            await self._user_did(events.Steer(text=text), commands.Steer(text=text), done=done)

    def _settled(self, ask_id: str, answer: str) -> None:
        """Raises unless `ask_id` was answered so before."""
        settled = self.fold.answers.get(ask_id)
        if settled is None:
            raise NotFound(f"this turn has not asked {ask_id}")
        if settled != answer:
            raise Conflict(f"{ask_id} has been answered: {settled}", answer=settled)

    def _refuse_when_stopping(self) -> None:
        """Who has pressed stop does not want the command to run that somebody else approves a moment later."""
        if self.state.phase in (Phase.CANCELLING, Phase.ENDING):
            raise Conflict(f"a turn that is {self.state.name} takes no answers", hint="Start a new turn.")

    async def _user_did(
        self,
        event: events.SupervisorEvent,
        command: commands.Command,
        ask_id: str | None = None,
        done: Act | None = None,
    ) -> None:
        """`ask_id`: what is settled by it, from the moment that the journal has it, delivered or not. `done`: for the
        audit log."""
        if not await self._journal([record(event)], durable=True, done=done):
            raise StorageError("this could not be recorded, so the agent was not told; the turn is being ended")
        if ask_id is not None:
            del self._asked[ask_id]
            if not self._asked:
                await self._happen(What.ANSWERED)
        try:
            self._commands_in.send_nowait(command)
        except trio.WouldBlock:
            raise Conflict("the agent does not read its commands; it was recorded but not delivered") from None

    # --- the turn's life ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From the claim to the end. Whatever goes wrong inside ends the turn, never the supervisor."""
        try:
            async with self._stack:
                try:
                    async with trio.open_nursery() as self._nursery:
                        async with self._lock:
                            await self._claim()
                        await self.ended.wait()
                        self._nursery.cancel_scope.cancel()
                finally:
                    self._nursery = None
        except Exception:
            log.exception("turn_broke", turn_id=self.turn_id)
            async with self._lock:  # a door may be writing the journal in this moment
                if not self.ended.is_set():
                    self._cause = OUR_MISTAKE
                    await self._end(TurnState(Phase.ENDED, self.state.verdict or "failed"))

    async def announce_queued(self, position: int) -> None:
        async with self._lock:
            if self.state.phase is Phase.QUEUED:
                await self._journal([record(events.Queued(turn_id=self.turn_id, position=position))])

    async def _claim(self) -> None:
        if self.state.phase is not Phase.QUEUED:
            return  # stopped before its start
        self.started_at = time.time()
        try:
            claim = await self._store.claim(self.turn_id, started_at=self.started_at)
        except StorageError as error:
            self._on_storage_error()
            self._cause = cause_of(error)
            await self._happen(What.ABORT, "failed")
            return
        if claim is None:
            log.warning("turn_claimed_elsewhere", turn_id=self.turn_id)
            self.feed.publish([], last=True)
            self.ended.set()
            return
        self.epoch = claim.epoch
        await self._happen(What.CLAIMED)

    async def _happen(self, what: What, verdict: events.Verdict | None = None) -> None:
        """Steps the machine and performs what is due. The lock is held."""
        following, actions = step(self.state, what, verdict)
        if following.phase is not Phase.ENDED:
            self.state = following
        for action in actions:
            match action:
                case Action.SPAWN:
                    assert self._nursery
                    self._nursery.start_soon(self._start_child)
                case Action.SEND_START:
                    await self._send_start()
                case Action.TERM:
                    await self._terminate()
                case Action.KILL:
                    await self._kill()
                case Action.ARM_READY:
                    self._arm(self._config.turns.ready_s, "failed")
                case Action.ARM_EXIT:
                    self._arm(self._config.turns.exit_s)
                case Action.ARM_GRACE:
                    self._arm(self._config.turns.grace_s)
                case Action.DISARM:
                    self._timer.cancel()
                case Action.END:
                    await self._end(following)

    def _arm(self, seconds: float, verdict: events.Verdict | None = None) -> None:
        self._timer.cancel()
        self._timer = trio.CancelScope()
        if self._nursery:  # else the turn has broken, and run() is about to end it
            self._nursery.start_soon(self._time_out, seconds, self._timer, verdict)

    async def _time_out(self, seconds: float, scope: trio.CancelScope, verdict: events.Verdict | None) -> None:
        with scope:
            await trio.sleep(seconds)
            async with self._lock:
                if scope.cancel_called:
                    return
                if self.state.phase is Phase.STARTING:
                    self._cause = Cause(
                        f"the child did not say Ready within {seconds:g} s",
                        "no_ready",
                        hint="Look at the turn's stderr; if the host is slow, raise turns.ready_s.",
                    )
                with trio.CancelScope(shield=True):
                    await self._happen(What.TIMER, verdict)

    async def _start_child(self) -> None:
        """Has the child forked, and starts the tasks that listen to it. Without the lock: a launcher may have to be
        started first, and the turn may be stopped meanwhile."""
        assert self._nursery
        try:
            with self._spawning:
                self._start = await self._prepare(self)
                self._redactor = Redactor(self._start.secrets)
                self._child = await self._stack.enter_async_context(
                    open_child(self._launchers, self._start.launch, self._start.spawn)
                )
        except (HermeticError, OSError) as error:
            await self._abort("failed", error)
        if self._child is None:
            async with self._lock:
                await self._happen(What.EXITED)
            return
        if self.state.phase is Phase.CANCELLING:  # stopped in the moment in which it was forked
            await self._child.order(KILL)
        events_end, stderr_end = trio.Event(), trio.Event()
        self._nursery.start_soon(self._read_events, self._child, events_end)
        self._nursery.start_soon(self._read_stderr, self._child, stderr_end)
        self._nursery.start_soon(self._watch, self._child, events_end, stderr_end)
        self._nursery.start_soon(self._write_commands, self._child)
        self._nursery.start_soon(self._watch_wall_clock)
        if self._limits.workspace_bytes_max is not None:
            self._nursery.start_soon(self._watch_workspace, self._limits.workspace_bytes_max)

    async def _send_start(self) -> None:
        assert self._start and self._spawned
        self.ready_at = time.time()
        self.started = events.Started(
            turn_id=self.turn_id,
            session_id=self.spec.session_id,
            epoch=self.epoch,
            agent=self.spec.agent,
            profile=self.spec.profile,
            workspace=self.spec.workspace,
            pid=self._spawned.pid,
            seal=self._sealing.seal_of(self._spawned),
        )
        await self._journal([record(self.started)])
        self._commands_in.send_nowait(self._start.command)

    async def _terminate(self) -> None:
        assert self._cause
        announced = events.Cancelling(message=self._cause.message, grace_s=self._config.turns.grace_s)
        await self._journal([record(announced)], durable=True)
        if self._child is None:
            self._spawning.cancel()
        else:
            try:
                self._commands_in.send_nowait(commands.Cancel(reason=self._cause.message))
            except trio.WouldBlock:
                pass  # SIGTERM says the same
            await self._child.order(TERMINATE)

    async def _kill(self) -> None:
        if self._child is None:
            self._spawning.cancel()
        else:
            await self._child.order(KILL)
            if self._nursery and not self._killing:
                self._killing = True
                self._nursery.start_soon(self._child.kill_late)

    # --- tasks that listen ----------------------------------------------------------------------------------------

    async def _read_events(self, child: Child, end: trio.Event) -> None:
        decoder: FrameDecoder[events.ChildEvent] = event_decoder(self._limits.frame_bytes_max)
        broken: ProtocolError | None = None
        while data := await self._receive(child.events, READ_BYTES):
            # The keeper's report and the agent's Ready take two ways. Not under the lock: a keeper that never reports
            # must not hold up the timer that kills it.
            await self._reported.wait()
            if broken:
                continue  # the tree is being killed; read on so that it does not block
            try:
                frames = decoder.feed(data)
            except ProtocolError as error:
                broken, frames = error, error.extra["before"]
            if self._redactor:
                frames = self._redactor.frames(frames)
            try:
                await self._heard(frames)
            except ProtocolError as error:
                broken = error
            if broken:
                await self._abort("failed", broken)
        if not broken:
            try:
                decoder.close()
            except ProtocolError as error:
                async with self._lock:
                    self._cause = self._cause or cause_of(error)
            await self._heard(self._redactor.rest())
        end.set()
        await trio.sleep(self._config.turns.exit_s)
        async with self._lock:  # still alive, and nothing that it does can end the turn any more
            if self.state.phase in (Phase.STARTING, Phase.RUNNING, Phase.WAITING):
                self._cause = self._cause or cause_of(
                    ProtocolError("the agent closed its event stream without a result")
                )
                await self._happen(What.ABORT, "failed")

    async def _heard(self, frames: list[tuple[bytes, events.ChildEvent]]) -> None:
        """Events of the child, in order. Raises `ProtocolError`; what came before the fault is in the journal."""
        async with self._lock:
            records: list[Record] = []
            asked: list[events.Approval | events.Clarify] = []
            fault: ProtocolError | None = None
            over: str | None = None
            for frame, event in frames:
                if self._result is not None:
                    self._late += 1
                elif isinstance(event, events.Ready):
                    fault = await self._greeted(event)
                elif not self._ready:
                    fault = ProtocolError("the child sent an event before Ready")
                elif isinstance(event, events.Result | events.Failed):
                    self._result = event
                else:
                    over = self._count(len(frame))
                    if isinstance(event, events.Approval | events.Clarify):
                        fault = self._check_asked(event, asked)
                    if not fault:
                        records.append((events.event_name(event), frame))
                if fault or over:
                    break
            if await self._journal(records) and records and self.first_event_at is None:
                self.first_event_at = time.time()
            for event in asked:
                await self._ask(event)
            if fault:
                raise fault
            if self._result is not None:
                await self._finished(self._result)
            if over:
                await self._over_limit(over)
            elif len(self.fold.tool_calls) > CALLS_MAX:
                self._cause = self._cause or Cause(
                    f"the turn made more than {CALLS_MAX} tool calls",
                    "over_limit",
                    hint="Let the agent do less in one turn.",
                )
                await self._happen(What.ABORT, "over_limit")

    def _count(self, size: int) -> str | None:
        """One more event of `size` bytes; → the limit that it breaks."""
        now = int(trio.current_time())
        second, said = self._second
        self._second = (now, size + (said if second == now else 0))
        self._event_bytes += size
        if self._event_bytes > self._limits.event_bytes_max:
            return "event_bytes_max"
        return "event_bytes_per_s_max" if self._second[1] > self._limits.event_bytes_per_s_max else None

    async def _over_limit(self, name: str) -> None:
        """Ends the turn for it. The lock is held."""
        self._cause = self._cause or self._limit_cause(name)
        await self._happen(What.ABORT, "over_limit")

    def _limit_cause(self, name: str) -> Cause:
        did = "said" if name.startswith("event") else "used"
        return Cause(
            f"the turn {did} more than limits.{name} = {getattr(self._limits, name)}",
            "over_limit",
            hint="Let the agent do less in one turn, or ask the host to raise the limit.",
        )

    async def _finished(self, result: events.Result | events.Failed) -> None:
        if isinstance(result, events.Failed):
            await self._happen(What.FINISHED, "failed")
        elif result.interrupted and self.state.phase is not Phase.CANCELLING:
            self._cause = self._cause or Cause(
                "The agent was told to stop by something else than Hermetic.", "cancelled"
            )
            await self._happen(What.FINISHED, "cancelled")
        else:
            await self._happen(What.FINISHED, "done")

    async def _greeted(self, ready: events.Ready) -> ProtocolError | None:
        if self._ready:
            return ProtocolError("the child said Ready twice")
        if ready.protocol != PROTOCOL_VERSION:
            return ProtocolError(
                f"the child speaks version {ready.protocol} of the protocol, the server version {PROTOCOL_VERSION}",
                hint="Install the same version of hermetic in the agent's environment as in the server's.",
            )
        self._ready = True
        if self._spawned:
            await self._happen(What.READY)
        return None

    def _check_asked(
        self, event: events.Approval | events.Clarify, asked: list[events.Approval | events.Clarify]
    ) -> ProtocolError | None:
        ask_id = _ask_id(event)
        if ask_id in self.fold.answers or ask_id in self._asked or any(_ask_id(a) == ask_id for a in asked):
            return ProtocolError(f"the child used the id {ask_id[:80]} twice")
        if len(self._asked) + len(asked) >= PENDING_MAX:
            return ProtocolError(f"more than {PENDING_MAX} approvals or clarifications are open at once")
        asked.append(event)
        return None

    async def _ask(self, event: events.Approval | events.Clarify) -> None:
        assert self._nursery
        if not self._asked:
            await self._happen(What.ASKED)
        self._asked[_ask_id(event)] = event
        self._nursery.start_soon(self._expire, event)

    async def _expire(self, event: events.Approval | events.Clarify) -> None:
        await trio.sleep(max(0.0, min(self._config.turns.approval_s, event.expires_at - time.time())))
        try:
            if isinstance(event, events.Approval):
                await self.approve(event.approval_id, "deny", by="timeout")
            else:
                await self.answer(event.clarify_id, "", by="timeout")
        except (Conflict, NotFound):
            pass  # answered while we woke up

    async def _read_stderr(self, child: Child, end: trio.Event) -> None:
        kept = self._limits.stderr_bytes_max
        scrubber = self._redactor.scrubber() if self._redactor else None
        while data := await _receive(child.stderr, READ_BYTES):
            self._stderr += scrubber.feed(data) if scrubber else data
            if len(self._stderr) > 2 * kept:
                del self._stderr[: len(self._stderr) - kept]
        if scrubber:
            self._stderr += scrubber.close()
        end.set()

    async def _write_commands(self, child: Child) -> None:
        try:
            async for command in self._commands_out:
                await child.send(command)
        except trio.BrokenResourceError:
            pass  # the child has closed its stdin; its exit is reported elsewhere

    async def _watch(self, child: Child, events_end: trio.Event, stderr_end: trio.Event) -> None:
        while isinstance(report := await child.report(), Spawned):
            await self._look_at_the_seal(child, report)
            self._spawned = report
            self._reported.set()
        self._reported.set()
        lost = await child.wait_exited()
        self._exited = report or Exited(signal="SIGKILL")
        with trio.move_on_after(EOF_S):  # what it said before it died is still in the pipes
            await events_end.wait()
            await stderr_end.wait()
        async with self._lock:
            if lost:
                self._cause = self._cause or Cause(lost, "crashed", "host", "The server's log may say why.")
            if self._exited.refused:
                self._cause = self._cause or Cause(
                    f"the turn could not be sealed: {self._exited.refused}",
                    "seal",
                    "host",
                    "`hermetic doctor` says what this host can do.",
                )
                await self._happen(What.ABORT, "failed")
            broken = self._broken_limit(self._exited)
            if broken and self.state.verdict is None:
                self._cause = self._cause or self._limit_cause(broken)
            await self._happen(What.EXITED, "over_limit" if broken else None)

    async def _look_at_the_seal(self, child: Child, spawned: Spawned) -> None:
        """From outside, before the child is given its turn. What it needs of us inside its seal is begun."""
        assert self._start and self._nursery
        if broken := self._sealing.broken(spawned, self._start.launch.policy):
            async with self._lock:
                self._cause = self._cause or Cause(
                    f"the turn's seal does not hold: {', '.join(broken)}",
                    "seal",
                    "hermetic",
                    "The turn was not run. Please report this with what `hermetic doctor` prints.",
                )
                await self._happen(What.ABORT, "failed")
            return
        meter = self._sealing.meter(spawned)
        if meter.controllers:
            self.meter = meter
            self._nursery.start_soon(self._watch_groups, meter)
        if self._start.serve is not None and child.listeners:
            self._nursery.start_soon(self._start.serve, child.take_listeners(), self._tell)

    async def _tell(self, event: events.SupervisorEvent) -> None:
        async with self._lock:
            if self.state.phase is not Phase.ENDED:
                await self._journal([record(event)])

    def _broken_limit(self, exited: Exited) -> str | None:
        """The limit for which the kernel killed the agent, if it did."""
        if exited.signal == "SIGXFSZ":  # setrlimit(2)
            return "file_bytes_max"
        return KERNEL_LIMITS.get(exited.over_limit or "") if exited.signal == "SIGKILL" else None

    async def _watch_groups(self, meter: Meter) -> None:
        """Ends the turn when the kernel has had to enforce a limit on any of its processes, not the agent alone."""
        while (name := meter.enforced()) is None:
            await trio.sleep(LIMITS_S)
        async with self._lock:
            await self._over_limit(KERNEL_LIMITS[name])

    async def _watch_workspace(self, bytes_max: int) -> None:
        while True:
            began = trio.current_time()
            try:
                # Abandoned when the turn ends first: a tree without end must not hold it up.
                size = await trio.to_thread.run_sync(measure, self.spec.workspace, bytes_max, abandon_on_cancel=True)
            except Unmeasurable:
                size = bytes_max + 1
            except OSError as error:
                log.warning("workspace_not_measured", turn_id=self.turn_id, error=str(error))
                return
            if size > bytes_max:
                async with self._lock:
                    await self._over_limit("workspace_bytes_max")
                return
            await trio.sleep(max(LIMITS_S, (trio.current_time() - began) / QUOTA_PART))

    async def _watch_wall_clock(self) -> None:
        await trio.sleep(self._config.turns.wall_s)
        await self.stop(
            "timed_out",
            Cause(
                f"the turn ran longer than turns.wall_s = {self._config.turns.wall_s:g} s",
                "timed_out",
                hint="Ask for less in one turn, or ask the host to raise the limit.",
            ),
        )

    async def _abort(self, verdict: events.Verdict, error: HermeticError | OSError) -> None:
        async with self._lock:
            self._cause = self._cause or cause_of(error)
            await self._happen(What.ABORT, verdict)

    # --- the journal ----------------------------------------------------------------------------------------------

    async def _journal(self, records: list[Record], *, durable: bool = False, done: Act | None = None) -> bool:
        """Into the journal, then to the readers. A store that refuses ends the turn; its end is written when it can be.

        False: refused. The lock is held.
        """
        if not records:
            return True
        first_seq = self.feed.last_seq + 1
        append = self._store.append
        if durable:
            append = self._store.append_durable if done is None else partial(self._store.append_durable, act=done)
        try:
            with trio.CancelScope(shield=True):
                await append(self.turn_id, self.epoch, first_seq, records, partial(self._publish, first_seq, records))
        except (StorageError, Fenced) as error:
            if isinstance(error, StorageError):
                self._on_storage_error()
            self._cause = self._cause or cause_of(error)
            await self._happen(What.ABORT, "failed")
            return False
        return True

    def _publish(self, first_seq: int, records: list[Record], position: int, *, last: bool = False) -> None:
        """In the moment in which the journal has them, and in its order (store/interface.py, `Then`)."""
        entries = [Entry(first_seq + n, name, data) for n, (name, data) in enumerate(records)]
        for entry in entries:
            self.fold.feed(entry)
        self._on_said(self, entries, position)
        self.feed.publish(entries, last=last)

    # --- the end --------------------------------------------------------------------------------------------------

    async def _end(self, following: TurnState) -> None:
        """Writes the end in one step, then lets readers see it. Does not give up while the server lives.

        Whatever cannot be written in the usual way, for a reason that nobody has thought of, is left out of the next
        try: an end without an answer is better than none, and one turn's end must never be the server's.
        """
        verdict = following.verdict
        assert verdict
        refused = broke = False
        while True:
            try:
                with trio.CancelScope(shield=True):
                    await self._write_end(verdict, brief=refused, bare=broke)
                break
            except StorageError as error:
                refused = True
                self._on_storage_error()
                log.error("turn_end_not_written", turn_id=self.turn_id, error=error.message)
            except Fenced:
                log.warning("turn_fenced", turn_id=self.turn_id, epoch=self.epoch)
                self.feed.publish([], last=True)
                break
            except Conflict:  # the id that the agent gave its session was taken a moment ago
                self._id_taken = True
                continue
            except Exception:
                broke, verdict, self._cause = True, "failed", OUR_MISTAKE
                log.exception("turn_end_broke", turn_id=self.turn_id)
            await trio.sleep(END_RETRY_S)
        self.state = TurnState(Phase.ENDED, verdict)
        self.ended.set()

    async def _write_end(self, verdict: events.Verdict, *, brief: bool, bare: bool = False) -> None:
        """`bare`: something in it breaks us; nothing but the end itself is written."""
        if bare:
            self._result, self.fold, self._stderr = None, Fold(), bytearray()
        known = Ending(
            spec=self.spec,
            epoch=self.epoch,
            first_seq=self.feed.last_seq + 1,
            verdict=verdict,
            fold=self.fold,
            result=self._result,
            cause=self._redactor.value(self._cause) if self._redactor else self._cause,
            exited=self._exited,
            stderr=self.stderr_text(),
            late=self._late,
            id_taken=self._id_taken,
        )
        if (wanted := new_id(known)) is not None and not await self._is_free(wanted):
            known = msgspec.structs.replace(known, id_taken=True)
        if needs_earlier(known) and not known.id_taken:
            messages = await self._store.messages(self.spec.tenant, self.spec.session_id)
            known = msgspec.structs.replace(known, earlier=messages[: index_of_turn(messages, self.turn_id) + 1])
        row = await self._store.session(self.spec.tenant, self.spec.session_id)
        end = finish_of(known, row, self._limits, time.time(), brief=brief)

        def ended(position: int) -> None:
            if end.continue_as is not None:
                self._on_continued(self.spec.session_id, end.continue_as)
            self._asked.clear()
            self.state = TurnState(Phase.ENDED, verdict)  # before a reader can hear of it
            self.ended.set()
            self._publish(end.first_seq, end.records, position, last=True)

        await self._store.finish(end, ended)


async def _receive(stream: trio.abc.ReceiveStream, bytes_max: int) -> bytes:
    try:
        return bytes(await stream.receive_some(bytes_max))
    except trio.BrokenResourceError:
        return b""


def _ask_id(event: events.Approval | events.Clarify) -> str:
    return event.approval_id if isinstance(event, events.Approval) else event.clarify_id
