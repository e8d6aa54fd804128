"""Events: what a turn says, in the order it was said.

Three families share one tag, `event`, which is also the name on the SSE `event:` line:

* `ChildEvent`: what the child may write to its event stream. Of these `Ready`, `Result` and `Failed` are between the
  child and the supervisor only; the rest are journaled byte for byte and forwarded to readers.
* `SupervisorEvent`: what only the supervisor says. The child's decoder does not know these tags, so a child cannot
  forge the end of its own turn.
* `StreamEvent`: what belongs to one reader's stream and is never journaled.

Names and fields of `token, tool, approval, compressed, done, apperror, cancel` are those of the Hermes Web UI.
Times are seconds since the epoch (float) unless the name says otherwise.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

Choice = Literal["once", "session", "always", "deny"]
Verdict = Literal["done", "failed", "cancelled", "crashed", "timed_out", "over_limit", "lost"]
"""How a turn ended."""
StateName = Literal[
    "queued", "starting", "running", "waiting", "ending", "cancelling",
    "done", "failed", "cancelled", "crashed", "timed_out", "over_limit", "lost",
]  # fmt: skip
"""A turn's state as readers see it: a phase of supervisor/turn.py, or, once it has ended, its verdict."""
Count = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
"""Of tokens. Never negative, for a session adds them up; 2**53 - 1 is the last whole number that JavaScript keeps."""
Dollars = Annotated[float, Meta(ge=0)]
"""US dollars."""


def tag_of(class_name: str) -> str:
    """`ToolComplete` → `tool_complete`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", class_name).lower()


class Event(Struct, frozen=True, kw_only=True, tag_field="event", tag=tag_of, forbid_unknown_fields=True):
    """Base of all events."""


class Usage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens and money of one turn; the context figures only where the agent has a compressor."""

    input_tokens: Count = 0
    output_tokens: Count = 0
    estimated_cost: Dollars = 0.0
    context_length: Count | None = None
    threshold_tokens: Count | None = None
    last_prompt_tokens: Count | None = None


# --- child → supervisor -------------------------------------------------------------------------------------------


class Ready(Event, frozen=True, tag="ready"):
    """First frame of every child: it has claimed its streams and waits for `Start`."""

    protocol: int
    pid: int
    """Process id in the child's own PID namespace."""
    python: str


class Token(Event, frozen=True):
    """One piece of the answer's text."""

    text: str


class Reasoning(Event, frozen=True):
    """One piece of the model's reasoning."""

    text: str


class InterimAssistant(Event, frozen=True):
    """A whole assistant message between tool calls; `already_streamed` says that its tokens went before."""

    text: str
    already_streamed: bool = True


class Tool(Event, frozen=True):
    """A tool call begins. `args`: the first 4 keys, each value as text cut to 120 characters and `...`."""

    name: str
    preview: str = ""
    args: dict[str, str] = field(default_factory=dict)
    tid: str = ""
    """Names this call within the turn; `ToolComplete` repeats it."""


class ToolComplete(Event, frozen=True):
    """A tool call ended. `snippet`: the first 200 characters of its result."""

    name: str
    tid: str = ""
    snippet: str = ""
    is_error: bool = False
    duration_s: float | None = None


class Approval(Event, frozen=True):
    """The agent asks before it acts and waits; without an answer by `expires_at` the answer is `deny`."""

    approval_id: str
    command: str
    description: str = ""
    pattern_key: str = ""
    pattern_keys: list[str] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=lambda: ["once", "session", "always", "deny"])
    expires_at: float = 0.0


class Clarify(Event, frozen=True):
    """The agent asks a question and waits; without an answer by `expires_at` the answer is the empty text."""

    clarify_id: str
    question: str
    choices: list[str] = field(default_factory=list)
    expires_at: float = 0.0


class Metering(Event, frozen=True):
    """Usage so far; the last one of a turn counts."""

    usage: Usage


class Title(Event, frozen=True):
    """The agent proposes a title; a title that the user gave stays."""

    title: str


class Compressing(Event, frozen=True):
    """The agent shortens its context, which may take a while."""

    message: str


class Compressed(Event, frozen=True):
    """The agent has shortened its context."""

    message: str


class PendingSteerLeftover(Event, frozen=True):
    """Steering text that the agent never read before it ended: send it as the next message."""

    text: str


class Warning(Event, frozen=True):
    """Something went wrong that did not end the turn."""

    message: str
    code: str = "warning"
    fault: str = "agent"
    hint: str = ""


class Result(Event, frozen=True):
    """The adapter has finished. Nothing may follow it.

    `text` None means: the answer is what the tokens said. `messages` None means: the turn's messages are folded from
    its events; a list (of provider-shaped mappings) replaces the session's history. `turn_messages` are those after the
    user's message alone, with tool results whole; they take the place of the folded one.
    """

    text: str | None = None
    usage: Usage | None = None
    messages: list[dict[str, Any]] | None = None
    turn_messages: list[dict[str, Any]] | None = None
    session_id: str | None = None
    """The agent's own id for the conversation, when compressing it has changed that."""
    title: str | None = None
    interrupted: bool = False


class Failed(Event, frozen=True):
    """The adapter could not finish. `type` is `rate_limit`, else `error` or a more precise word."""

    message: str
    type: str = "error"
    hint: str = ""
    fault: str = "agent"


ForwardedEvent = (
    Token | Reasoning | InterimAssistant | Tool | ToolComplete | Approval | Clarify | Metering | Title
    | Compressing | Compressed | PendingSteerLeftover | Warning
)  # fmt: skip
ChildEvent = Ready | ForwardedEvent | Result | Failed


# --- supervisor → readers -----------------------------------------------------------------------------------------


