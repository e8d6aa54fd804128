"""The native API. Handlers decode, call the supervisor, encode; protocol/schema.py lists them for the documents."""

from __future__ import annotations

import os
import signal
from typing import Any, TypeVar

import msgspec
from quart import Blueprint, Response, request

from hermetic.protocol import api, schema
from hermetic.protocol.errors import ClientError, NotFound, TooLarge, UnsupportedMediaType
from hermetic.supervisor.summary import markdown_export
from hermetic.supervisor.supervisor import Supervisor
from hermetic.web.auth import caller
from hermetic.web.stream import tenant_stream, turn_stream

T = TypeVar("T")
PAGE_MAX = 200
"""Sessions or hits in one answer."""


SESSIONS_MAX = 100
"""Sessions that one stream picks out: more than a page shows."""


def json_response(value: object, status: int = 200) -> Response:
    response = Response(msgspec.json.encode(value), status, content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response


async def body(kind: type[T], *, empty: bool = False) -> T:
    """The request's JSON as `kind`. `empty`: a request without a body counts as `{}`."""
    data = await request.get_data(cache=False)
    assert isinstance(data, bytes)
    if empty and not data.strip():
        data = b"{}"
    elif request.mimetype != "application/json":
        raise UnsupportedMediaType(f"the body is {request.mimetype or 'of no type'}, not application/json")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise ClientError(f"the body does not fit: {error}", hint="See /openapi.json for this address.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ClientError(f"the body is not JSON in UTF-8: {error}") from error


def number(name: str, kind: type[T], default: Any, low: float, high: float) -> Any:
    """A query parameter within its range."""
    text = request.args.get(name)
    if text is None:
        return default
    try:
        value = kind(text)  # type: ignore[call-arg]
    except ValueError:
        raise ClientError(f"?{name}= is not a number: {text[:40]!r}") from None
    if not low <= value <= high:  # type: ignore[operator]
        raise ClientError(f"?{name}= must be between {low:g} and {high:g}")
    return value


def flag(name: str) -> bool | None:
    """`true`, `false` or absent."""
    match request.args.get(name):
        case None:
            return False
        case "true" | "1":
            return True
        case "false" | "0":
            return False
        case "all":
            return None
        case other:
            raise ClientError(f"?{name}= must be true, false or all, not {other[:40]!r}")


def blueprint(supervisor: Supervisor) -> Blueprint:
    v1 = Blueprint("v1", __name__)

    @v1.post("/v1/sessions")
    async def create_session() -> Response:
        return json_response(await supervisor.sessions.create(await body(api.NewSession, empty=True), by=caller()), 201)

    @v1.get("/v1/sessions")
    async def list_sessions() -> Response:
        limit = number("limit", int, 50, 1, PAGE_MAX)
        if query := request.args.get("q", "").strip():
            rows = await supervisor.sessions.search_compact(query, limit=limit, by=caller())
            return json_response(api.SessionList(sessions=rows))
        before = number("before", float, None, 0, 1e12)
        return json_response(
            await supervisor.sessions.page(before=before, limit=limit, archived=flag("archived"), by=caller())
        )

    @v1.get("/v1/search")
    async def search() -> Response:
        query = request.args.get("q", "").strip()
        if not query:
            raise ClientError("?q= is empty", hint="Say what to look for.")
        return json_response(
            await supervisor.sessions.search(query, limit=number("limit", int, 20, 1, PAGE_MAX), by=caller())
        )

    @v1.get("/v1/sessions/<session_id>")
    async def get_session(session_id: str) -> Response:
        return json_response(await supervisor.sessions.view(session_id, by=caller()))

    @v1.patch("/v1/sessions/<session_id>")
    async def change_session(session_id: str) -> Response:
        return json_response(await supervisor.sessions.change(session_id, await body(api.ChangeSession), by=caller()))

    @v1.post("/v1/sessions/<session_id>/rename")
    async def rename_session(session_id: str) -> Response:
        asked = await body(api.Rename)
        return json_response(
            await supervisor.sessions.change(session_id, api.ChangeSession(title=asked.title), by=caller())
        )

    @v1.post("/v1/sessions/<session_id>/archive")
    async def archive_session(session_id: str) -> Response:
        asked = await body(api.Archive, empty=True)
        return json_response(
            await supervisor.sessions.change(session_id, api.ChangeSession(archived=asked.archived), by=caller())
        )

    @v1.delete("/v1/sessions/<session_id>")
    async def delete_session(session_id: str) -> Response:
        await supervisor.sessions.delete(session_id, by=caller())
        return Response(b"", 204)

    @v1.get("/v1/sessions/<session_id>/export")
    async def export_session(session_id: str) -> Response:
        view = await supervisor.sessions.view(session_id, by=caller())
        match request.args.get("format", "json"):
            case "json":
                response, ending = json_response(view), "json"
            case "markdown":
                text = markdown_export(view, view.messages)
                response, ending = Response(text, content_type="text/markdown; charset=utf-8"), "md"
            case other:
                raise ClientError(f"?format= must be json or markdown, not {other[:40]!r}")
        response.headers["Content-Disposition"] = f'attachment; filename="session-{session_id}.{ending}"'
        return response

    @v1.post("/v1/sessions/<session_id>/forget")
    async def forget(session_id: str) -> Response:
        first = (await body(api.Forget)).turn_id
        messages = (await supervisor.sessions.view(session_id, by=caller())).messages
        keep = next((at for at, message in enumerate(messages) if message.get("turn_id") == first), None)
        if keep is None:
            raise NotFound(f"the session has no message of a turn {first[:40]}")
        return json_response(await supervisor.sessions.truncate(session_id, keep, by=caller()))

    @v1.get("/v1/turns")
    async def all_turns() -> Response:
        return json_response(
            api.Turns(turns=await supervisor.turns(limit=number("limit", int, 50, 1, PAGE_MAX), by=caller()))
        )

    @v1.get("/v1/sessions/<session_id>/turns")
    async def list_turns(session_id: str) -> Response:
        return json_response(api.SessionTurns(turns=await supervisor.session_turns(session_id, by=caller())))

    @v1.post("/v1/sessions/<session_id>/turns")
    async def start_turn(session_id: str) -> Response:
        new = await body(api.NewTurn)
        if key := request.headers.get("Idempotency-Key"):
            if len(key) > 256:
                raise TooLarge("Idempotency-Key is longer than 256 characters")
            new = msgspec.structs.replace(new, idempotency_key=key)
        return json_response(await supervisor.start_turn(session_id, new, by=caller()), 202)

    @v1.get("/v1/turns/<turn_id>")
    async def get_turn(turn_id: str) -> Response:
        return json_response(await supervisor.turn(turn_id, by=caller()))

    @v1.get("/v1/turns/<turn_id>/events")
    async def turn_events(turn_id: str) -> Response:
        args = request.args
        said = (args.get("after"), args.get("last_event_id"), request.headers.get("Last-Event-ID"))
        return await turn_stream(supervisor, turn_id, said, ping=args.get("ping") in ("1", "true"))

    @v1.get("/v1/events")
    async def all_events() -> Response:
        args = request.args
        said = (args.get("after"), args.get("last_event_id"), request.headers.get("Last-Event-ID"))
        sessions = frozenset(args.getlist("session_id"))
        if len(sessions) > SESSIONS_MAX:
            raise ClientError(f"?session_id= more than {SESSIONS_MAX} times", hint="Leave it out to follow all.")
        return await tenant_stream(supervisor, said, sessions=sessions or None, ping=args.get("ping") in ("1", "true"))

    @v1.post("/v1/turns/<turn_id>/cancel")
    async def cancel(turn_id: str) -> Response:
        return json_response(await supervisor.cancel(turn_id, by=caller()), 202)

    @v1.post("/v1/turns/<turn_id>/approvals/<approval_id>")
    async def approve(turn_id: str, approval_id: str) -> Response:
        given = await body(api.GiveApproval, empty=True)
        return json_response(await supervisor.approve(turn_id, approval_id, given.choice, by=caller()))

    @v1.post("/v1/turns/<turn_id>/clarifications/<clarify_id>")
    async def answer(turn_id: str, clarify_id: str) -> Response:
        given = await body(api.GiveAnswer)
        return json_response(await supervisor.answer(turn_id, clarify_id, given.text, by=caller()))

    @v1.post("/v1/turns/<turn_id>/messages")
    async def steer(turn_id: str) -> Response:
        given = await body(api.GiveSteer)
        return json_response(await supervisor.steer(turn_id, given.message, by=caller()), 202)

    @v1.get("/v1/options")
    async def options() -> Response:
        return json_response(supervisor.options(by=caller()))

    @v1.post("/v1/drain")
    async def drain() -> Response:
        os.kill(os.getpid(), signal.SIGTERM)  # the one way to the end: what the operator's own signal does
        return json_response(await supervisor.health(by=caller()), 202)

    @v1.get("/v1/health")
    async def health() -> Response:
        return json_response(await supervisor.health(by=caller()))

    openapi = msgspec.json.encode(schema.openapi(schema.OPERATIONS))
    json_schema = msgspec.json.encode(schema.json_schema())

    @v1.get("/openapi.json")
    async def openapi_document() -> Response:
        return Response(openapi, content_type="application/json")

    @v1.get("/v1/schema.json")
    async def schema_document() -> Response:
        return Response(json_schema, content_type="application/schema+json")

    return v1
