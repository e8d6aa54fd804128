"""The bodies of the HTTP API, shared by the server and the client.

Requests are decoded strictly: an unknown key is an error that names it. Times are seconds since the epoch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from hermetic.protocol.events import Approval, Choice, Clarify, Seal, Snapshot, StateName

Scope = Literal["run", "read", "admin"]
Weight = Annotated[float, Meta(ge=0.01, le=100)]


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all request bodies."""


class Response(Struct, frozen=True, kw_only=True):
    """Base of all response bodies; a client ignores members that it does not know."""


# --- requests -----------------------------------------------------------------------------------------------------


class NewSession(Request, frozen=True):
    agent: str | None = None
    """A name from the configuration; None: the configuration's default agent."""
    profile: str | None = None
    workspace: str | None = None
    """An absolute path (or `~`) that the configuration allows; None: a new empty folder under the data directory."""
    title: str | None = None
    model: str | None = None
    personality: str | None = None
    project_id: str | None = None


class ChangeSession(Request, frozen=True):
    """Only the members that are sent are changed."""

    title: str | UnsetType = UNSET
    archived: bool | UnsetType = UNSET
    pinned: bool | UnsetType = UNSET
    agent: str | UnsetType = UNSET
    profile: str | UnsetType = UNSET
    workspace: str | UnsetType = UNSET
    model: str | None | UnsetType = UNSET
    personality: str | None | UnsetType = UNSET
    project_id: str | None | UnsetType = UNSET


class Rename(Request, frozen=True):
    title: str
    """From now on the user's own: neither the agent nor the first message replaces it."""


class Forget(Request, frozen=True):
    turn_id: str
    """The first turn whose messages leave the session; all later ones leave it as well."""


class Archive(Request, frozen=True):
    archived: bool = True
    """False: bring it back."""


class NewTurn(Request, frozen=True):
    message: str
    attachments: list[str] = field(default_factory=list)
    """At most 20 names of files in the workspace."""
    model: str | None = None
    """Remembered on the session."""
    idempotency_key: str | None = None
    """The same key with the same body answers with the same turn; the header Idempotency-Key does the same."""
    on_busy: Literal["reject", "queue"] = "reject"
    on_disconnect: Literal["continue", "cancel"] = "continue"
    """`cancel`: the turn is cancelled when its last reader leaves."""


class GiveApproval(Request, frozen=True):
    choice: Choice = "deny"


class GiveAnswer(Request, frozen=True):
    text: str


class GiveSteer(Request, frozen=True):
    message: str


class NewRun(Request, frozen=True, forbid_unknown_fields=False):
    """What a Hermes Web UI asks of a runner. Members that are not here are kept with the turn, as these are."""

    message: str
    session_id: str | None = None
    """Of the web UI's giving; a session that is not there yet begins with it. None: a new one with an id of ours."""
    attachments: list[Any] | None = None
    """Names of files, or mappings with a `name` and a `path`."""
    workspace: str | None = None
    profile: str | None = None
    provider: str | None = None
    """With a model: the turn's model is `@provider:model`."""
    model: str | None = None
    toolsets: list[Any] | None = None
    source: str | None = None
    metadata: dict[str, Any] | None = None


class GiveRunApproval(Request, frozen=True, forbid_unknown_fields=False):
    choice: Choice = "deny"
    approval_id: str | None = None
    """None: the oldest that waits."""


class GiveRunAnswer(Request, frozen=True, forbid_unknown_fields=False):
    response: str


class GiveRunMessage(Request, frozen=True, forbid_unknown_fields=False):
    message: str
    mode: str | None = None
    """Kept for its senders; every message is given to the running agent."""


class ChangeGoal(Request, frozen=True, forbid_unknown_fields=False):
    action: str | None = None
    text: str | None = None


class LogIn(Request, frozen=True):
    key: str


class NewTicket(Request, frozen=True):
    turn_id: str | None = None
    """The only turn that it opens; None: any stream of the tenant."""


class NewTenant(Request, frozen=True):
    tenant: str
    """1 to 32 of a-z, 0-9 and -; for good, because its folder is called so."""
    name: str = ""
    workspace_roots: list[str] = field(default_factory=list)
    """Folders of the host in which its sessions may choose a workspace, beside their own."""
    quotas: dict[str, float | None] = field(default_factory=dict)
    """Of the configuration's `[quotas]`, those that differ for it; null: no limit."""
    weight: Weight = 1.0
    """Its share of the places for turns, where others want them too."""