class Seal(Struct, frozen=True, kw_only=True):
    """What holds the child: the level of SECURITY.md that was reached, what of it is missing, and how it dies."""

    level: int
    mechanisms: list[str] = field(default_factory=list)
    """For example `pid_namespace`, `mount_namespace`, `cgroup_kill`."""
    missing: list[str] = field(default_factory=list)


class Queued(Event, frozen=True):
    """The turn waits; `position` 1 is the next to start."""

    turn_id: str
    position: int


class Started(Event, frozen=True):
    """The child is ready and has been given the turn."""

    turn_id: str
    session_id: str
    epoch: int
    agent: str
    profile: str
    workspace: str
    pid: int
    seal: Seal


class ApprovalResolved(Event, frozen=True):
    """An approval is settled; every reader can put it away."""

    approval_id: str
    choice: Choice
    by: Literal["user", "timeout", "end"]
    """`end`: the turn ended before anyone answered."""


class ClarifyResolved(Event, frozen=True):
    """A question is settled; every reader can put it away."""

    clarify_id: str
    text: str
    by: Literal["user", "timeout", "end"]


class Steer(Event, frozen=True):
    """A reader gave the running agent a word; it has been sent to the child."""

    text: str


class EgressDenied(Event, frozen=True):
    """The turn wanted to reach a place that it may not. The same is told once, of many some; `total` counts them all."""

    method: str
    host: str
    port: int
    reason: str
    """`host_not_listed`, `port_not_listed`, `address_not_listed`, `address_not_public`, `own_address`,
    `server_name_differs`, `not_tls`, `host_header_differs`, `path_not_allowed` (docs/egress.md)."""
    path: str = ""
    """Of a plain HTTP request or one to the model, without its query, cut to 200 characters."""
    total: int = 1
    """Denials of this turn so far, with those that have no event of their own."""


class Cancelling(Event, frozen=True):
    """The turn is being stopped: asked to end, then killed after `grace_s`."""

    message: str
    grace_s: float


class Done(Event, frozen=True):
    """Terminal: the agent finished. `session` is the compact session with this turn's `messages` and `tool_calls`."""

    turn_id: str
    session: dict[str, Any]
    usage: Usage
    state: Literal["done"] = "done"


class Apperror(Event, frozen=True):
    """Terminal: anything but a finish or a cancel."""

    turn_id: str
    message: str
    type: str
    """`error`, `rate_limit`, `protocol`, `crashed`, `timed_out`, `over_limit`, `lost`, `storage`, …"""
    state: Verdict
    fault: str
    hint: str = ""
    exit_code: int | None = None
    signal: str | None = None
    stderr: list[str] = field(default_factory=list)
    """The last lines that the child wrote to stdout or stderr."""


class Cancel(Event, frozen=True):
    """Terminal: cancelled, before the start or while running."""

    turn_id: str
    message: str
    state: Literal["cancelled"] = "cancelled"


class StreamEnd(Event, frozen=True):
    """Last event of every turn; the stream closes after it."""

    turn_id: str
    state: Verdict


SupervisorEvent = (
    Queued
    | Started
    | ApprovalResolved
    | ClarifyResolved
    | Steer
    | EgressDenied
    | Cancelling
    | Done
    | Apperror
    | Cancel
    | StreamEnd
)


# --- one reader's stream only -------------------------------------------------------------------------------------


class ToolCall(Struct, frozen=True, kw_only=True):
    """A tool call as folded from `Tool` and `ToolComplete`."""

    tid: str
    name: str
    preview: str = ""
    args: dict[str, str] = field(default_factory=dict)
    snippet: str | None = None
    is_error: bool = False
    duration_s: float | None = None
    finished: bool = False


class Snapshot(Struct, frozen=True, kw_only=True):
    """A turn folded up to event `seq`: enough to draw it without its past."""

    turn_id: str
    state: StateName
    seq: int
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    pending: list[Approval | Clarify] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    title: str | None = None


class Reset(Event, frozen=True):
    """The cursor is not one of this turn's: throw away what you have, draw `snapshot`, go on after its `seq`."""

    reason: str
    snapshot: Snapshot


class DrainingNotice(Event, frozen=True, tag="draining"):
    """The server is about to restart: reconnect after `retry_ms` with the last id."""

    retry_ms: int


class TurnEvent(Struct, frozen=True, kw_only=True):
    """An event as it stands in the stream of all turns: what a turn said, and which turn it was."""

    event: str
    """The name of the event in `data`."""
    turn_id: str
    session_id: str
    seq: int
    """Its number in its turn, from 1 without a hole."""
    data: ForwardedEvent | SupervisorEvent
    """As in the turn's own stream."""


class OpenTurn(Struct, frozen=True, kw_only=True):
    """A turn that has not ended, for who begins to follow."""

    session_id: str
    snapshot: Snapshot


class ResetAll(Event, frozen=True, tag="reset"):
    """The first event of a stream of all turns, also of one whose cursor leads nowhere: throw away what you have of
    turns that run, draw `turns`, and go on."""

    reason: str
    turns: list[OpenTurn]


TenantEvent = TurnEvent | ResetAll | DrainingNotice
"""What the stream of all turns has for data; TurnEvent under the name of the event in it."""
StreamEvent = Reset | DrainingNotice
ReaderEvent = ForwardedEvent | SupervisorEvent | StreamEvent
"""Everything that a reader can meet."""
JournalEvent = ForwardedEvent | SupervisorEvent
"""Everything that the journal can hold."""

encode = msgspec.json.Encoder().encode
"""Any event → one line of JSON without its newline."""


def event_name(event: Event) -> str:
    """The tag on the wire, also the SSE event name."""
    return str(event.__struct_config__.tag)
