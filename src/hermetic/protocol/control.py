"""The keeper's reports: what the process that holds a child's tree tells the supervisor, one JSON line each.

They travel on the control socket, a socketpair that the agent never has, so an agent cannot forge them. The other way
go single bytes (`TERMINATE`, `KILL`); the end of the socket means that the supervisor is gone, and is obeyed like
`KILL`.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct, field

from hermetic.protocol.events import tag_of

TERMINATE = b"T"
"""SIGTERM to the agent."""
KILL = b"K"
"""SIGKILL to the whole tree, now."""


class Report(Struct, frozen=True, kw_only=True, tag_field="report", tag=tag_of, forbid_unknown_fields=True):
    """Base of both."""


class Spawned(Report, frozen=True):
    """The agent's process exists. Not sent when the tree was killed before that."""

    pid: int
    """The agent's process id, as the supervisor sees it."""
    init_pid: int
    """The process whose end is the end of the tree, as the supervisor sees it."""
    mechanisms: list[str] = field(default_factory=list)
    """What holds the tree: `pid_namespace`, `mount_namespace`, `ipc_namespace`, `proc`, `user_namespace`, `subreaper`."""
    missing: list[str] = field(default_factory=list)
    """Of the first four, what this host does not give."""


class Exited(Report, frozen=True):
    """Nothing of the tree lives any more. Last report; the keeper ends after it."""

    exit_code: int | None = None
    """The agent's own; None when a signal ended it."""
    signal: str | None = None
    """Its name, such as `SIGKILL`."""
    over_limit: str | None = None
    """The field of launch.Limits that the kernel enforced by a kill, such as `memory_bytes`."""


AnyReport = Spawned | Exited

decode = msgspec.json.Decoder(AnyReport).decode
