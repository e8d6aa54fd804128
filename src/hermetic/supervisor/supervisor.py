"""Owns the turns: admits them, runs as many at once as the host allows, and finds them for whoever asks.

One nursery holds all turns, so a turn outlives the request that started it and nothing outlives the supervisor. A
session runs one turn at a time; others of the same session wait in order. At the start, what an earlier server left
behind is put right: turns that ran are `lost` with what they had said, turns that waited wait again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2
import msgspec
import outcome
import structlog
import trio

from hermetic import __version__
from hermetic.protocol import PROTOCOL_VERSION, api, commands, events, launch
from hermetic.protocol.errors import (
    Conflict,
    Draining,
    HermeticError,
    NotFound,
    SessionContinued,
    StorageError,
)
from hermetic.protocol.sse import Cursor
from hermetic.supervisor.acting import act, act_for
from hermetic.supervisor.audit import Act
from hermetic.supervisor.ballast import Ballast
from hermetic.supervisor.config import Config, Quotas, Trace, default_agent, show
from hermetic.supervisor.egress.model import open_upstream
from hermetic.supervisor.egress.serve import Egress, egress_of, serve_egress
from hermetic.supervisor.ending import BEFORE_START, BY_USER, SERVER_DIED, SERVER_STOPS, Ending, finish_of
from hermetic.supervisor.environment import base_environment, turn_environment, turn_options
from hermetic.supervisor.governor import Governor
from hermetic.supervisor.hub import Pulse, Reader, TenantFeed, TenantReader
from hermetic.supervisor.identities import Identities
from hermetic.supervisor.identity import LOCAL, OPERATOR, Caller
from hermetic.supervisor.ingest import Ingest
from hermetic.supervisor.launchers import Launch, Launchers
from hermetic.supervisor.metrics import Load, Metrics
from hermetic.supervisor.redact import secret_values
from hermetic.supervisor.run_turn import LiveTurn, Start
from hermetic.supervisor.sealing import Sealing, open_sealing
from hermetic.supervisor.secret_box import load_keys
from hermetic.supervisor.sessions import Sessions, refuse_continued
from hermetic.supervisor.store.interface import (
    Change,
    Entry,
    Session,
    Store,
    TurnRow,
    TurnSpec,
)
from hermetic.supervisor.store.sqlite import open_sqlite
from hermetic.supervisor.summary import (
    Fold,
    index_of_turn,
    provider_history,
    title_from,
    user_message,
)
from hermetic.supervisor.turn import Phase
from hermetic.supervisor.vault import Vault
from hermetic.supervisor.webui_state import write_session_file
from hermetic.supervisor.workspaces import check_attachments, check_message

if TYPE_CHECKING:
    from hermetic.supervisor.traces import Tracer

log = structlog.get_logger()

WEBUI_STATE_S = 5.0
"""For the web UI's file: a session's next turn waits for it, and a folder on a dead network must not hold that up."""
T = TypeVar("T")

RETRY_CONTINUED = 5
"""Tries to enqueue; each found that the session had gone on under another id, which takes a whole turn."""
REFUSALS_PER_MINUTE = 60
"""Refused logins in the audit log. Each is a write with an fsync, and anybody on the network can cause them."""
REPLAY_MAX = 100_000
"""Events of a tenant that a reader of all turns may be behind: some seconds of reading. Beyond, snapshots are quicker."""
STOP_S = 15.0
"""From the end of a turn's grace to its end, in a drain: killing, reaping and the last write take some seconds at worst."""


