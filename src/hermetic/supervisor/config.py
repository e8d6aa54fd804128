"""The configuration: one TOML file, one frozen tree of structs, every limit with its default and its unit.

Secrets never stand in the file: they come from the server's environment (`pass_env` names the variables) or from files
(`env_file`), and an inline table that looks like one is refused.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: an unknown key is an error."""


class Server(Section, frozen=True):
    bind: str = "127.0.0.1:8642"
    """HOST:PORT; port 0 lets the kernel choose. Anything but loopback needs --insecure while there are no tenants."""
    data: str = "~/.local/share/hermetic"
    """Database, workspaces and kept output of children."""
    body_bytes_max: int = 4 << 20
    """A request's body; larger than limits.message_bytes_max by what JSON escapes may add."""
    drain_s: float = 10.0
    """On SIGTERM running turns get this long to finish before they are cancelled."""


class Turns(Section, frozen=True):
    concurrent_max: int = 16
    """Turns that run at once; more wait in the queue. A Python child costs about 10 MiB and a core's share."""
    queue_max: int = 1000
    """Turns that wait; one more is refused with 429."""
    ready_s: float = 30.0
    """From spawn to the child's `Ready`; a cold hermes-agent on a busy disk needs up to ten."""
    wall_s: float = 3600.0
    """Wall clock of a turn from its start; then it ends as timed_out."""
    approval_s: float = 300.0
    """How long an approval or a clarification waits before the answer is deny."""
    grace_s: float = 5.0
    """Between SIGTERM and SIGKILL."""
    exit_s: float = 5.0
    """Between the agent's result and the end of its process; then the tree is killed, the result stands."""


class Limits(Section, frozen=True):
    message_bytes_max: int = 1 << 20
    """A user's message in UTF-8."""
    frame_bytes_max: int = 1 << 20
    """One event of a child."""
    event_bytes_max: int = 256 << 20
    """All events of a turn; then it ends as over_limit."""
    stderr_bytes_max: int = 64 << 10
    """What is kept of a child's prints: the last part."""
    stderr_lines: int = 20
    """Lines of it in the event of a crash."""


class Stream(Section, frozen=True):
    heartbeat_s: float = 10.0
    """A comment line on an idle stream; proxies cut at 30 to 60 s, SSE.md asks for 15 at most."""
    retry_ms: int = 1000
    """What readers are told to wait before they reconnect."""
    ring_bytes: int = 1 << 20
    """Encoded events kept in memory per running turn; what has left is read from the journal."""
    ring_events: int = 4096


class Workspaces(Section, frozen=True):
    roots: list[str] = field(default_factory=list)
    """Folders in which a session may choose its workspace, beside its own under the data directory. Empty: none."""


class Agent(Section, frozen=True):
    adapter: str = "function"
    target: str | None = None
    """`module:callable` for the adapter `function`."""
    python_path: list[str] = field(default_factory=list)
    """Put in front of sys.path in the child."""
    env: dict[str, str] = field(default_factory=dict)
    """Variables for the child. Not for secrets: use pass_env or the profile's env_file."""
    pass_env: list[str] = field(default_factory=list)
    """Names of variables that are copied from the server's environment."""
    description: str = ""
    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """The agent's own settings; they reach the adapter as they are."""


class Profile(Section, frozen=True):
    env_file: str | None = None
    """A dotenv file, read at the start of every turn."""
    env: dict[str, str] = field(default_factory=dict)
    pass_env: list[str] = field(default_factory=list)
    home: str | None = None
    """HERMES_HOME and HOME of the child; None: a folder of its own under the data directory."""


class Config(Section, frozen=True):
    server: Server = field(default_factory=Server)
    turns: Turns = field(default_factory=Turns)
    limits: Limits = field(default_factory=Limits)
    stream: Stream = field(default_factory=Stream)
    workspaces: Workspaces = field(default_factory=Workspaces)
    agents: dict[str, Agent] = field(default_factory=lambda: {"demo": Agent(adapter="demo")})
    """`demo` is there unless the file defines it otherwise."""
    profiles: dict[str, Profile] = field(default_factory=lambda: {"default": Profile()})
    default_agent: str | None = None
    """None: the only one that the file defines, else `demo`."""
    default_profile: str = "default"