class ChangeTenant(Request, frozen=True):
    """Only the members that are sent are changed."""

    name: str | UnsetType = UNSET
    suspended: bool | UnsetType = UNSET
    workspace_roots: list[str] | UnsetType = UNSET
    quotas: dict[str, float | None] | UnsetType = UNSET
    """All of its own, in place of those that it had."""
    weight: Weight | UnsetType = UNSET


class NewSecret(Request, frozen=True):
    name: str
    """Of the variable that the profile's turns have it in."""
    value: str
    """8 bytes to 16 KiB. It is not shown again, and what turns say is kept free of it."""
    profile: str = "default"


class NewUser(Request, frozen=True):
    user: str
    """1 to 128 characters without white space; of an identity provider's people, their `sub`."""
    name: str = ""
    suspended: bool = False


class NewKey(Request, frozen=True):
    name: str = ""
    user: str | None = None
    """Whose it is; it goes with the user."""
    scopes: list[Scope] = field(default_factory=lambda: ["run"])
    """`read`, `run` (reads too) or `admin` (all)."""
    expires_s: Annotated[float, Meta(gt=0, le=315_360_000)] | None = None
    """Seconds from now, ten years at most; None: it does not expire."""


# --- responses ----------------------------------------------------------------------------------------------------


class CompactSession(Response, frozen=True):
    """A session without its messages, in SEED's members."""

    session_id: str
    title: str
    workspace: str
    agent: str
    profile: str
    model: str | None = None
    message_count: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0
    pinned: bool = False
    archived: bool = False
    project_id: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    estimated_cost: float = 0.0
    personality: str | None = None
    active_turn_id: str | None = None
    """The turn of this session that has not ended, if any."""
    continued_as: str | None = None
    """The session that goes on from this one, since its agent has changed the id by compressing: this one is the
    transcript from before. Turns and settings that are sent here go there."""
    continues: str | None = None
    """The session that has the transcript from before this one; it may have been deleted."""


class ToolCard(Response, frozen=True):
    """A tool call, for drawing it again on reload (SEED point 11)."""

    name: str
    snippet: str
    tid: str
    assistant_msg_idx: int
    args: dict[str, str]


class SessionView(CompactSession, frozen=True):
    messages: list[dict[str, Any]] = field(default_factory=list)
    tool_calls: list[ToolCard] = field(default_factory=list)


class SessionList(Response, frozen=True):
    sessions: list[CompactSession]
    next_before: float | None = None
    """Send it as `before=` for the next page; None: this was the last."""


class SearchHit(Response, frozen=True):
    session_id: str
    title: str
    snippet: str
    """The text around the first hit, matches between « and »."""
    updated_at: float = 0.0


class SearchResult(Response, frozen=True):
    hits: list[SearchHit]


class Used(Response, frozen=True):
    """What all processes of a turn use together. None: this host does not count it."""

    memory_bytes: int | None = None
    processes: int | None = None
    cpu_s: float | None = None


class TurnView(Response, frozen=True):
    turn_id: str
    session_id: str
    state: StateName
    ended: bool
    agent: str
    profile: str
    workspace: str
    message: str
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    queue_position: int | None = None
    last_seq: int = 0
    """The newest event in the journal."""
    pending: list[Approval | Clarify] = field(default_factory=list)
    """What waits for a person now."""
    seal: Seal | None = None
    pid: int | None = None
    """While it runs."""
    used: Used | None = None
    """Of the host, at this moment; while it runs, and where the host counts it for each turn."""
    snapshot: Snapshot | None = None
    """What was said so far."""
    stderr: str | None = None
    """What the child printed, its last part; only after the end."""
    events_url: str = ""


class SessionTurns(Response, frozen=True):
    turns: list[TurnView]
    """Oldest first."""


class Turns(Response, frozen=True):
    turns: list[TurnView]
    """Those that have not ended, oldest first, and then those that have, newest first."""


class ApprovalView(Response, frozen=True):
    approval_id: str
    choice: Choice


class ClarifyView(Response, frozen=True):
    clarify_id: str
    text: str


class Accepted(Response, frozen=True):
    turn_id: str
    state: StateName


RunStatus = Literal["queued", "running", "cancelling", "completed", "failed", "cancelled"]
Terminal = Literal["completed", "failed", "cancelled"]


class RunStarted(Response, frozen=True):
    """A run is a turn; run, stream and turn have one id."""

    run_id: str
    stream_id: str
    session_id: str
    status: RunStatus
    started_at: float
    title: str
    active_controls: list[str]


