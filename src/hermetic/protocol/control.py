"""Reports: what the process that answers for a turn's tree tells the supervisor, one JSON value a packet.

That process is the launcher or, where there is no PID namespace, a keeper. Reports travel on the turn's control socket,
a SOCK_SEQPACKET pair that the agent never has, so an agent cannot forge them. The other way go single bytes
(`TERMINATE`, `KILL`); the end of the socket means that the supervisor is gone, and is obeyed like `KILL`.
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
    """The agent's process is sealed and about to run the agent. Not sent when the tree was killed before that.

    With it come the listeners of the policy's ports, as descriptors.
    """

    pid: int
    """The agent's process id, as the supervisor sees it."""
    init_pid: int
    """The process whose end is the end of the tree, as the supervisor sees it."""
    mechanisms: list[str] = field(default_factory=list)
    """What holds the tree, by the names of launch.MECHANISMS."""
    missing: list[str] = field(default_factory=list)
    """What was optional and this host does not give."""


class Exited(Report, frozen=True):
    """Nothing of the tree lives any more. Last report, then the socket ends."""

    exit_code: int | None = None
    """The agent's own; None when a signal ended it."""
    signal: str | None = None
    """Its name, such as `SIGKILL`."""
    over_limit: str | None = None
    """The field of launch.Limits that the kernel enforced by a kill, such as `memory_bytes`."""
    refused: str | None = None
    """Why the seal could not be made, for people; then the agent has not run."""


AnyReport = Spawned | Exited

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(AnyReport).decode
