"""Every operation of the HTTP API, as one table of values: schema.py makes the OpenAPI document of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from hermetic.protocol import api, events

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
MARKDOWN = "text/markdown; charset=utf-8"

Needs = Literal["open", "read", "run", "admin", "operator"]
"""What a caller must be allowed; `operator`: `admin`, in the tenant `local`. `open`: there need be no caller."""
Page = Annotated[int, Meta(ge=1, le=200)]
"""Rows of one answer: 200 compact sessions are about 100 kB."""


class Param(Struct, frozen=True):
    """A query parameter or a header of a request; none is required."""

    name: str
    description: str
    kind: Any = str
    """The type that it is read as."""


class Content(Struct, frozen=True):
    """One representation of an answer."""

    kind: Any = None
    """The struct of the body; for an event stream the union of its events; None: the media type says all."""
    media_type: str = JSON


class Answer(Struct, frozen=True, kw_only=True):
    """What a status says here, and its representations, the first one by default; none: no body."""

    says: str
    contents: tuple[Content, ...] = ()


class Operation(Struct, frozen=True, kw_only=True):
    """One method of one path. Besides `answers`, each may answer any other status with a problem document."""

    method: Literal["get", "post", "patch", "delete"]
    path: str
    operation_id: str
    summary: str
    request: type[api.Request] | None = None
    answers: dict[int, Answer]
    query: tuple[Param, ...] = ()
    headers: tuple[Param, ...] = ()
    detail: str = ""
    tag: str = field(default="")
    needs: Needs | None = None
    """Not set: `read` for a GET, `run` for all else."""

    @property
    def scope(self) -> Needs:
        return self.needs or ("read" if self.method == "get" else "run")


PATH_PARAMS = {
    "session_id": "12 lower-case hexadecimal digits, or as a web UI has given it: letters, digits, `_`, `-`.",
    "run_id": "As in the answer that accepted the run.",
    "turn_id": "As in the answer that accepted the turn.",
    "approval_id": "As in the `approval` event.",
    "clarify_id": "As in the `clarify` event.",
    "tenant": "A tenant's name; `local` is the operator's own.",
    "user": "A user's name.",
    "key_id": "What stands between the first and the second `_` of a key.",
    "profile": "A profile's name.",
    "name": "A secret's name.",
}


def _ok(kind: Any, says: str = "OK.") -> Answer:
    return Answer(says=says, contents=(Content(kind),))


_PROBLEM_501 = Answer(says="Not supported.", contents=(Content(api.Problem, "application/problem+json"),))
_GONE = Answer(says="Deleted, with its messages, turns and events.")
_RESOLVED = "Resolved. An answer that comes again, or too late, gets what was decided first."

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="post",
        path="/v1/sessions",
        operation_id="createSession",
        summary="Begin a session",
        tag="sessions",
        request=api.NewSession,
        answers={201: _ok(api.CompactSession, "The session, with its workspace.")},
    ),
    Operation(
        method="get",
        path="/v1/sessions",
        operation_id="listSessions",
        summary="List sessions, the last used first",
        tag="sessions",
        query=(
            Param(
                "q",
                "Only sessions whose title or messages have all these words, the best match first; then `limit` alone counts.",
            ),
            Param("before", "Only sessions last used before this time: `next_before` of the page before.", float),
            Param("limit", "How many at most.", Page),
            Param("archived", "`true`: only archived ones; `all`: those too.", Literal["false", "true", "all"]),
        ),
        answers={200: _ok(api.SessionList)},
    ),
    Operation(
        method="get",
        path="/v1/sessions/{session_id}",
        operation_id="getSession",
        summary="A session with its messages and tool calls",
        tag="sessions",
        answers={200: _ok(api.SessionView)},
    ),
    Operation(
        method="patch",
        path="/v1/sessions/{session_id}",
        operation_id="changeSession",
        summary="Change the members that are sent",
        tag="sessions",
        request=api.ChangeSession,
        answers={200: _ok(api.CompactSession)},
    ),
    Operation(
        method="delete",
        path="/v1/sessions/{session_id}",
        operation_id="deleteSession",
        summary="Delete a session",
        detail="409 while one of its turns has not ended.",
        tag="sessions",
        answers={204: _GONE},
    ),
    Operation(
        method="post",
        path="/v1/sessions/{session_id}/rename",
        operation_id="renameSession",
        summary="Give a session a title that stays",
        tag="sessions",
        request=api.Rename,
        answers={200: _ok(api.CompactSession)},
    ),
    Operation(
        method="post",
        path="/v1/sessions/{session_id}/archive",
        operation_id="archiveSession",
        summary="Archive a session, or bring it back",
        tag="sessions",
        request=api.Archive,
        answers={200: _ok(api.CompactSession)},
    ),
    Operation(
        method="get",
        path="/v1/sessions/{session_id}/export",
        operation_id="exportSession",
        summary="A session as a file",
        tag="sessions",
        query=(Param("format", "Default: `json`.", Literal["json", "markdown"]),),
        answers={
            200: Answer(
                says="An attachment, named after the session.",
                contents=(Content(api.SessionView), Content(None, MARKDOWN)),
            )
        },
    ),
    Operation(
        method="get",
        path="/v1/sessions/{session_id}/turns",
        operation_id="listTurns",
        summary="All turns of a session, oldest first",
        tag="turns",
        answers={200: _ok(api.SessionTurns)},
    ),
    Operation(
        method="post",
        path="/v1/sessions/{session_id}/forget",
        operation_id="forgetTurns",
        summary="Take a turn and all later ones out of a session",
        detail="For a message that is edited or sent again. Their events stay. 409 while a turn has not ended.",
        tag="sessions",
        request=api.Forget,
        answers={200: _ok(api.SessionView, "The session with what is left.")},
    ),
    Operation(
        method="get",
        path="/v1/search",
        operation_id="search",
        summary="Full text over titles and messages",
        tag="sessions",
        query=(
            Param("q", "Every word must occur, the last may be a prefix; quotes and operators are plain text."),
            Param("limit", "How many at most.", Page),
        ),
        answers={200: _ok(api.SearchResult)},
    ),
    Operation(
        method="post",
        path="/v1/sessions/{session_id}/turns",
        operation_id="startTurn",
        summary="Send a message: start a turn",
        detail="The same idempotency key with the same body gets the same turn.",
        tag="turns",
        request=api.NewTurn,
        headers=(Param("Idempotency-Key", "As `idempotency_key` in the body; up to 256 characters."),),
        answers={
            202: _ok(api.TurnView, "Accepted, and saved: it runs, or waits for its place."),
            409: Answer(
                says="The session is busy; `turn_id` is the turn that has not ended.",
                contents=(Content(api.Problem, "application/problem+json"),),
            ),
        },
    ),
    Operation(
        method="get",
        path="/v1/turns",
        operation_id="listAllTurns",
        summary="What runs, what waits, and what has ended lately",
        detail="Without snapshots. An ended turn has the last that its process printed, `stderr`.",
        tag="turns",
        query=(Param("limit", "How many ended ones at most.", Page),),
        answers={200: _ok(api.Turns)},
    ),
    Operation(
        method="get",
        path="/v1/turns/{turn_id}",
        operation_id="getTurn",
        summary="A turn, with what was said so far and what waits for a person",
        tag="turns",
        answers={200: _ok(api.TurnView)},
    ),
    Operation(
        method="get",
        path="/v1/turns/{turn_id}/events",
        operation_id="streamTurn",
        summary="A turn's events: those so far, then each as it happens",
        detail=(
            "Server-sent events; each has an `id: <turn>:<seq>`, its name and one line of JSON. Of the cursors `after`, "
            "`last_event_id` and `Last-Event-ID` the farthest counts, for an EventSource keeps its URL when it comes back. "
            "One that is not this turn's gets a `reset` event with a snapshot. The last event is `stream_end`."
        ),
        tag="turns",
        query=(
            Param(
                "after",
                "The last event seen: its id or its bare number; 0: from the start; `snapshot`: begin with a `reset`.",
            ),
            Param("last_event_id", "The same, for clients that can set no header."),
            Param("ping", "`1`: with each heartbeat a `ping` event whose data is `{}`.", Literal["0", "1"]),
        ),
        headers=(Param("Last-Event-ID", "What an EventSource sends when it reconnects."),),
        answers={
            200: Answer(says="The stream.", contents=(Content(events.ReaderEvent, EVENT_STREAM),)),
            204: Answer(says="The turn has ended and the cursor is at its end: stop reconnecting."),
        },
    ),
    Operation(
        method="get",
        path="/v1/events",
        operation_id="streamAllTurns",
        summary="The events of all your turns in one stream",
        detail=(
            "Server-sent events under the names of a turn's own, each wrapped with its `turn_id`, `session_id` and `seq`. "
            "Without a cursor it begins now, with a `reset` that has a snapshot of every turn that has not ended; so does "
            "one whose cursor is not of this journal or too old. It never ends by itself, and is no reader in the sense of "
            "a turn's `on_disconnect`."
        ),
        tag="turns",
        query=(
            Param("session_id", "Only this session's turns; may be given up to 100 times.", list[str]),
            Param("after", "The id of the last event seen."),
            Param("last_event_id", "The same, for clients that can set no header."),
            Param("ping", "`1`: with each heartbeat a `ping` event whose data is `{}`.", Literal["0", "1"]),
        ),
        headers=(Param("Last-Event-ID", "What an EventSource sends when it reconnects."),),
        answers={200: Answer(says="The stream.", contents=(Content(events.TenantEvent, EVENT_STREAM),))},
    ),
    Operation(
        method="post",
        path="/v1/turns/{turn_id}/cancel",
        operation_id="cancelTurn",
        summary="End a turn, keep what it said",
        detail="In every state, also before the start, as often as you like. The stream tells when the process is gone.",
        tag="turns",
        answers={202: _ok(api.Accepted, "Noted durably.")},
    ),
    Operation(
        method="post",
        path="/v1/turns/{turn_id}/approvals/{approval_id}",
        operation_id="giveApproval",
        summary="Allow or deny what the agent asks for",
        tag="turns",
        request=api.GiveApproval,
        answers={200: _ok(api.ApprovalView, _RESOLVED)},
    ),
    Operation(
        method="post",
        path="/v1/turns/{turn_id}/clarifications/{clarify_id}",
        operation_id="giveAnswer",
        summary="Answer the agent's question",
        tag="turns",
        request=api.GiveAnswer,
        answers={200: _ok(api.ClarifyView, _RESOLVED)},
    ),
    Operation(
        method="post",
        path="/v1/turns/{turn_id}/messages",
        operation_id="steerTurn",
        summary="Give the running agent a word",
        detail="What it never reads comes back as `pending_steer_leftover`.",
        tag="turns",
        request=api.GiveSteer,
        answers={202: _ok(api.Accepted, "Sent to the agent.")},
    ),
    Operation(
        method="post",
        path="/v1/runs",
        operation_id="startRun",
        summary="For a Hermes Web UI: start a turn in a session of its own naming",
        detail=(
            "Workspace, profile and model are remembered on the session. These operations ask for a bearer when "
            "`server.runner_api_key_env` names one: 401."
        ),
        tag="runs",
        request=api.NewRun,
        answers={
            200: _ok(api.RunStarted, "Accepted, and saved."),
            409: Answer(
                says="The session is busy; `turn_id` is the run that has not ended.",
                contents=(Content(api.Problem, "application/problem+json"),),
            ),
        },
    ),
    Operation(
        method="get",
        path="/v1/runs/{run_id}",
        operation_id="getRun",
        summary="Where a run stands",
        tag="runs",
        answers={200: _ok(api.RunView)},
    ),
    Operation(
        method="get",
        path="/v1/runs/{run_id}/events",
        operation_id="pollRun",
        summary="A run's next events, as soon as there is one",
        detail="Without one the call is held for up to 25 s. `done` has the whole session. The last event is `stream_end`.",
        tag="runs",
        query=(
            Param("cursor", "The last event seen: its id or its bare number. One that cannot be used: from the start."),
            Param("wait_s", "How long to hold the call, at most 25.", float),
        ),
        answers={200: _ok(api.RunEvents)},
    ),
    Operation(
        method="post",
        path="/v1/runs/{run_id}/cancel",
        operation_id="cancelRun",
        summary="End a run, keep what it said",
        tag="runs",
        answers={200: _ok(api.RunControl)},
    ),
    Operation(
        method="post",
        path="/v1/runs/{run_id}/approval",
        operation_id="approveInRun",
        summary="Allow or deny what the agent asks for",
        tag="runs",
        request=api.GiveRunApproval,
        answers={200: _ok(api.RunControl)},
    ),
    Operation(
        method="post",
        path="/v1/runs/{run_id}/clarifications/{clarify_id}/respond",
        operation_id="answerInRun",
        summary="Answer the agent's question",
        tag="runs",
        request=api.GiveRunAnswer,
        answers={200: _ok(api.RunControl)},
    ),
    Operation(
        method="post",
        path="/v1/runs/{run_id}/messages",
        operation_id="steerRun",
        summary="Give the running agent a word",
        tag="runs",
        request=api.GiveRunMessage,
        answers={200: _ok(api.RunControl)},
    ),
    Operation(
        method="get",
        path="/v1/sessions/{session_id}/goal",
        operation_id="getGoal",
        summary="Not supported: this server pursues no goals",
        tag="runs",
        answers={501: _PROBLEM_501},
    ),
    Operation(
        method="post",
        path="/v1/sessions/{session_id}/goal",
        operation_id="changeGoal",
        summary="Not supported: this server pursues no goals",
        tag="runs",
        request=api.ChangeGoal,
        answers={501: _PROBLEM_501},
    ),
    Operation(
        method="post",
        path="/v1/login",
        operation_id="logIn",
        summary="For a browser: a key becomes a cookie",
        detail="The cookie is HttpOnly. What changes something also needs the header `X-CSRF-Token` with the answer's `csrf`.",
        tag="identity",
        needs="open",
        request=api.LogIn,
        answers={200: _ok(api.Me, "Logged in, with the cookie.")},
    ),
    Operation(
        method="post",
        path="/v1/logout",
        operation_id="logOut",
        summary="End this browser's login",
        tag="identity",
        needs="read",
        answers={204: Answer(says="Logged out.")},
    ),
    Operation(
        method="get",
        path="/v1/me",
        operation_id="getMe",
        summary="Who the server takes you for",
        tag="identity",
        answers={200: _ok(api.Me)},
    ),
    Operation(
        method="post",
        path="/v1/tickets",
        operation_id="getTicket",
        summary="A ticket for one event stream, as `?ticket=`",
        detail="For an EventSource of another origin, which can set no header. It works once, within `expires_s`.",
        tag="identity",
        needs="read",
        request=api.NewTicket,
        answers={201: _ok(api.Ticket)},
    ),
    Operation(
        method="get",
        path="/v1/admin/tenants",
        operation_id="listTenants",
        summary="All tenants; for another tenant's admin, its own",
        tag="admin",
        needs="admin",
        answers={200: _ok(api.TenantList)},
    ),
    Operation(
        method="post",
        path="/v1/admin/tenants",
        operation_id="addTenant",
        summary="Add a tenant",
        detail="From the first one on every request needs a key: have one of your own first (tenant `local`, scope admin).",
        tag="admin",
        needs="operator",
        request=api.NewTenant,
        answers={201: _ok(api.TenantView)},
    ),
    Operation(
        method="get",
        path="/v1/admin/tenants/{tenant}",
        operation_id="getTenant",
        summary="A tenant",
        tag="admin",
        needs="admin",
        answers={200: _ok(api.TenantView)},
    ),
    Operation(
        method="patch",
        path="/v1/admin/tenants/{tenant}",
        operation_id="changeTenant",
        summary="Change the members that are sent; suspend a tenant, or let it in again",
        detail="A suspended tenant's turns are cancelled, and its requests refused.",
        tag="admin",
        needs="operator",
        request=api.ChangeTenant,
        answers={200: _ok(api.TenantView)},
    ),
    Operation(
        method="delete",
        path="/v1/admin/tenants/{tenant}",
        operation_id="removeTenant",
        summary="Remove a tenant",
        detail="409 while one of its turns has not ended: suspend it first. The files of its workspaces stay on the host.",
        tag="admin",
        needs="operator",
        answers={204: Answer(says="Removed, with its users, keys, sessions, turns and events.")},
    ),
    Operation(
        method="get",
        path="/v1/admin/tenants/{tenant}/users",
        operation_id="listUsers",
        summary="A tenant's users",
        tag="admin",
        needs="admin",
        answers={200: _ok(api.UserList)},
    ),
    Operation(
        method="post",
        path="/v1/admin/tenants/{tenant}/users",
        operation_id="putUser",
        summary="Add a user, or change one; suspend one",
        detail="People who come with a token of the identity provider need no record; a suspended one keeps them out.",
        tag="admin",
        needs="admin",
        request=api.NewUser,
        answers={201: _ok(api.UserView)},
    ),
    Operation(
        method="delete",
        path="/v1/admin/tenants/{tenant}/users/{user}",
        operation_id="removeUser",
        summary="Remove a user",
        tag="admin",
        needs="admin",
        answers={204: Answer(says="Removed, with all keys and logins.")},
    ),
    Operation(
        method="get",
        path="/v1/admin/tenants/{tenant}/keys",
        operation_id="listKeys",
        summary="A tenant's keys, oldest first; never the keys themselves",
        tag="admin",
        needs="admin",
        answers={200: _ok(api.KeyList)},
    ),
    Operation(
        method="post",
        path="/v1/admin/tenants/{tenant}/keys",
        operation_id="addKey",
        summary="Make a key",
        tag="admin",
        needs="admin",
        request=api.NewKey,
        answers={201: _ok(api.ShownKey, "The key, which nobody can see again.")},
    ),
    Operation(
        method="delete",
        path="/v1/admin/tenants/{tenant}/keys/{key_id}",
        operation_id="revokeKey",
        summary="Revoke a key, for good",
        tag="admin",
        needs="admin",
        answers={204: Answer(says="Revoked; logins that were made with it have ended.")},
    ),
    Operation(
        method="get",
        path="/v1/admin/tenants/{tenant}/secrets",
        operation_id="listSecrets",
        summary="The names of a tenant's secrets; never their values",
        tag="admin",
        needs="admin",
        answers={200: _ok(api.SecretList)},
    ),
    Operation(
        method="post",
        path="/v1/admin/tenants/{tenant}/secrets",
        operation_id="setSecret",
        summary="Set a secret: a variable of all turns of a tenant under a profile",
        detail="It is kept encrypted, counts from the next turn on, and is kept out of what turns say.",
        tag="admin",
        needs="admin",
        request=api.NewSecret,
        answers={201: _ok(api.SecretView)},
    ),
    Operation(
        method="delete",
        path="/v1/admin/tenants/{tenant}/secrets/{profile}/{name}",
        operation_id="removeSecret",
        summary="Remove a secret",
        tag="admin",
        needs="admin",
        answers={204: Answer(says="Removed; the next turn does not have it.")},
    ),
    Operation(
        method="post",
        path="/v1/admin/secrets/rotate",
        operation_id="rotateSecrets",
        summary="Encrypt all secrets of all tenants with the first key",
        tag="admin",
        needs="operator",
        answers={200: _ok(api.Rotated)},
    ),
    Operation(
        method="get",
        path="/v1/admin/tenants/{tenant}/usage",
        operation_id="getUsage",
        summary="A tenant's quotas, and what it has used day by day",
        tag="admin",
        needs="admin",
        query=(Param("days", "Of the last so many days, today included.", Annotated[int, Meta(ge=1, le=400)]),),
        answers={200: _ok(api.UsageView)},
    ),
    Operation(
        method="get",
        path="/v1/admin/audit",
        operation_id="listAudit",
        summary="Who did what: the audit log, oldest first; for another tenant's admin, its own records",
        tag="admin",
        needs="admin",
        query=(
            Param("after", "Only records after this `seq`.", Annotated[int, Meta(ge=0, le=1 << 53)]),
            Param("limit", "How many at most.", Annotated[int, Meta(ge=1, le=1000)]),
            Param("tenant", "Only records of this tenant."),
        ),
        answers={200: _ok(api.AuditPage)},
    ),
    Operation(
        method="get",
        path="/metrics",
        operation_id="getMetrics",
        summary="What Prometheus asks for",
        tag="server",
        needs="operator",
        answers={200: Answer(says="OK.", contents=(Content(None, "text/plain; version=0.0.4; charset=utf-8"),))},
    ),
    Operation(
        method="get",
        path="/v1/options",
        operation_id="getOptions",
        summary="What a new session can choose from",
        tag="server",
        answers={200: _ok(api.Choices)},
    ),
    Operation(
        method="get",
        path="/v1/health",
        operation_id="getHealth",
        summary="Whether the server takes turns, and how it seals them",
        detail="The numbers are those of the caller's own tenant; 0 for who is none.",
        tag="server",
        needs="open",
        answers={200: _ok(api.Health)},
    ),
    Operation(
        method="post",
        path="/v1/drain",
        operation_id="drain",
        summary="Stop this server as SIGTERM does",
        detail=(
            "No more turns are taken, running ones get `server.drain_s` to end, what is left is cancelled, and the "
            "process exits. Queued turns run after the next start."
        ),
        tag="server",
        needs="operator",
        answers={202: _ok(api.Health, "It has begun.")},
    ),
    Operation(
        method="get",
        path="/v1/schema.json",
        operation_id="getEventSchema",
        summary="The events as a JSON Schema",
        tag="server",
        needs="open",
        answers={200: Answer(says="OK.", contents=(Content(None, "application/schema+json"),))},
    ),
    Operation(
        method="get",
        path="/openapi.json",
        operation_id="getOpenApi",
        summary="This document",
        tag="server",
        needs="open",
        answers={200: Answer(says="OK.", contents=(Content(dict[str, Any]),))},
    ),
)
