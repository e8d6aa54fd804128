"""The runner contract: what a Hermes Web UI asks of the process that runs its agents. A run is a turn.

Its client knows JSON over HTTP and no streams. It asks for a run's events again and again, sleeps 5 s after an empty
answer and gives a call 60 s; so a call is held here until there is an event, and the text flows all the same.
Members that we do not know are kept with the turn, and nulls stand for what is not said.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
from quart import Blueprint, Response, request

from hermetic.protocol import api, events
from hermetic.protocol.errors import (
    ClientError,
    Conflict,
    HermeticError,
    NotSupported,
    SessionBusy,
)
from hermetic.protocol.sse import parse_cursor
from hermetic.supervisor.store.interface import Entry
from hermetic.supervisor.supervisor import Supervisor
from hermetic.supervisor.workspaces import check_message
from hermetic.web import uploads
from hermetic.web.auth import RUNNER, caller
from hermetic.web.seed_api import BUSY_HINT, whole_done
from hermetic.web.v1 import body, json_response, number

HOLD_S = 25.0
"""How long a call for events is held: under the 30 s after which proxies begin to cut."""
ANSWER_BYTES = 1 << 20
"""Events of one answer; the client reads it whole."""
WEB_UI = "Hermes-WebUI-RunnerClient"
"""How the web UI's client names itself."""
CONTROLS: Final = ["cancel", "approval", "clarify", "queue"]
ENDS: Final = ("done", "apperror", "cancel", "stream_end")


def status_of(state: events.StateName) -> api.RunStatus:
    """A turn's state in the words of the runner contract."""
    match state:
        case "queued" | "cancelling" | "cancelled":
            return state
        case "starting" | "running" | "waiting" | "ending":
            return "running"
        case "done":
            return "completed"
    return "failed"


def blueprint(supervisor: Supervisor) -> Blueprint:
    runs = Blueprint(RUNNER, __name__)

    @runs.post("/v1/runs")
    async def start_run() -> Response:
        try:
            return json_response(await _start(supervisor))
        except HermeticError as error:
            if not request.headers.get("User-Agent", "").startswith(WEB_UI):
                raise
            return json_response(_refusal(error))

    @runs.get("/v1/runs/<run_id>")
    async def get_run(run_id: str) -> Response:
        return json_response(_view(await supervisor.turn(run_id, by=caller())))

    @runs.get("/v1/runs/<run_id>/events")
    async def poll_run(run_id: str) -> Response:
        hold_s = number("wait_s", float, HOLD_S, 0, HOLD_S)
        turn = await supervisor.turn(run_id, by=caller())
        cursor = parse_cursor(request.args.get("cursor", ""), run_id)
        usable = cursor is not None and cursor.turn_id == run_id and cursor.seq <= turn.last_seq
        after = cursor.seq if cursor and usable else 0
        entries = await supervisor.wait_events(run_id, after, wait_s=hold_s, bytes_max=ANSWER_BYTES, by=caller())
        if any(entry.name in ENDS for entry in entries):
            await supervisor.wait_settled(run_id)  # the page reads the session's file next
        last = entries[-1].seq if entries else after
        return json_response(
            api.RunEvents(
                run_id=run_id,
                events=[await _event(supervisor, run_id, entry) for entry in entries],
                cursor=f"{run_id}:{last}",
            )
        )

    @runs.post("/v1/runs/<run_id>/cancel")
    async def cancel_run(run_id: str) -> Response:
        accepted = await supervisor.cancel(run_id, by=caller())
        return json_response(api.RunControl(ok=True, status=status_of(accepted.state), run_id=run_id))

    @runs.post("/v1/runs/<run_id>/approval")
    async def approve(run_id: str) -> Response:
        given = await body(api.GiveRunApproval, empty=True)
        approval_id = given.approval_id or _view(await supervisor.turn(run_id, by=caller())).pending_approval_id
        if approval_id is None:
            raise Conflict("nothing waits for an approval in this run")
        resolved = await supervisor.approve(run_id, approval_id, given.choice, by=caller())
        return json_response(api.RunControl(ok=True, status=resolved.choice, run_id=run_id))

    @runs.post("/v1/runs/<run_id>/clarifications/<clarify_id>/respond")
    async def answer(run_id: str, clarify_id: str) -> Response:
        await supervisor.answer(run_id, clarify_id, (await body(api.GiveRunAnswer)).response, by=caller())
        return json_response(api.RunControl(ok=True, status="answered", run_id=run_id))

    @runs.post("/v1/runs/<run_id>/messages")
    async def steer(run_id: str) -> Response:
        await supervisor.steer(run_id, (await body(api.GiveRunMessage)).message, by=caller())
        return json_response(api.RunControl(ok=True, status="accepted", run_id=run_id))

    @runs.get("/v1/sessions/<session_id>/goal")
    @runs.post("/v1/sessions/<session_id>/goal")
    async def goal(session_id: str) -> Response:
        raise NotSupported(
            "goals are not supported: no agent here would pursue one",
            hint="Say what you want in a message; each turn does what its message asks.",
        )

    return runs


