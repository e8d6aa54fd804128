"""What a process may do by who it is: user, groups, capabilities; and that no program gives it more.

Order matters. The bounding set can be emptied early: it says what an exec could give, and takes nothing away yet.
Groups go before the user, since only a privileged process may change them. The change of the user clears three things
that others rely on: the capabilities, which are then cleared once more, for the case that the user stays; the signal
for the parent's death, which is put back; and it makes the process not dumpable, so that its /proc folder belongs to
root and nobody of its own user can read its memory or environment (proc(5), ptrace(2)). no_new_privs makes set-user-id
programs ordinary ones, and lets an unprivileged process use Landlock and seccomp.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct

from hermetic.agent_child.seal import syscalls
from hermetic.protocol.launch import Limits

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 2, 4, 24, 38
_PR_GET_NO_NEW_PRIVS = 39
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITIES_MAX = 64

OOM_SCORE_ADJ = 500
"""When the host itself is out of memory, a turn goes before anything else of the same size, and the agent and its
tools before their init."""


def empty_bounding_set() -> None:
    for number in range(_CAPABILITIES_MAX):
        try:
            syscalls.prctl(_PR_CAPBSET_DROP, number)
        except OSError:
            if number == 0:  # not the end of the kernel's list: we may not
                raise
            return


def become(uid: int, gid: int) -> None:
    """Needs the privilege to; raises OSError."""
    at_parents_death = parents_death_signal()
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    syscalls.prctl(_PR_SET_PDEATHSIG, at_parents_death)


def drop_capabilities() -> None:
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    syscalls.call(syscalls.CAPSET, header, bytes(24))


def set_dumpable(yes: bool) -> None:
    """A process that is not dumpable cannot be read by another of its user. exec makes it dumpable again."""
    syscalls.prctl(_PR_SET_DUMPABLE, int(yes))


def gain_nothing_by_exec() -> None:
    syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1)


def gains_nothing_by_exec() -> bool:
    return syscalls.prctl(_PR_GET_NO_NEW_PRIVS) == 1


def parents_death_signal() -> int:
    number = ctypes.c_int()
    syscalls.libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(number))
    return number.value


def prefer_to_be_killed() -> None:
    """By the kernel that is out of memory. Inherited."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(OOM_SCORE_ADJ))


def set_rlimits(limits: Limits, *, memory: bool, processes: bool) -> None:
    """`memory`, `processes`: also these, which no cgroup holds. Inherited; hard, so that none can be raised again.

    No core files (they hold secrets and fill disks), no locked memory and no message queues (neither is counted where
    it is used up).
    """
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_DATA: limits.memory_bytes if memory else None,
        resource.RLIMIT_NPROC: limits.processes if processes else None,
    }
    for kind, value in wanted.items():
        if value is not None:
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))