class Supervisor:
    """Use `open_supervisor`. All methods raise `HermeticError`s from protocol/errors.py."""

    def __init__(
        self,
        config: Config,
        store: Store,
        data: Path,
        nursery: trio.Nursery,
        sealing: Sealing,
        server_environ: Mapping[str, str],
        upstream: httpx2.AsyncHTTPTransport,
    ) -> None:
        self.config = config
        self.store = store
        self.data = data
        self.sealing = sealing
        self.seal = sealing.seal
        self.draining = trio.Event()
        self.pulse = Pulse(config.stream.heartbeat_s)
        self._tenant_feeds: dict[str, TenantFeed] = {}
        self.ingest = Ingest(config.stream.window_s)
        self.started_at = time.time()
        self._nursery = nursery
        self._server_environ = server_environ
        self._upstream = upstream
        self._live: dict[str, LiveTurn] = {}
        """Turns that have not ended, in order of arrival."""
        self._running: set[str] = set()
        self._settled: dict[str, trio.Event] = {}
        """Of each turn in `_live`: set when it has ended and all that follows its end is done."""
        self._arriving: dict[str, tuple[str, str]] = {}
        """Of turns that the store is being given: the tenant and the session's id."""
        self._ballast = Ballast(data / "ballast")
        self.launchers = Launchers(
            nursery,
            ready_s=config.turns.ready_s,
            turns_max=config.turns.launcher_turns_max,
            idle_max=config.turns.launchers_idle_max,
        )
        self.identities = Identities(store.identities, data)
        self.sessions = Sessions(config, store, self.identities, self._ballast)
        self.vault = Vault(store.secrets, load_keys(config.secrets, server_environ))
        self._governor = Governor(config, self.identities)
        self.metrics = Metrics(self._load)
        self.readers_cut: Callable[[], int] = lambda: 0
        """How many the web side has cut: it knows its connections."""
        self._tracer = _tracer(config.trace)
        self._refusals: tuple[float, int, int] = (-60.0, 0, 0)
        """The minute's begin, refused logins recorded in it, and those passed over since."""
        self._positions: dict[str, int] | None = None
        """Of the turns that wait, 1 for the next to start; None: not known since something has changed."""

    # --- turns ----------------------------------------------------------------------------------------------------

    async def start_turn(
        self, session_id: str, new: api.NewTurn, *, by: Caller, asked: dict[str, Any] | None = None
    ) -> api.TurnView:
        """Saves the user's message and starts the turn, or queues it. Durable on return. `asked` is kept with it."""
        if self.draining.is_set():
            raise Draining("the server is about to stop")
        self._ballast.check()
        act_for(by)
        message = check_message(new.message, self.config.limits.message_bytes_max)
        check_attachments(new.attachments)
        turn_id = secrets.token_hex(8)
        for _ in range(RETRY_CONTINUED):
            self._arriving[turn_id] = by.tenant, session_id
            try:
                return await self._enqueue(turn_id, message, new, asked or {}, by)
            except SessionContinued:  # by a turn that has ended since we looked
                continue
            finally:
                self._arriving.pop(turn_id, None)
        raise Conflict("the session keeps going on under other ids", hint="Send it again.")

    async def _enqueue(
        self, turn_id: str, message: str, new: api.NewTurn, asked: dict[str, Any], by: Caller
    ) -> api.TurnView:
        session = (await self.sessions.current(*self._arriving[turn_id])).session
        self._arriving[turn_id] = by.tenant, session.session_id
        self.sessions.check_names(session.agent, session.profile)
        workspace = await self.sessions.workspace(session.session_id, by=by)
        now = time.time()
        spec = TurnSpec(
            turn_id=turn_id,
            session_id=session.session_id,
            tenant=by.tenant,
            agent=session.agent,
            profile=session.profile,
            workspace=str(workspace),
            message=message,
            attachments=new.attachments,
            model=new.model or session.model,
            idempotency_key=new.idempotency_key,
            on_disconnect=new.on_disconnect,
            asked=asked,
            created_at=now,
        )
        enqueue = self.store.enqueue if new.on_busy == "queue" else self.store.enqueue_if_idle
        saved = user_message(message, new.attachments, turn_id=spec.turn_id, timestamp=int(now))
        turn_row, fresh = await enqueue(
            spec,
            saved,
            queue_max=self.config.turns.queue_max,
            change=_admission_change(spec, new.model),
            admit=await self._governor.admit(by.tenant),
            act=act("turn.start", turn_id, session=spec.session_id, agent=spec.agent, profile=spec.profile),
        )
        if not fresh:
            if turn_row.spec.message != message:
                raise Conflict(
                    "this idempotency key was used before with another message",
                    hint="Use a new key for a new message.",
                    turn_id=turn_row.spec.turn_id,
                )
            return self._view(turn_row)
        # No checkpoint since the store has it: a client that hangs up changes nothing. But a turn that ended in the same
        # commit, right after, may have been heard of first.
        spec = msgspec.structs.replace(spec, session_id=self._arriving[turn_id][1])
        turn_row = msgspec.structs.replace(turn_row, spec=spec)
        live = self._admit(turn_row)
        self._dispatch()
        if live.state.phase is Phase.QUEUED and spec.turn_id not in self._running:
            await self._whole(partial(self._announce_queued, live))
        return self._view(turn_row)

    async def _announce_queued(self, live: LiveTurn) -> None:
        await live.announce_queued(self._queue_position(live.turn_id) or 1)
        self._forget_ended(live)  # the store may have refused

    async def session_turns(self, session_id: str, *, by: Caller) -> list[api.TurnView]:
        await self.sessions.row(by.tenant, session_id)
        return [self._view(row) for row in await self.store.session_turns(by.tenant, session_id)]

    async def turns(self, *, by: Caller, limit: int) -> list[api.TurnView]:
        """Those that have not ended, oldest first, and then up to `limit` that have, newest first. Without snapshots."""
        live = [turn for turn in self._live.values() if turn.spec.tenant == by.tenant]
        rows = [row for turn in live if (row := await self.store.turn(turn.turn_id)) and row.ended_at is None]
        rows += await self.store.recent_turns(by.tenant, limit=limit)
        return [msgspec.structs.replace(self._view(row), snapshot=None) for row in rows]

    async def turn(self, turn_id: str, *, by: Caller) -> api.TurnView:
        return self._view(await self._turn(turn_id, by))

    async def cancel(self, turn_id: str, *, by: Caller) -> api.Accepted:
        """Durable and idempotent; accepted in every state."""
        act_for(by)
        row = await self._turn(turn_id, by)
        return await self._whole(partial(self._cancel, row))

    async def cancel_all(self, tenant: str) -> None:
        """All turns of a tenant that have not ended: it was suspended."""
        for live in [live for live in self._live.values() if live.spec.tenant == tenant]:
            await self._whole(partial(self._cancel_turn, live.turn_id))

    async def remove_tenant(self, tenant: str) -> None:
        """Also from memory: a later tenant of that name must not hear what this one's turns have said."""
        await self.identities.remove_tenant(tenant)
        self._tenant_feeds.pop(tenant, None)

    async def _cancel_turn(self, turn_id: str) -> None:
        if (row := await self.store.turn(turn_id)) is not None:
            await self._cancel(row)

    async def _cancel(self, row: TurnRow) -> api.Accepted:
        turn_id = row.spec.turn_id
        await self.store.request_cancel(turn_id, act=act("turn.cancel", turn_id, tenant=row.spec.tenant))
        if live := self._live.get(turn_id):
            await live.stop("cancelled", BEFORE_START if live.state.phase is Phase.QUEUED else BY_USER)
            if live.ended.is_set() and turn_id not in self._running:
                await self._write_webui_state(live.spec)
            self._forget_ended(live)
            return api.Accepted(turn_id=turn_id, state=live.state.name)
        return api.Accepted(turn_id=turn_id, state=row.state)

    async def approve(self, turn_id: str, approval_id: str, choice: events.Choice, *, by: Caller) -> api.ApprovalView:
        live = await self._live_turn(turn_id, by)
        settled = await self._whole(partial(live.approve, approval_id, choice))
        return api.ApprovalView(approval_id=approval_id, choice=settled)

    async def answer(self, turn_id: str, clarify_id: str, text: str, *, by: Caller) -> api.ClarifyView:
        live = await self._live_turn(turn_id, by)
        return api.ClarifyView(clarify_id=clarify_id, text=await self._whole(partial(live.answer, clarify_id, text)))

    async def steer(self, turn_id: str, message: str, *, by: Caller) -> api.Accepted:
        live = await self._live_turn(turn_id, by)
        await self._whole(partial(live.steer, check_message(message, self.config.limits.message_bytes_max)))
        return api.Accepted(turn_id=turn_id, state=live.state.name)

    async def _whole(self, do: Callable[[], Awaitable[T]]) -> T:
        """What `do` returns or raises; it runs to its end even when the caller is cancelled.

        A request is cancelled when its client hangs up. In the middle of a stop that would leave a turn `cancelling`
        with no timer to kill it; between the note in the store and the stop, a turn that runs on.
        """
        done = trio.Event()
        ended: list[outcome.Outcome[T]] = []

        async def run() -> None:
            try:
                ended.append(outcome.Value(await do()))
            except Exception as error:  # noqa: BLE001 (it is the caller's to see)
                ended.append(outcome.Error(error))
            finally:
                done.set()

        self._nursery.start_soon(run)
        await done.wait()
        if not ended:
            raise Draining("the server is about to stop")
        return ended[0].unwrap()

    async def _turn(self, turn_id: str, by: Caller) -> TurnRow:
        """A turn of another tenant is none."""
        row = await self.store.turn(turn_id)
        if row is None or row.spec.tenant != by.tenant:
            raise NotFound(f"there is no turn {turn_id[:40]}")
        return row

    async def _live_turn(self, turn_id: str, by: Caller) -> LiveTurn:
        act_for(by)
        if (live := self._live.get(turn_id)) and live.spec.tenant == by.tenant:
            return live
        row = await self._turn(turn_id, by)
        raise Conflict(f"this turn has ended: {row.state}", hint="Start a new turn.")

    def _view(self, row: TurnRow) -> api.TurnView:
        spec = row.spec
        live = self._live.get(spec.turn_id)
        state = live.state.name if live else row.state
        ended = live.state.phase is Phase.ENDED if live else row.ended_at is not None
        return api.TurnView(
            turn_id=spec.turn_id,
            session_id=spec.session_id,
            state=state,
            ended=ended,
            agent=spec.agent,
            profile=spec.profile,
            workspace=spec.workspace,
            message=spec.message,
            created_at=spec.created_at,
            started_at=live.started_at if live else row.started_at,
            ended_at=row.ended_at,
            queue_position=self._queue_position(spec.turn_id),
            last_seq=live.feed.last_seq if live else row.last_seq,
            pending=live.pending if live else [],
            seal=live.started.seal if live and live.started else None,
            pid=live.started.pid if live and live.started else None,
            used=api.Used(**msgspec.structs.asdict(live.meter.usage())) if live and live.meter else None,
            snapshot=live.fold.snapshot(spec.turn_id, state) if live else None,
            stderr=row.stderr,
            events_url=f"/v1/turns/{spec.turn_id}/events",
        )

    # --- the queue ------------------------------------------------------------------------------------------------

    def _admit(self, row: TurnRow) -> LiveTurn:
        live = LiveTurn(
            row.spec,
            store=self.store,
            config=self.config,
            prepare=self._prepare,
            on_storage_error=self._ballast.drop,
            on_continued=partial(self._continued, row.spec.tenant),
            is_free=partial(self.sessions.is_free, row.spec.tenant),
            launchers=self.launchers,
            sealing=self.sealing,
            on_said=self._said,
            ingest=self.ingest,
            last_seq=row.last_seq,
        )
        self._live[row.spec.turn_id] = live
        self._settled[row.spec.turn_id] = trio.Event()
        return live

    def _continued(self, tenant: str, before: str, after: str) -> None:
        """A session goes on under another id, and so do its turns that wait or are on their way to the queue."""
        for live in self._live.values():
            if (live.spec.tenant, live.spec.session_id) == (tenant, before):
                live.spec = msgspec.structs.replace(live.spec, session_id=after)
        for turn_id, session in self._arriving.items():
            if session == (tenant, before):
                self._arriving[turn_id] = tenant, after
        log.info("session_continued", before=before, after=after)

    def _dispatch(self) -> None:
        """Starts every queued turn that may run now: a place is free, its session is idle and its tenant's turn it is."""
        self._positions = None
        free = self.config.turns.concurrent_max - len(self._running)
        if free <= 0 or self.draining.is_set():
            return
        for turn_id in self._governor.next(*self._queue(), free):
            self._running.add(turn_id)
            self._nursery.start_soon(self._run, self._live[turn_id])

    def _queue(self) -> tuple[list[LiveTurn], list[LiveTurn]]:
        """→ the turns that wait, in order of arrival, and the others."""
        waiting: list[LiveTurn] = []
        others: list[LiveTurn] = []
        for live in self._live.values():
            waits = live.state.phase is Phase.QUEUED and live.turn_id not in self._running
            (waiting if waits else others).append(live)
        return waiting, others

    async def _run(self, live: LiveTurn) -> None:
        try:
            if self._tracer:
                self._nursery.start_soon(self._tracer.follow, live.spec, live.feed, self.store, live.feed.last_seq)
            await self._write_webui_state(live.spec)  # a page that is loaded again now shows what was asked
            await live.run()
            self.metrics.turn_ended(live, live.state.name, live.spec.created_at, time.time())
            await self._write_webui_state(live.spec)
        except Exception:  # run() ends every turn; if it fails in that, the others go on all the same
            log.exception("turn_lost_hold", turn_id=live.turn_id)
        finally:
            self._running.discard(live.turn_id)
            self._forget_ended(live)

    def _forget_ended(self, live: LiveTurn) -> None:
        if live.ended.is_set() and live.turn_id not in self._running:
            self._live.pop(live.turn_id, None)
            if (settled := self._settled.pop(live.turn_id, None)) is not None:
                settled.set()
            self._dispatch()

    async def _write_webui_state(self, spec: TurnSpec) -> None:
        """As good as it goes: a turn runs and ends, whatever becomes of the file. The web UI is one tenant's, `local`."""
        if self.config.webui.state_dir is None or spec.tenant != LOCAL:
            return
        state_dir, session_id = Path(self.config.webui.state_dir), spec.session_id
        try:
            view = await self.sessions.view(session_id, by=OPERATOR)
            with trio.move_on_after(WEBUI_STATE_S) as scope:
                await trio.to_thread.run_sync(write_session_file, state_dir, view, abandon_on_cancel=True)
            if scope.cancelled_caught:
                log.warning("webui_state_not_written", session_id=session_id, detail=f"not within {WEBUI_STATE_S:g} s")
        except (OSError, ValueError, HermeticError) as error:
            log.warning("webui_state_not_written", session_id=session_id, detail=str(error))

    def _queue_position(self, turn_id: str) -> int | None:
        if self._positions is None:
            order = self._governor.order(*self._queue())
            self._positions = {waiting: position for position, waiting in enumerate(order, start=1)}
        return self._positions.get(turn_id)

    async def _prepare(self, live: LiveTurn) -> Start:
        """What the child gets: an environment from nothing, and its Start."""
        spec = live.spec
        # It may have waited through a restart with another configuration.
        self.sessions.check_names(spec.agent, spec.profile)
        agent = self.config.agents[spec.agent]
        profile = self.config.profiles[spec.profile]
        home = self._home(spec, profile.home)
        await trio.to_thread.run_sync(lambda: home.mkdir(parents=True, exist_ok=True))
        session = (await self.sessions.row(spec.tenant, spec.session_id)).session
        earlier = await self.store.messages(spec.tenant, spec.session_id)
        history = earlier[: index_of_turn(earlier, spec.turn_id)]
        secret = await self.vault.open(spec.tenant, spec.profile)
        environment = base_environment(
            agent,
            profile,
            profile_name=spec.profile,
            home=str(home),
            server_environ=self._server_environ,
            python=agent.interpreter or sys.executable,
            agent_name=spec.agent,
            network_namespace=self.sealing.network,
            secrets=secret,
        )
        policy = await trio.to_thread.run_sync(
            lambda: self.sealing.policy(
                self.config, agent, profile, home=home, tenant_number=self.identities.tenant_number(spec.tenant)
            )
        )
        egress = egress_of(agent, self._server_environ)
        return Start(
            launch.Spawn(
                turn_id=spec.turn_id,
                workspace=spec.workspace,
                environment=turn_environment(session_id=spec.session_id, workspace=spec.workspace),
            ),
            commands.Start(
                protocol=PROTOCOL_VERSION,
                turn_id=spec.turn_id,
                session_id=spec.session_id,
                message=spec.message,
                workspace=spec.workspace,
                history=provider_history(history),
                attachments=spec.attachments,
                agent=spec.agent,
                profile=spec.profile,
                adapter=agent.adapter,
                target=agent.target,
                python_path=agent.python_path,
                model=spec.model or agent.model,
                personality=session.personality,
                title=session.title,
                used=events.Usage(
                    input_tokens=session.input_tokens,
                    output_tokens=session.output_tokens,
                    estimated_cost=session.estimated_cost,
                ),
                options=turn_options(agent, spec.asked),
                frame_bytes_max=self.config.limits.frame_bytes_max,
                approval_s=self.config.turns.approval_s,
                grace_s=self.config.turns.grace_s,
            ),
            Launch(
                agent=spec.agent,
                profile=spec.profile,
                environment=environment,
                interpreter=agent.interpreter,
                cold=agent.start == "cold",
                preload=agent.preload,
                python_path=agent.python_path,
                standby=agent.standby,
                watch=hermes_files(home) if agent.adapter == "hermes" else [],
                policy=policy,
            ),
            secrets=secret_values(environment, secret),
            serve=partial(_serve, egress, self._upstream, spec.turn_id) if self.sealing.network else None,
        )

    def _home(self, spec: TurnSpec, configured: str | None) -> Path:
        """Of the profile; a configured one is the operator's alone, for what an agent keeps there is its tenant's."""
        if configured and spec.tenant == LOCAL:
            return Path(configured).expanduser()
        return self.identities.folder(spec.tenant) / "profiles" / spec.profile

    def is_queued(self, turn_id: str) -> bool:
        live = self._live.get(turn_id)
        return live is not None and live.state.phase is Phase.QUEUED

    # --- readers --------------------------------------------------------------------------------------------------

    async def reader(
        self, turn_id: str, cursor: Cursor | None, *, by: Caller
    ) -> tuple[Reader, events.Reset | None] | None:
        """A reader after `cursor`. None: the turn has ended and the cursor has seen all of it.

        A cursor that is not one of this turn's (another turn's, or from the future; seq -1 stands for unreadable) gives
        a `Reset` with a snapshot, and a reader after it.
        """
        live = self._live.get(turn_id)  # before the row: a turn that is not live now has its end in the row
        row = await self._turn(turn_id, by)
        if live:
            beside = self._tenant_feeds[by.tenant].readers if by.tenant in self._tenant_feeds else 0
            self._governor.check_streams(by.tenant, self._live.values(), more=beside)
        last_seq = live.feed.last_seq if live else row.last_seq
        after = cursor.seq if cursor else 0
        feed = live.feed if live else None
        if cursor is None or (cursor.turn_id == turn_id and 0 <= after <= last_seq):
            if after == last_seq and (live is None or live.ended.is_set()):
                return None
            return Reader(turn_id, after, feed, self.store), None
        if cursor.turn_id != turn_id:
            reason = f"the cursor belongs to another turn than {turn_id}"
        else:
            reason = "a snapshot was asked for, or the cursor is not one that this turn has given out"
        fold = live.fold if live else await self._fold_journal(turn_id)
        snapshot = fold.snapshot(turn_id, live.state.name if live else row.state)
        return Reader(turn_id, snapshot.seq, feed, self.store), events.Reset(reason=reason, snapshot=snapshot)

    async def wait_events(self, turn_id: str, after: int, *, by: Caller, wait_s: float, bytes_max: int) -> list[Entry]:
        """The journal's next events after `after`; waits up to `wait_s` for the first. Empty: there was none.

        Does not wait for a turn that has ended, nor for one that stays queued while the server drains.
        """
        await self._turn(turn_id, by)
        live = self._live.get(turn_id)
        if live:
            with trio.move_on_after(wait_s):
                async with trio.open_nursery() as nursery:

                    async def leave_when_draining() -> None:
                        await self.draining.wait()
                        if turn_id not in self._running:
                            nursery.cancel_scope.cancel()

                    nursery.start_soon(leave_when_draining)
                    await live.feed.wait_news(after)
                    nursery.cancel_scope.cancel()
        entries = await self.store.read(turn_id, after, bytes_max=bytes_max)
        # The journal is a moment ahead of the feed, and a cursor from there would be one that nobody has given out.
        return [entry for entry in entries if entry.seq <= live.feed.last_seq] if live else entries

    async def wait_settled(self, turn_id: str) -> None:
        """Until all that follows a turn's end is done, the web UI's file included."""
        if (settled := self._settled.get(turn_id)) is not None:
            await settled.wait()

    async def tenant_reader(
        self, cursor: str | None, *, by: Caller, sessions: frozenset[str] | None = None
    ) -> tuple[TenantReader, events.ResetAll | None]:
        """A reader of all the caller's turns after `cursor`, an id that such a reader has given out. Any other, or none
        at all, gives a `ResetAll` with a snapshot of each turn that has not ended, and a reader after it."""
        tenant = by.tenant
        feed = await self._tenant_feed(tenant)
        self._governor.check_streams(tenant, self._live.values(), more=feed.readers)
        name, _, text = (cursor or "").partition(":")
        after = int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else -1
        if name == feed.name and feed.position - REPLAY_MAX <= after <= feed.position and after >= 0:
            return TenantReader(tenant, after, feed, self.store, sessions), None
        if not cursor:
            reason = "this is where it begins"
        elif name != feed.name or not 0 <= after <= feed.position:
            reason = "the cursor is not one that this stream has given out"
        else:
            reason = f"more than {REPLAY_MAX} events have been since"
        turns = [
            events.OpenTurn(session_id=live.spec.session_id, snapshot=live.fold.snapshot(live.turn_id, live.state.name))
            for live in self._live.values()
            if live.spec.tenant == tenant
            and live.state.phase is not Phase.ENDED
            and (sessions is None or live.spec.session_id in sessions)
        ]
        reader = TenantReader(tenant, feed.position, feed, self.store, sessions)
        return reader, events.ResetAll(reason=reason, turns=turns)

    async def _tenant_feed(self, tenant: str) -> TenantFeed:
        if tenant not in self._tenant_feeds:
            name = hashlib.sha256(f"{await self.store.name()} {tenant}".encode()).hexdigest()[:12]
            settings = self.config.stream

            def make(position: int) -> None:
                """In line with the appends: what comes later is published to it, what came earlier is behind it."""
                if tenant not in self._tenant_feeds:
                    self._tenant_feeds[tenant] = TenantFeed(
                        name, position, ring_bytes=settings.ring_bytes, ring_events=settings.ring_events
                    )

            await self.store.position(tenant, make)
        return self._tenant_feeds[tenant]

    def _said(self, live: LiveTurn, entries: list[Entry], position: int) -> None:
        if feed := self._tenant_feeds.get(live.spec.tenant):
            feed.publish(live.turn_id, live.spec.session_id, entries, position)

    def outlives_drain(self, reader: Reader | TenantReader) -> bool:
        """What it follows goes on after this server: a turn that waits, or all turns."""
        return isinstance(reader, TenantReader) or self.is_queued(reader.turn_id)

    async def left(self, reader: Reader) -> None:
        """A reader has gone; a turn that was to be cancelled with its last reader is.

        Not while the server drains: then it is we who cut the readers, and they come back to a turn that waits.
        """
        live = self._live.get(reader.turn_id)
        if (
            live
            and not self.draining.is_set()
            and live.spec.on_disconnect == "cancel"
            and live.feed.readers == 0
            and not live.feed.closed
        ):
            await self._whole(partial(self._cancel_turn, reader.turn_id))

    async def _fold_journal(self, turn_id: str) -> Fold:
        fold, after = Fold(), 0
        while entries := await self.store.read(turn_id, after):
            for entry in entries:
                fold.feed(entry)
            after = entries[-1].seq
        return fold

    # --- who did what ---------------------------------------------------------------------------------------------

    async def note_start(self) -> None:
        """The server has started with this configuration. It has no secrets; its hash tells one from another, and the
        log gets a head of the audit log, for who keeps the log elsewhere."""
        shown = hashlib.sha256(show(self.config).encode()).hexdigest()
        done = Act(action="server.start", actor="system", detail={"version": __version__, "configuration": shown})
        last = await self.store.audit.record(done)
        log.info("audit_head", head=last.head)

    async def note_refusal(self, why: str, *, client: str, key: str | None) -> None:
        """Somebody was refused whose key or token was no good. `key`: what it says to be. Who sends thousands does not
        fill the log: beyond REFUSALS_PER_MINUTE they are counted, and the next record says how many."""
        now = trio.current_time()
        if now - self._refusals[0] >= 60:
            self._refusals = now, 0, self._refusals[2]
        since, noted, passed_over = self._refusals
        if noted >= REFUSALS_PER_MINUTE:
            self._refusals = since, noted, passed_over + 1
            return
        self._refusals = since, noted + 1, 0
        done = Act(
            action="login.refused",
            actor="unknown",
            target=key or "",
            detail={"why": why, "client": client, "more": passed_over},
        )
        try:
            await self.store.audit.record(done)
        except StorageError as error:  # refused all the same
            log.warning("refusal_not_recorded", detail=error.message)

    # --- the host -------------------------------------------------------------------------------------------------

    def options(self, *, by: Caller) -> api.Choices:
        return api.Choices(
            agents=[
                api.AgentView(
                    name=name,
                    adapter=agent.adapter,
                    description=agent.description,
                    egress=agent.egress,
                    model_api=agent.model_api is not None,
                )
                for name, agent in self.config.agents.items()
            ],
            default_agent=default_agent(self.config),
            profiles=list(self.config.profiles),
            default_profile=self.config.default_profile,
            workspace_roots=self.identities.roots(by.tenant, self.config.workspaces.roots),
        )

    async def health(self, *, by: Caller) -> api.Health:
        """With the numbers of the caller's tenant."""
        own = {turn_id for turn_id, live in self._live.items() if live.spec.tenant == by.tenant}
        return api.Health(
            status="draining" if self.draining.is_set() else "ok",
            version=__version__,
            protocol=PROTOCOL_VERSION,
            level=self.seal.level,
            seal=self.seal,
            sessions=await self.store.count_sessions(by.tenant),
            active_turns=len(own & self._running),
            queued_turns=len(own - self._running),
            uptime_s=round(time.time() - self.started_at, 3),
            heartbeat_s=self.config.stream.heartbeat_s,
        )

    def usage(self, tenant: str) -> tuple[Quotas, int, int]:
        """→ its quotas, and its turns that run and that wait."""
        own = {turn_id for turn_id, live in self._live.items() if live.spec.tenant == tenant}
        return self._governor.quotas(tenant), len(own & self._running), len(own - self._running)

    def _load(self) -> Load:
        waiting, _ = self._queue()
        now = time.time()
        return Load(
            states=Counter(live.state.name for live in self._live.values()),
            oldest_wait_s=max((now - live.spec.created_at for live in waiting), default=0.0),
            readers=sum(live.feed.readers for live in self._live.values()),
            readers_cut=self.readers_cut(),
            writing=self.store.writing,
            seal_level=self.seal.level,
            uptime_s=now - self.started_at,
        )

    async def close_traces(self) -> None:
        if self._tracer:
            await self._tracer.close()

    async def drain(self) -> None:
        """Takes no more turns, gives running ones `drain_s` to finish, then stops them. Queued ones stay queued.

        Returns when all have ended, with what follows an end. One whose end the store refuses is waited for no longer than STOP_S beyond its
        grace: the next server ends it, from the journal.
        """
        self.draining.set()
        self.pulse.wake_all()
        running = [live for live in self._live.values() if live.turn_id in self._running]
        with trio.move_on_after(self.config.server.drain_s):
            for live in running:
                await self.wait_settled(live.turn_id)
            return
        with trio.move_on_after(self.config.turns.grace_s + STOP_S):
            async with trio.open_nursery() as nursery:
                for live in running:
                    nursery.start_soon(live.stop, "cancelled", SERVER_STOPS)
            for live in running:
                await self.wait_settled(live.turn_id)
            return
        log.error("turns_left", turns=[live.turn_id for live in running if not live.ended.is_set()])

    async def recover(self) -> None:
        """Puts right what an earlier server left: see the module's first lines."""
        for row in await self.store.unended():
            if row.state == "queued" and not row.cancel_requested:
                self._admit(row)
                continue
            try:
                await self._recover_one(row)
            except StorageError:  # a disk that was full when the last server died is still full: this is what
                self._ballast.drop()  # the reserve is for
                await self._recover_one(row)
        self._dispatch()

    async def _recover_one(self, row: TurnRow) -> None:
        """Ends a turn whose server died, with what the journal has of it."""
        turn_id = row.spec.turn_id
        try:
            fold = await self._fold_journal(turn_id)
        except msgspec.MsgspecError:  # an event of another version: one turn must not keep the server from starting
            log.exception("turn_not_folded", turn_id=turn_id)
            fold = Fold()
        cancelled = BY_USER if row.epoch else BEFORE_START
        known = Ending(
            spec=row.spec,
            epoch=row.epoch,
            first_seq=row.last_seq + 1,
            verdict="cancelled" if row.cancel_requested else "lost",
            fold=fold,
            cause=cancelled if row.cancel_requested else SERVER_DIED,
        )
        await self.store.finish(finish_of(known, None, self.config.limits, time.time()))
        await self._write_webui_state(row.spec)
        log.warning("turn_recovered", turn_id=turn_id, state=known.verdict, events=row.last_seq)