async def _start(supervisor: Supervisor) -> api.RunStarted:
    kept = await body(dict[str, Any])
    try:
        asked = msgspec.convert(kept, api.NewRun)
    except msgspec.ValidationError as error:
        raise ClientError(f"the body does not fit: {error}", hint="See /openapi.json for this address.") from error
    check_message(asked.message, supervisor.config.limits.message_bytes_max)
    session = await _session(supervisor, asked)
    attachments = await _attachments(supervisor, session, asked.attachments or [])
    new = api.NewTurn(message=asked.message, attachments=attachments, model=_model(asked))
    turn = await supervisor.start_turn(session.session_id, new, asked=kept, by=caller())
    titled = await supervisor.sessions.find(session.session_id, by=caller())
    return api.RunStarted(
        run_id=turn.turn_id,
        stream_id=turn.turn_id,
        session_id=turn.session_id,
        status=status_of(turn.state),
        started_at=turn.created_at,
        title=titled.title if titled else "",
        active_controls=CONTROLS,
    )


def _refusal(error: HermeticError) -> dict[str, Any]:
    """What the web UI shows its user. Of an answer with another status than 200 it makes "Internal server error"; in one
    with 200 it takes these members, and answers its page with `_status`."""
    shape = {"error": f"{error.message}. {error.hint}", "code": error.code, "_status": error.status}
    return shape | ({"active_stream_id": turn_id} if (turn_id := error.extra.get("turn_id")) else {})


def _model(asked: api.NewRun) -> str | None:
    """`@provider:model`, as the web UI itself writes a model with its provider."""
    if asked.model and asked.provider and not asked.model.startswith("@"):
        return f"@{asked.provider}:{asked.model}"
    return asked.model or None


async def _session(supervisor: Supervisor, asked: api.NewRun) -> api.CompactSession:
    """The session as the run wants it: begun if it is not there, else with its workspace and profile changed.

    Raises `SessionBusy` before anything is changed.
    """
    wanted = {name: value for name in ("workspace", "profile") if (value := getattr(asked, name))}
    found = await supervisor.sessions.find_current(asked.session_id, by=caller()) if asked.session_id else None
    if found is None:
        try:
            return await supervisor.sessions.create(
                api.NewSession(**wanted), session_id=asked.session_id or None, by=caller()
            )
        except Conflict:  # another run of the same session was quicker
            found = await supervisor.sessions.find_current(asked.session_id or "", by=caller())
            if found is None:
                raise
    if found.active_turn_id:
        raise SessionBusy(
            f"run {found.active_turn_id} of this session has not ended", hint=BUSY_HINT, turn_id=found.active_turn_id
        )
    if any(getattr(found, name) != value for name, value in wanted.items()):
        return await supervisor.sessions.change(found.session_id, api.ChangeSession(**wanted), by=caller())
    return found


async def _attachments(supervisor: Supervisor, session: api.CompactSession, attachments: list[Any]) -> list[str]:
    """Names in the workspace. The web UI keeps uploads in its own state folder: from there, and from nowhere else, they
    are copied into the workspace, for an agent sees no other folder."""
    if not attachments:
        return []
    workspace = await supervisor.sessions.workspace(session.session_id, by=caller())
    state_dir = supervisor.config.webui.state_dir
    inbox = Path(state_dir) / "attachments" if state_dir else None
    return [await trio.to_thread.run_sync(_attachment, each, workspace, inbox) for each in attachments]


def _attachment(attachment: Any, workspace: Path, inbox: Path | None) -> str:
    """Blocks. Raises `ClientError` for a file that is in neither folder."""
    if isinstance(attachment, str):
        return attachment
    if not isinstance(attachment, Mapping):
        raise ClientError("an attachment is a name, or a mapping with a name and a path")
    name, text = str(attachment.get("name") or ""), str(attachment.get("path") or "")
    if not text or "\0" in text or not os.path.isabs(text):
        return text or name
    path = Path(os.path.realpath(text))
    if path.is_relative_to(workspace):
        return str(path.relative_to(workspace))
    if inbox is None or not path.is_relative_to(os.path.realpath(inbox)):
        raise ClientError(
            f"the attachment {name[:80]!r} is not in the session's workspace",
            hint="Set webui.state_dir to the web UI's state folder: then its uploads are copied into the workspace.",
        )
    kept = uploads.safe_name(name or path.name)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as source:
            uploads.place(source, workspace, kept)
    except OSError as error:
        raise ClientError(f"the attachment {name[:80]!r} cannot be read: {error.strerror}") from error
    return kept


def _view(turn: api.TurnView) -> api.RunView:
    status = status_of(turn.state)
    approvals = [ask.approval_id for ask in turn.pending if isinstance(ask, events.Approval)]
    questions = [ask.clarify_id for ask in turn.pending if isinstance(ask, events.Clarify)]
    return api.RunView(
        run_id=turn.turn_id,
        session_id=turn.session_id,
        status=status,
        terminal_state=status if status in ("completed", "failed", "cancelled") else None,
        state=turn.state,
        last_event_id=f"{turn.turn_id}:{turn.last_seq}" if turn.last_seq else None,
        pending_approval_id=approvals[0] if approvals else None,
        pending_clarify_id=questions[0] if questions else None,
        active_controls=[] if turn.ended else CONTROLS,
    )


async def _event(supervisor: Supervisor, run_id: str, entry: Entry) -> api.RunEvent:
    data = await whole_done(supervisor, entry.data, by=caller()) if entry.name == "done" else entry.data
    return api.RunEvent(event_id=f"{run_id}:{entry.seq}", seq=entry.seq, event=entry.name, payload=msgspec.Raw(data))
