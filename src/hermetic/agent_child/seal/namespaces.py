"""Namespaces: the init of a turn is born into all of them by one system call.

`unshare` and fork would need two processes and would change the launcher, which must fork the next turn from where it
is. So the launcher forks by clone(2) with the namespaces' flags; it has one thread, so that nothing in the interpreter
can be half done. (clone3 could not do more for us, and the system call filters of common containers refuse it.)

libc does not learn of this fork: its note of the first thread's id stays the launcher's. The agent, which may start
threads, is forked from init by os.fork, which sets it right; init has one thread and asks nothing that needs it.

An unprivileged user gets namespaces by a user namespace, in which one id is mapped: its own, to itself. A user
namespace must be entered in the same call, since it owns the others.
"""

from __future__ import annotations

import errno
import os
import signal

from hermetic.agent_child.seal import syscalls
from hermetic.agent_child.seal.errors import SealError
from hermetic.protocol.launch import Policy

NEWUSER = 0x10000000
NEWCGROUP = 0x02000000
FLAGS = {
    "uts_namespace": 0x04000000,
    "ipc_namespace": 0x08000000,
    "network_namespace": 0x40000000,
    "mount_namespace": 0x00020000,
    "pid_namespace": 0x20000000,
}
"""In the order in which an optional one is given up. The cgroup namespace comes later: it is rooted where its maker is,
and init joins its cgroups after its birth."""
_REFUSED = (errno.EPERM, errno.EINVAL, errno.ENOSPC, errno.EUSERS, errno.ENOSYS)
"""The kernel or a filter does not give the namespace (ENOSPC: user.max_*_namespaces). EAGAIN and ENOMEM are no answer
to that question."""

made: list[str] = []
"""In an init: the namespaces that it was born into."""
_ids = (0, 0)


def clone_init(policy: Policy) -> int:
    """Like os.fork: 0 in the init, its process id in the caller. Raises SealError, in the caller alone."""
    global made, _ids
    wanted = [name for name in FLAGS if name in policy.mechanisms or name in policy.optional]
    _ids = os.geteuid(), os.getegid()  # inside, until they are mapped, all read as the overflow id
    while True:
        made = [*wanted, "user_namespace"] if wanted and _ids[0] != 0 else wanted
        try:
            return _fork(_flags(made))
        except OSError as error:
            given_up = next((name for name in wanted if name not in policy.mechanisms), None)
            if error.errno not in _REFUSED or given_up is None:
                raise SealError(" and ".join(made) or "fork", error.strerror or str(error)) from error
            wanted.remove(given_up)


def map_ids() -> None:
    """In an init that was born into a user namespace: before this nearly everything in it is refused."""
    for path, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_ids[0]} {_ids[0]} 1"),
        ("gid_map", f"{_ids[1]} {_ids[1]} 1"),
    ):
        with open(f"/proc/self/{path}", "w") as file:
            file.write(text)


def enter_cgroup_namespace() -> None:
    """After init has joined its cgroups. Raises OSError."""
    syscalls.call(syscalls.UNSHARE, NEWCGROUP)


def _flags(names: list[str]) -> int:
    flags = 0
    for name in names:
        flags |= FLAGS.get(name, NEWUSER)
    return flags


def _fork(flags: int) -> int:
    """Without the hooks that os.fork runs: they make threads, `random` and logging right in a child, which costs it a
    third of its start, and init uses none of these. The agent is forked from init by os.fork, which runs them all."""
    return syscalls.call(syscalls.CLONE, flags | signal.SIGCHLD, 0, 0, 0, 0)
