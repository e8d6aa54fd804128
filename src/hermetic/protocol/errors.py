"""One hierarchy of errors, each with whose fault it is and what to do about it.

`fault` is one of `client` (the request), `agent` (the code that runs in the child), `host` (configuration, disk,
kernel) and `hermetic` (a bug of ours). `hint` is one sentence that says what to do. `status` is the HTTP status that
the edge answers with (RFC 9110), `code` a stable word for programs.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

Fault = Literal["client", "agent", "host", "hermetic"]


class HermeticError(Exception):
    """The base of all. `str(error)` is the sentence a person reads; `extra` holds members for the problem document."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    fault: ClassVar[Fault] = "hermetic"
    default_hint: ClassVar[str] = "This is a bug in Hermetic: please report it with the server's log."

    def __init__(self, message: str, *, hint: str | None = None, **extra: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        self.extra = extra


class ClientError(HermeticError):
    """The request cannot be served as it stands."""

    code = "invalid_request"
    status = 400
    fault = "client"
    default_hint = "Correct the request and send it again."


class EmptyMessage(ClientError):
    code = "empty_message"
    default_hint = "Send a message with at least one character that is not white space."


class Forbidden(ClientError):
    code = "forbidden"
    status = 403
    default_hint = "Ask from an origin and with paths that this server's configuration allows."


class UnknownWorkspace(ClientError):
    code = "workspace_not_found"
    default_hint = "Send the absolute path of a folder that exists, or none: then the session gets its own."


class WorkspaceNotAllowed(Forbidden):
    code = "workspace_not_allowed"
    default_hint = "Choose a folder inside one of workspaces.roots of the server's configuration, or none at all."


class Unauthorized(ClientError):
    code = "unauthorized"
    status = 401
    default_hint = "Send a key of this server as `Authorization: Bearer KEY`, or log in at /login."


class MissingScope(Forbidden):
    code = "missing_scope"
    default_hint = "Use a key with the scope that the message names; an admin of your tenant can make one."


class TenantSuspended(Forbidden):
    code = "suspended"
    default_hint = "Ask the people who run this server."


class NotFound(ClientError):
    code = "not_found"
    status = 404
    default_hint = "Check the identifier; it may have been deleted."


class MethodNotAllowed(ClientError):
    code = "method_not_allowed"
    status = 405
    default_hint = "See /openapi.json for the methods of this path."


class Conflict(ClientError):
    code = "conflict"
    status = 409
    default_hint = "Read the current state and decide again."


class SessionBusy(Conflict):
    """A turn of this session has not ended; `extra` has its `turn_id`."""

    code = "session_busy"
    default_hint = 'Wait for that turn, cancel it, or send "on_busy": "queue".'


class SessionContinued(Conflict):
    """The session goes on under another id, which `extra` has as `continued_as`; this one is its old transcript."""

    code = "session_continued"
    default_hint = "Go on with the session that `continued_as` names."


class TooLarge(ClientError):
    code = "too_large"
    status = 413
    default_hint = "Send less, or ask the host to raise the limit named in the message."


class UnsupportedMediaType(ClientError):
    code = "unsupported_media_type"
    status = 415
    default_hint = "Send the body as application/json in UTF-8."


class QueueFull(ClientError):
    """More turns wait than the host allows."""

    code = "queue_full"
    status = 429
    default_hint = "Try again after the number of seconds in Retry-After."


class QuotaExceeded(QueueFull):
    """This tenant has all that it may have. `extra`: `quota` and `limit` say of what, `retry_after_s` when to ask again."""

    code = "quota_exceeded"
    default_hint = "Try again after the number of seconds in Retry-After, or ask the host for a larger quota."


class NotSupported(ClientError):
    """Something that others of its kind do and this server does not."""

    code = "not_supported"
    status = 501
    default_hint = "Do without it; docs/webui.md says what does not reach this server yet."


class HostError(HermeticError):
    """The configuration, the disk or the kernel stands in the way."""

    code = "host_error"
    status = 500
    fault = "host"
    default_hint = "The person who runs this server must look at its log."


class ConfigError(HostError):
    code = "config_error"
    default_hint = "Correct the configuration file; `hermetic config show` prints what is in force."


class StorageError(HostError):
    """The store cannot take or give what was asked (a full disk, a damaged or newer database)."""

    code = "storage_error"
    status = 507
    default_hint = "Free space on the disk that holds the data directory, or point --data at another one."


class Draining(HostError):
    code = "draining"
    status = 503
    default_hint = "The server is about to stop; send the request again when it is back."


class AgentError(HermeticError):
    """The agent's own code, or what its configuration names, is at fault."""

    code = "agent_error"
    status = 502
    fault = "agent"
    default_hint = "Look at the agent's code and its configuration; the turn's stderr has what it printed."


class ProtocolError(AgentError):
    """The bytes of an event or command stream break the protocol (framing.py, events.py, commands.py)."""

    code = "protocol"
    default_hint = "Only Hermetic's own adapter code may write to the event stream; print to stdout or stderr instead."


class FrameTooLong(ProtocolError):
    code = "frame_too_long"
    default_hint = "Send the text in smaller events, or raise limits.frame_bytes_max."


class Fenced(HermeticError):
    """A write named an epoch or a sequence number that is not the turn's current one: it comes too late."""

    code = "fenced"
    status = 409
    default_hint = "Another owner has taken this turn over; stop writing for it."