class RunView(Response, frozen=True):
    run_id: str
    session_id: str
    status: RunStatus
    terminal_state: Terminal | None
    state: StateName
    """The same in our own words, which are more exact."""
    last_event_id: str | None
    pending_approval_id: str | None
    pending_clarify_id: str | None
    active_controls: list[str]


class RunEvent(Response, frozen=True):
    event_id: str
    """`run:seq`."""
    seq: int
    event: str
    payload: Any


class RunEvents(Response, frozen=True):
    run_id: str
    events: list[RunEvent]
    cursor: str
    """Send it for what follows."""


class RunControl(Response, frozen=True):
    ok: bool
    status: str
    run_id: str


class AgentView(Response, frozen=True):
    name: str
    adapter: str
    description: str = ""
    egress: list[str] = field(default_factory=list)
    """Hosts that its turns may reach where they are sealed."""
    model_api: bool = False
    """Its turns reach a model through the server, which keeps the key."""


class Me(Response, frozen=True):
    tenant: str
    user: str | None
    scopes: list[Scope]
    key_id: str | None = None
    csrf: str | None = None
    """Of a login: what the header `X-CSRF-Token` must have. None: the request came without a cookie."""
    login_needed: bool = True
    """False: this server has no tenants, and takes whoever reaches it for its operator."""


class Ticket(Response, frozen=True):
    ticket: str
    expires_s: float


class TenantView(Response, frozen=True):
    tenant: str
    number: int
    """Of the tenant's own user id on the host; never given to another."""
    name: str
    suspended: bool
    workspace_roots: list[str]
    created_at: float
    quotas: dict[str, float | None] = field(default_factory=dict)
    weight: float = 1.0


class SecretView(Response, frozen=True):
    profile: str
    name: str
    updated_at: float


class SecretList(Response, frozen=True):
    secrets: list[SecretView]


class Rotated(Response, frozen=True):
    secrets: int
    """So many are encrypted with the first key now."""


class AuditRecord(Response, frozen=True):
    seq: int
    at_ms: int
    tenant: str
    actor: str
    action: str
    target: str
    detail: dict[str, str | int | bool | None]
    prev: str
    """The SHA-256 of the record before, as `hermetic audit export` writes it."""


class AuditPage(Response, frozen=True):
    records: list[AuditRecord]
    """Oldest first; send the last one's `seq` as `after=` for more."""
    head: str
    """`SEQ:HASH` of the whole log's last record."""


class UsedDay(Response, frozen=True):
    day: str
    """`2026-11-22`, in UTC."""
    turns: int
    input_tokens: int
    output_tokens: int
    cost: float


class UsageView(Response, frozen=True):
    quotas: dict[str, float | None]
    """In force for this tenant; null: no limit."""
    running: int
    queued: int
    days: list[UsedDay]


class TenantList(Response, frozen=True):
    tenants: list[TenantView]


class UserView(Response, frozen=True):
    tenant: str
    user: str
    name: str
    suspended: bool
    created_at: float


class UserList(Response, frozen=True):
    users: list[UserView]


class KeyView(Response, frozen=True):
    key_id: str
    tenant: str
    user: str | None
    name: str
    scopes: list[Scope]
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None
    """To about ten minutes."""


class KeyList(Response, frozen=True):
    keys: list[KeyView]


class ShownKey(KeyView, frozen=True):
    key: str
    """All of it, this once: the server keeps its hash alone."""


class Choices(Response, frozen=True):
    """What a page can offer: GET /v1/options."""

    agents: list[AgentView]
    default_agent: str
    profiles: list[str]
    default_profile: str
    workspace_roots: list[str]


class Health(Response, frozen=True):
    status: Literal["ok", "draining"]
    version: str
    protocol: int
    level: int
    seal: Seal
    sessions: int
    active_turns: int
    queued_turns: int
    uptime_s: float
    heartbeat_s: float


class Problem(Response, frozen=True):
    """RFC 9457 problem details, with our members `code`, `fault` and `hint`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    fault: Literal["client", "agent", "host", "hermetic"]
    hint: str
    turn_id: str | None = None
    """With `session_busy`: the turn that is active."""
    quota: str | None = None
    """With `quota_exceeded`: which one; the header Retry-After says when to ask again."""
    limit: float | None = None
    """Of that quota."""
    request_id: str | None = None
    """Also in the header `X-Request-Id`; the server's log has it."""
