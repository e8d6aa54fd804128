"""The paths of the Hermes Web UI's own page, so that it, and what was written for it, works on this server.

Shapes are that application's: a session is in `session`, an error is `{error: …}` with the right status. A stream is a
turn. What differs, and why: a busy session is refused with 409 and the id of its stream, an approval that nobody waits
for is an error and not a success, and nothing that is sent is silently cut (docs/seed.md).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio
from msgspec import UNSET
from quart import Blueprint, Response, request
from werkzeug.exceptions import HTTPException

from hermetic.protocol import api, events
from hermetic.protocol.errors import (
    ClientError,
    Conflict,
    EmptyMessage,
    HermeticError,
    MethodNotAllowed,
    NotFound,
    SessionBusy,
    TooLarge,
)
from hermetic.supervisor.identity import Caller
from hermetic.supervisor.supervisor import Supervisor
from hermetic.supervisor.workspaces import check_message
from hermetic.web import uploads
from hermetic.web.auth import caller
from hermetic.web.stream import turn_stream
from hermetic.web.v1 import PAGE_MAX, body, json_response

log = structlog.get_logger()

LIST_MAX = 1000
"""Sessions of one list; the page draws them all."""
UNTITLED = "Untitled"
PERSONALITY_CHARACTERS = 64
"""A key of the profile's configuration that somebody has typed there, and picks from a menu."""
BUSY_HINT = "Wait for it, or cancel it."

Json = dict[str, Any]


class _Named(msgspec.Struct):
    session_id: str = ""


def compact_shape(session: api.CompactSession) -> Json:
    """A session as the page knows it. `active_stream_id`: what a page that is loaded again reads on."""
    shape: Json = {name: getattr(session, name) for name in api.CompactSession.__struct_fields__}
    return shape | {"title": session.title or UNTITLED, "active_stream_id": session.active_turn_id}


def whole_shape(session: api.SessionView) -> Json:
    return compact_shape(session) | {
        "messages": session.messages,
        "tool_calls": msgspec.to_builtins(session.tool_calls),
    }


async def whole_done(supervisor: Supervisor, data: bytes, *, by: Caller) -> bytes:
    """A `done` event's JSON with the whole session in it: in the journal it has this turn's messages alone. The
    session is the one that goes on, when the turn has changed its id."""
    done = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    try:
        view = await supervisor.sessions.view(msgspec.json.decode(done["session"], type=_Named).session_id, by=by)
    except NotFound:  # deleted while it was read
        return data
    return msgspec.json.encode(done | {"session": whole_shape(view)})