def _tracer(config: Trace) -> Tracer | None:
    if config.url is None:
        return None
    from hermetic.supervisor.traces import open_tracer  # OpenTelemetry takes a fifth of a server's start to load

    return open_tracer(config)


async def _serve(
    egress: Egress,
    upstream: httpx2.AsyncHTTPTransport,
    turn_id: str,
    listeners: list[trio.SocketListener],
    tell: Callable[[events.EgressDenied], Awaitable[None]],
) -> None:
    await serve_egress(listeners, egress, transport=upstream, tell=tell, turn_id=turn_id)


def hermes_files(home: Path) -> list[str]:
    """A profile's own settings, which hermes-agent may read when it is imported."""
    return [str(home / name) for name in ("config.yaml", ".env")]


def _admission_change(spec: TurnSpec, model: str | None) -> Change:
    """What a new turn does to its session: its time, a title if it has none, the model if one was asked for."""
    named = title_from([{"role": "user", "content": spec.message}])

    def change(session: Session) -> Session:
        refuse_continued(session)
        return msgspec.structs.replace(
            session, title=session.title or named, model=model or session.model, updated_at=spec.created_at
        )

    return change


@asynccontextmanager
async def open_supervisor(
    config: Config, *, server_environ: Mapping[str, str] | None = None, insecure: bool = False
) -> AsyncIterator[Supervisor]:
    """A supervisor with its store under `config.server.data`, put right after whatever happened before.

    `insecure`: turns may run although nothing holds them. On exit running turns are drained. Raises `StorageError`,
    `HostError`.
    """
    data = Path(config.server.data).expanduser()
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageError(
            f"the data directory {data} cannot be made: {error.strerror}",
            hint="Point --data at a folder you can write.",
        ) from error
    async with (
        open_sqlite(data / "hermetic.db") as store,
        open_sealing(config, insecure=insecure) as sealing,
        open_upstream() as upstream,
        trio.open_nursery() as outer,
    ):
        nursery: trio.Nursery = await outer.start(_hold_turns)
        supervisor = Supervisor(
            config,
            store,
            data.resolve(),
            nursery,
            sealing,
            os.environ if server_environ is None else server_environ,
            upstream,
        )
        nursery.start_soon(supervisor.pulse.run)
        nursery.start_soon(supervisor.ingest.run)
        try:
            await supervisor.identities.load()
            await supervisor.note_start()
            await supervisor.recover()
            yield supervisor
        finally:
            with trio.CancelScope(shield=True):
                await supervisor.drain()
                await supervisor.close_traces()
            nursery.cancel_scope.cancel()


async def _hold_turns(task_status: trio.TaskStatus[trio.Nursery]) -> None:
    """A nursery that a cancel from outside does not reach: turns end by `drain`, never by losing their tasks."""
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            task_status.started(nursery)
            await trio.sleep_forever()
