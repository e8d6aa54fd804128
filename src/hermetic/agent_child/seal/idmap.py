"""A user's files, owned by someone else on the host.

The tenant's user id exists inside the seal alone, while the files of a workspace belong to whoever owns it on the host.
A mount can translate (mount_setattr(2), MOUNT_ATTR_IDMAP): the owner outside reads as the tenant inside, and what the
tenant makes belongs to the owner outside. Everybody else's files read as nobody's. The map is that of a user namespace;
one that nothing lives in will do, so a child is born into it, its map written, the namespace opened, the child ended.

What the tenant makes is the owner's outside, so nothing here may become a set-user-id program: seccomp.py.
"""

from __future__ import annotations

import os
import signal
import struct

from hermetic.agent_child.seal import host_descriptors, syscalls

_NEWUSER = 0x10000000
_WALL = 0x40000000
"""wait(2)'s __WALL: also for children that send no SIGCHLD."""
_IDMAP = 0x00100000
_AT_EMPTY_PATH = 0x1000

_known: dict[tuple[int, int, int, int], int] = {}
"""(owner, its group, tenant, its group) → the namespace's descriptor; what the launcher knows, its children inherit."""


def descriptors() -> list[int]:
    """What an init must keep when it closes all else."""
    return list(_known.values())


def translate(tree: int, owner: tuple[int, int], tenant: tuple[int, int]) -> None:
    """`tree`: of open_tree(2), not yet attached. Raises OSError; EINVAL: the file system cannot be translated."""
    attributes = struct.pack("QQQQ", _IDMAP, 0, 0, namespace(owner, tenant))
    syscalls.call(syscalls.MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, len(attributes))


def namespace(owner: tuple[int, int], tenant: tuple[int, int]) -> int:
    """Some 0.3 ms the first time."""
    key = (*owner, *tenant)
    if key not in _known:
        _known[key] = _make(owner, tenant)
    return _known[key]


def _make(owner: tuple[int, int], tenant: tuple[int, int]) -> int:
    # Neither the interpreter nor libc is told of this fork: the child makes one system call and is killed.
    pid = syscalls.call(syscalls.CLONE, _NEWUSER, 0, 0, 0, 0)
    if pid == 0:
        while True:
            signal.pause()
    try:
        for kind, outside, inside in zip(("uid_map", "gid_map"), owner, tenant, strict=True):
            with open(f"/proc/{pid}/{kind}", "w") as file:
                file.write(f"{outside} {inside} 1")
        return host_descriptors.keep(os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, _WALL)