def blueprint(supervisor: Supervisor) -> Blueprint:
    seed = Blueprint("seed", __name__)

    @seed.errorhandler(HermeticError)
    async def known(error: HermeticError) -> Response:
        if error.fault in ("host", "hermetic"):
            log.error("request_failed", code=error.code, detail=error.message)
        shape: Json = {"error": error.message, "code": error.code, "hint": error.hint}
        if turn_id := error.extra.get("turn_id"):
            shape |= {"stream_id": turn_id, "active_stream_id": turn_id}
        return json_response(shape, error.status)

    @seed.errorhandler(HTTPException)
    async def http(error: HTTPException) -> Response:
        if error.code == 413:
            return await known(TooLarge("the body is larger than server.body_bytes_max"))
        return json_response({"error": error.description or error.name}, error.code or 500)

    @seed.errorhandler(Exception)
    async def unknown(error: Exception) -> Response:
        log.exception("request_broke", exc_info=error)
        return await known(HermeticError("the server made a mistake while it answered this request"))

    # --- chat -----------------------------------------------------------------------------------------------------

    @seed.post("/api/chat/start")
    async def start() -> Response:
        given = await body(Json)
        session = await found(given, current=True)
        message = given.get("message")
        if not isinstance(message, str):
            raise EmptyMessage("message is required") if message is None else ClientError("message must be text")
        check_message(message, supervisor.config.limits.message_bytes_max)
        if session.active_turn_id:
            raise SessionBusy("session already has an active stream", hint=BUSY_HINT, turn_id=session.active_turn_id)
        workspace = text(given, "workspace")
        if workspace and workspace != session.workspace:
            await supervisor.sessions.change(session.session_id, api.ChangeSession(workspace=workspace), by=caller())
        turn = await supervisor.start_turn(
            session.session_id,
            api.NewTurn(message=message, attachments=_names(given), model=text(given, "model")),
            by=caller(),
        )
        return json_response({"stream_id": turn.turn_id, "session_id": turn.session_id})

    @seed.get("/api/chat/stream")
    async def stream() -> Response:
        args, turn_id = request.args, query("stream_id")
        said = [args.get(name) for name in ("after_event_id", "after_seq", "cursor", "after")]
        return await turn_stream(
            supervisor,
            turn_id,
            [*said, request.headers.get("Last-Event-ID")],
            ping=args.get("ping") in ("1", "true"),
            rewrite=partial(_whole, supervisor, caller()),
        )

    @seed.get("/api/chat/stream/status")
    async def stream_status() -> Response:
        turn_id = request.args.get("stream_id", "")
        try:
            active = not (await supervisor.turn(turn_id, by=caller())).ended
        except NotFound:
            active = False
        return json_response({"active": active, "stream_id": turn_id})

    @seed.get("/api/chat/cancel")
    async def cancel() -> Response:
        if request.method == "HEAD":  # Quart gives every GET one, and asking must not stop a turn
            raise MethodNotAllowed("cancel with GET")
        turn_id = query("stream_id")
        try:
            cancelled = not (await supervisor.turn(turn_id, by=caller())).ended
            if cancelled:
                await supervisor.cancel(turn_id, by=caller())
        except NotFound:
            cancelled = False
        return json_response({"ok": True, "cancelled": cancelled, "stream_id": turn_id})

    @seed.get("/api/approval/pending")
    async def pending() -> Response:
        session = await supervisor.sessions.find_current(query("session_id"), by=caller())
        asked = await _approvals(supervisor, session)
        shape = msgspec.to_builtins(asked[0]) | {"pending_count": len(asked)} if asked else None
        return json_response({"pending": shape, "pending_count": len(asked)})

    @seed.post("/api/approval/respond")
    async def respond() -> Response:
        given = await body(Json)
        session = await found(given, current=True)
        choice = _choice(given.get("choice") or "deny")
        asked = await _approvals(supervisor, session)
        approval_id = text(given, "approval_id") or (asked[0].approval_id if asked else None)
        if approval_id is None or session.active_turn_id is None:
            raise Conflict("nothing waits for an approval in this session")
        resolved = await supervisor.approve(session.active_turn_id, approval_id, choice, by=caller())
        return json_response({"ok": True, "choice": resolved.choice})

    # --- sessions -------------------------------------------------------------------------------------------------

    @seed.post("/api/session/new")
    async def new_session() -> Response:
        given = await body(Json, empty=True)
        made = await supervisor.sessions.create(
            api.NewSession(
                workspace=text(given, "workspace"), model=text(given, "model"), profile=text(given, "profile")
            ),
            by=caller(),
        )
        return json_response({"session": compact_shape(made) | {"messages": [], "tool_calls": []}})

    @seed.get("/api/session")
    async def get_session() -> Response:
        return json_response({"session": whole_shape(await supervisor.sessions.view(query("session_id"), by=caller()))})

    @seed.get("/api/sessions")
    async def sessions() -> Response:
        return json_response({"sessions": await everything(), "cli_count": 0})

    @seed.get("/api/sessions/search")
    async def search() -> Response:
        wanted = request.args.get("q", "").strip()
        if not wanted:
            return json_response({"sessions": await everything()})
        known = await everything()
        hits = [shape | {"match_type": "title"} for shape in known if wanted.casefold() in shape["title"].casefold()]
        if request.args.get("content", "1") == "1":
            by_title = {hit["session_id"] for hit in hits}
            in_content = await supervisor.sessions.search_compact(wanted, limit=PAGE_MAX, by=caller())
            hits += [
                compact_shape(hit) | {"match_type": "content"} for hit in in_content if hit.session_id not in by_title
            ]
        return json_response({"sessions": hits, "query": wanted.lower(), "count": len(hits)})

    @seed.post("/api/session/rename")
    async def rename() -> Response:
        given = await body(Json)
        session = await found(given)
        if (title := given.get("title")) is None:
            raise ClientError("Missing required field(s): title")
        return changed(
            await supervisor.sessions.change(session.session_id, api.ChangeSession(title=str(title)[:80]), by=caller())
        )

    @seed.post("/api/session/update")
    async def update() -> Response:
        given = await body(Json)
        session = await found(given)
        workspace, model = text(given, "workspace") or UNSET, text(given, "model") or UNSET
        await supervisor.sessions.change(
            session.session_id, api.ChangeSession(workspace=workspace, model=model), by=caller()
        )
        return json_response({"session": whole_shape(await supervisor.sessions.view(session.session_id, by=caller()))})

    @seed.post("/api/session/pin")
    async def pin() -> Response:
        given = await body(Json)
        change = api.ChangeSession(pinned=bool(given.get("pinned", True)))
        return changed(await supervisor.sessions.change((await found(given)).session_id, change, by=caller()))

    @seed.post("/api/session/archive")
    async def archive() -> Response:
        given = await body(Json)
        change = api.ChangeSession(archived=bool(given.get("archived", True)))
        return changed(await supervisor.sessions.change((await found(given)).session_id, change, by=caller()))

    @seed.post("/api/session/delete")
    async def delete() -> Response:
        given = await body(Json)
        try:
            await supervisor.sessions.delete(required(given, "session_id"), by=caller())
        except NotFound:
            pass  # the page asks for the same again when an answer was lost
        return json_response({"ok": True})

    @seed.post("/api/session/clear")
    async def clear() -> Response:
        session = await found(await body(Json))
        view = await supervisor.sessions.truncate(session.session_id, 0, untitled=True, by=caller())
        return json_response({"ok": True, "session": compact_shape(view)})

    @seed.post("/api/session/truncate")
    async def truncate() -> Response:
        given = await body(Json)
        keep = given.get("keep_count")
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 0:
            raise ClientError("keep_count must be a number of messages, 0 or more")
        view = await supervisor.sessions.truncate((await found(given)).session_id, keep, by=caller())
        return json_response({"ok": True, "session": whole_shape(view)})

    @seed.get("/api/session/export")
    async def export() -> Response:
        view = await supervisor.sessions.view(query("session_id"), by=caller())
        response = json_response(whole_shape(view))
        response.headers["Content-Disposition"] = f'attachment; filename="hermes-{view.session_id}.json"'
        return response

    @seed.post("/api/personality/set")
    async def personality() -> Response:
        given = await body(Json)
        session = await found(given)
        if "name" not in given:
            raise ClientError("Missing required field: name")
        name = (text(given, "name") or "").strip() or None
        if name and (len(name) > PERSONALITY_CHARACTERS or not name.isprintable()):
            raise ClientError("the name of a personality is one line of 64 characters at most")
        await supervisor.sessions.change(session.session_id, api.ChangeSession(personality=name), by=caller())
        # The profile's configuration has the prompt, and the agent reads it there when a turn starts.
        return json_response({"ok": True, "personality": name, "prompt": ""})

    # --- files and the rest ---------------------------------------------------------------------------------------

    @seed.post("/api/upload")
    async def upload() -> Response:
        form = await uploads.receive(request, supervisor.data, bytes_max=supervisor.config.server.upload_bytes_max)
        with form.file:
            session = await found(dict(form.fields))
            name = uploads.safe_name(form.filename)
            workspace = await supervisor.sessions.workspace(session.session_id, by=caller())
            path: Path = await trio.to_thread.run_sync(uploads.place, form.file, workspace, name)
        return json_response({"filename": name, "path": str(path), "size": form.size})

    @seed.get("/health")
    async def health() -> Response:
        now = await supervisor.health(by=caller())
        return json_response(
            {
                "status": now.status,
                "sessions": now.sessions,
                "active_streams": now.active_turns + now.queued_turns,
                "uptime_seconds": round(now.uptime_s, 1),
            }
        )

    # --- shapes ---------------------------------------------------------------------------------------------------

    async def found(given: Json, *, current: bool = False) -> api.CompactSession:
        """`current`: the one that goes on, where the named one has been continued under another id."""
        session_id = required(given, "session_id")
        sessions = supervisor.sessions
        session = await (sessions.find_current if current else sessions.find)(session_id, by=caller())
        if session is None:
            raise NotFound("Session not found")
        return session

    async def everything() -> list[Json]:
        """Pinned ones first, then the last used first; archived ones too, which the page folds away."""
        shapes: list[Json] = []
        before: float | None = None
        while len(shapes) < LIST_MAX:
            page = await supervisor.sessions.page(before=before, limit=PAGE_MAX, archived=None, by=caller())
            shapes += [compact_shape(session) for session in page.sessions]
            if (before := page.next_before) is None:
                break
        return sorted(shapes, key=lambda shape: not shape["pinned"])

    def changed(session: api.CompactSession) -> Response:
        return json_response({"ok": True, "session": compact_shape(session)})

    return seed


