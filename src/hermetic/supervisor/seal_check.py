"""The seal, looked at from outside: what the kernel says of the agent's process, before it is given its turn.

The process that seals is ours, but it runs beside code of the agent's choice (what the configuration preloads) and on
kernels of all ages; a promise that nobody checks is none. What `/proc` tells is compared with what was asked for;
Landlock shows nothing there, and is not checked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final

NAMESPACES: Final = {
    "pid_namespace": "pid",
    "mount_namespace": "mnt",
    "ipc_namespace": "ipc",
    "uts_namespace": "uts",
    "network_namespace": "net",
    "cgroup_namespace": "cgroup",
    "user_namespace": "user",
}
"""Mechanism → its link in /proc/PID/ns (namespaces(7))."""
_CAPABILITIES: Final = ("CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd")


def broken(
    mechanisms: Iterable[str],
    status: str,
    uid: int | None,
    same_namespace: Callable[[str], bool | None],
) -> list[str]:
    """Of `mechanisms`, those that do not hold. `status`: /proc/PID/status; `uid`: the turn's own user, if it has one;
    `same_namespace`: whether the process is in our own namespace of that link's name, None when we may not look."""
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())}

    def first(name: str) -> str:
        return (fields.get(name) or [""])[0]

    def holds(mechanism: str) -> bool:
        if mechanism in NAMESPACES:
            return same_namespace(NAMESPACES[mechanism]) is not True
        match mechanism:
            case "no_new_privs":
                return first("NoNewPrivs") == "1"
            case "seccomp":
                return first("Seccomp") == "2"
            case "no_capabilities":
                # An ordinary user cannot empty its bounding set, from which with no_new_privs nothing comes.
                ours = _CAPABILITIES[:-1] if first("NoNewPrivs") == "1" and uid is None else _CAPABILITIES
                return all(not first(name).strip("0") for name in ours if name in fields)
            case "tenant_uid":
                return fields.get("Uid") == [str(uid)] * 4 and fields.get("Groups") == []
        return True

    return [name for name in mechanisms if not holds(name)]


def look(pid: int, mechanisms: Iterable[str], uid: int | None) -> list[str]:
    """`broken`, of a living process. One that is gone is none of ours to judge: → empty."""

    def same_namespace(link: str) -> bool | None:
        try:
            return os.readlink(f"/proc/{pid}/ns/{link}") == os.readlink(f"/proc/self/ns/{link}")
        except OSError:  # another user's process, or one that is not dumpable
            return None

    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            status = file.read()
    except OSError:
        return []
    return broken(mechanisms, status, uid, same_namespace)
