"""Commands: what the supervisor tells a running child, one JSON line each on the child's stdin.

The first is always `Start`; it answers `Ready` with the protocol version that the supervisor will keep. All others
may come at any time after it, and carry the id of what they answer, so that one that comes twice does no harm.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct, field

from hermetic.protocol.events import Choice, Usage, tag_of


class Command(Struct, frozen=True, kw_only=True, tag_field="command", tag=tag_of, forbid_unknown_fields=True):
    """Base of all commands."""


class Start(Command, frozen=True):
    """Everything that one turn needs. The environment and the working directory are the process's own."""

    protocol: int
    turn_id: str
    session_id: str
    message: str
    workspace: str
    history: list[dict[str, Any]] = field(default_factory=list)
    """The session's earlier messages, oldest first, this turn's not among them."""
    attachments: list[str] = field(default_factory=list)
    agent: str = "demo"
    profile: str = "default"
    adapter: str = "demo"
    target: str | None = None
    """`module:callable`, for the adapters that run the user's own code."""
    python_path: list[str] = field(default_factory=list)
    model: str | None = None
    personality: str | None = None
    """One of those that the profile defines, for the adapters that know some."""
    title: str = ""
    """The session's."""
    used: Usage = field(default_factory=Usage)
    """By the session's earlier turns together."""
    options: dict[str, Any] = field(default_factory=dict)
    """The agent's own settings, as they stand in the configuration."""
    frame_bytes_max: int = 1 << 20
    approval_s: float = 300.0
    """How long an approval or a clarification may wait."""
    grace_s: float = 5.0
    """From SIGTERM to SIGKILL."""


class Approve(Command, frozen=True):
    """What the user chose for an approval."""

    approval_id: str
    choice: Choice


class Answer(Command, frozen=True):
    """What the user answered to a question."""

    clarify_id: str
    text: str


class Steer(Command, frozen=True):
    """A word for the running agent."""

    text: str


class Cancel(Command, frozen=True):
    """End now, keep what was said; SIGTERM comes with it."""

    reason: str = ""


AnyCommand = Start | Approve | Answer | Steer | Cancel

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(AnyCommand).decode