def required(given: Json, name: str) -> str:
    value = text(given, name)
    if not value:
        raise ClientError(f"Missing required field(s): {name}", hint=f"Send {name}.")
    return value


def text(given: Json, name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise ClientError(f"{name} must be text")
    return value or None


def query(name: str) -> str:
    if value := request.args.get(name, ""):
        return value
    raise ClientError(f"{name} is required", hint=f"Send ?{name}=.")


def _choice(given: Any) -> events.Choice:
    try:
        choice: events.Choice = msgspec.convert(given, events.Choice)
        return choice
    except msgspec.ValidationError:
        raise ClientError(f"choice must be once, session, always or deny, not {str(given)[:40]!r}") from None


def _names(given: Json) -> list[str]:
    """Attachments as the page sends them: names, or what an upload has answered."""
    attachments = given.get("attachments") or []
    if not isinstance(attachments, list):
        raise ClientError("attachments must be a list")
    return [
        str(each.get("filename") or each.get("name") or "") if isinstance(each, dict) else str(each)
        for each in attachments
    ]


async def _approvals(supervisor: Supervisor, session: api.CompactSession | None) -> list[events.Approval]:
    """What the session's turn waits for, oldest first."""
    if session is None or session.active_turn_id is None:
        return []
    turn = await supervisor.turn(session.active_turn_id, by=caller())
    return [ask for ask in turn.pending if isinstance(ask, events.Approval)]


async def _whole(supervisor: Supervisor, by: Caller, chunk: bytes) -> bytes:
    """Whole events, with the whole session in a `done`. A name stands on a line of its own, which no data can have."""
    if b"event: done\n" not in chunk:
        return chunk
    parts = chunk.split(b"\n\n")
    for index, part in enumerate(parts):
        lines = part.split(b"\n")
        if b"event: done" in lines:
            parts[index] = b"\n".join([
                b"data: " + await whole_done(supervisor, line[6:], by=by) if line.startswith(b"data: ") else line
                for line in lines
            ])  # fmt: skip
    return b"\n\n".join(parts)
