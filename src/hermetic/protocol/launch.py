"""What the supervisor and a launcher say to each other, and the seal as a value.

A launcher is one process for one agent and profile: started once with the environment of both, it imports what the
agent needs and then forks a process tree per turn. The two talk over a SOCK_SEQPACKET socket pair, one JSON value a
packet: the supervisor sends `Prepare` first, then a `Spawn` for each turn; the launcher answers `Prepare` with
`Prepared` or `CannotPrepare`. From then on each turn has a control socket of its own (control.py). The end of the socket
means that the other side is gone: a launcher then ends, and everything that it has forked ends with it.

A `Policy` says what holds a turn, and is the whole truth about it: a mechanism that it names and that the host refuses
fails the turn, because a turn must never run with less than it was promised.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct, field

from hermetic.protocol.events import tag_of

PACKET_BYTES_MAX = 128 << 10
"""Of one packet: below the kernel's default for a socket's buffer (net.core.wmem_default, some 208 KiB), so that a send
never fails for its size."""


class Cgroup(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A folder of a cgroup hierarchy in which the launcher makes one folder per turn."""

    controllers: list[str]
    """Of `memory`, `pids`, `cpu`: those that are set here. Version 1 has one hierarchy for each, version 2 one for all.
    Empty: version 2 without controllers, which can still kill (`cgroup.kill`)."""
    version: int
    path: str
    """Absolute. It exists, and we may make folders in it."""


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one turn may use of the host; the kernel keeps these. None: no limit of ours."""

    memory_bytes: int | None = None
    """All processes together; without a memory cgroup each process's address space (RLIMIT_AS is not set: too many
    runtimes reserve more than they use), so RLIMIT_DATA."""
    processes: int | None = None
    """Processes and threads together: a pids cgroup, else RLIMIT_NPROC where that is private to the turn."""
    cpu_share: int | None = None
    """Weight against other turns when the host is busy, 1 to 10,000, 100 is the norm (cgroup v2's cpu.weight)."""
    file_bytes: int | None = None
    """Of one file (RLIMIT_FSIZE)."""
    open_files: int | None = None
    """Of one process (RLIMIT_NOFILE)."""
    tmp_bytes: int = 256 << 20
    """Of /tmp, and of a home that is not kept."""
    shm_bytes: int = 64 << 20
    """Of /dev/shm."""


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The seal of one launcher's turns."""

    mechanisms: list[str] = field(default_factory=list)
    """By the names of MECHANISMS; all of these hold each turn, or the turn fails."""
    optional: list[str] = field(default_factory=list)
    """Wanted where the host has them; what is missing is reported and fails nothing."""
    uid: int | None = None
    """The turn's user when the supervisor is root (`tenant_uid`). None: the supervisor's own."""
    gid: int | None = None
    readable: list[str] = field(default_factory=list)
    """Absolute host paths, resolved, that a turn sees at the same place, read-only: the interpreter, the agent's code."""
    writable: list[str] = field(default_factory=list)
    """The same, writable, beside the workspace: the profile's home where the adapter keeps its memory there."""
    home: str | None = None
    """Where a size-capped tmpfs is mounted for HOME. None: HOME is one of `writable`."""
    ports: list[int] = field(default_factory=list)
    """Listeners on 127.0.0.1 made inside the turn's own network namespace and handed to the supervisor with `Spawned`,
    in this order."""
    limits: Limits = field(default_factory=Limits)
    cgroups: list[Cgroup] = field(default_factory=list)


MECHANISMS = {
    "pid_namespace": "own process ids; the end of its init is the end of every process in it",
    "mount_namespace": "own mounts",
    "ipc_namespace": "own System V and POSIX message queues and shared memory",
    "uts_namespace": "own host name",
    "network_namespace": "own network with nothing in it but a loopback of its own",
    "cgroup_namespace": "its cgroup reads as the root",
    "proc": "a /proc with its own processes only",
    "private_root": "a root made of what the policy names and nothing else",
    "user_namespace": "an unprivileged server makes the others by this one",
    "tenant_uid": "a user id of its own (a server that is root)",
    "no_capabilities": "no capability in any set, none to be had",
    "no_new_privs": "no setuid program gives it more",
    "seccomp": "a filter of system calls",
    "landlock": "access to files and signals by rule, nested for the tools below the agent",
    "cgroup_memory": "memory of all its processes together",
    "cgroup_pids": "number of all its processes together",
    "rlimits": "limits for each of its processes",
    "subreaper": "without a PID namespace: its processes are found by their descent and killed",
}
"""Every mechanism, with what it gives a turn."""


class Message(Struct, frozen=True, kw_only=True, tag_field="launch", tag=tag_of, forbid_unknown_fields=True):
    """Base of all."""


class Prepare(Message, frozen=True):
    """First packet to a launcher."""

    policy: Policy
    preload: list[str] = field(default_factory=list)
    """Modules to import before the first turn. One that starts a thread is refused: fork would lose it."""
    python_path: list[str] = field(default_factory=list)
    """Put in front of sys.path, for `preload`."""
    standby: int = 0
    """Turns forked in advance, each used once."""
    interpreter: str | None = None
    """Cold: each turn's agent is exec'd in this Python. None: it runs in the process that was forked."""


class Spawn(Message, frozen=True):
    """One turn. With it come four descriptors: commands (to read), events (to write), stderr, control socket."""

    turn_id: str
    workspace: str
    """Absolute, resolved. Seen by the turn at the same path."""
    environment: dict[str, str] = field(default_factory=dict)
    """What the launcher's own environment lacks: the few variables that are this turn's."""


class Retire(Message, frozen=True):
    """No more turns will come: end when the last one has ended."""


class Prepared(Message, frozen=True):
    """Everything is imported; turns can come."""

    pid: int
    python: str
    files: list[str] = field(default_factory=list)
    """What `preload` has loaded from outside the standard library: source files, and of installed packages their folder
    and the one they are installed in. When one of these changes on disk, this launcher is old."""


class CannotPrepare(Message, frozen=True):
    """Last packet of a launcher that gives up."""

    message: str
    hint: str | None = None
    fault: str = "host"


AnyMessage = Prepare | Spawn | Retire | Prepared | CannotPrepare

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(AnyMessage).decode
