"""Cgroups: memory and processes of a whole turn, which no other limit of the kernel counts together.

Version 2 has one hierarchy with all controllers in it, version 1 one for each; hosts in between have both. Here a turn
gets a folder in each hierarchy that its policy names. Init joins before it forks, so everything of the turn is born
inside, and its own process is added to what the turn may have. The first join of a while costs milliseconds (the kernel
waits for a grace period of all its processors), which is why it belongs to what a standby has behind it.

The kernel kills one process when the memory is used up, the largest, not all: an agent can so be told that its tool was
too hungry. How often it did is counted in the folder, and read before that is removed.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress

from hermetic.protocol.launch import Cgroup, Limits

MECHANISMS = {"memory": "cgroup_memory", "pids": "cgroup_pids"}
_REMOVE_TRIES, _REMOVE_AGAIN_S = 100, 0.002
"""A folder is busy until the kernel has let the last process go, a moment after it was reaped."""


def join(cgroup: Cgroup, name: str, limits: Limits) -> None:
    """The caller, and all that it forks from now on. Raises OSError."""
    folder = os.path.join(cgroup.path, name)
    with suppress(FileExistsError):
        os.mkdir(folder, 0o755)
    for file, value in _settings(cgroup, limits):
        _write(os.path.join(folder, file), value)
    for file in ("memory.swap.max", "memory.memsw.limit_in_bytes"):
        # Without swap accounting there is no such file; then swap is the host's own, and to be switched off there.
        if "memory" in cgroup.controllers and limits.memory_bytes and os.path.exists(os.path.join(folder, file)):
            _write(os.path.join(folder, file), "0" if cgroup.version == 2 else str(limits.memory_bytes))
    _write(os.path.join(folder, "cgroup.procs"), "0")


def _settings(cgroup: Cgroup, limits: Limits) -> list[tuple[str, str]]:
    settings = []
    if "memory" in cgroup.controllers and limits.memory_bytes:
        settings.append(("memory.max" if cgroup.version == 2 else "memory.limit_in_bytes", str(limits.memory_bytes)))
    if "pids" in cgroup.controllers and limits.processes:
        settings.append(("pids.max", str(limits.processes + 1)))
    if "cpu" in cgroup.controllers and limits.cpu_share:
        # Version 1 counts in 1,024ths of the norm and refuses less than 2.
        share = str(max(2, limits.cpu_share * 1024 // 100))
        settings.append(("cpu.weight", str(limits.cpu_share)) if cgroup.version == 2 else ("cpu.shares", share))
    return settings


def enforced(cgroup: Cgroup, name: str) -> str | None:
    """The field of Limits that the kernel enforced, a kill before a refused fork. None also without the folder."""
    folder = os.path.join(cgroup.path, name)
    for file, word, limit in (
        ("memory.events", "oom_kill", "memory_bytes"),
        ("memory.oom_control", "oom_kill", "memory_bytes"),
        ("pids.events", "max", "processes"),
    ):
        with suppress(OSError), open(os.path.join(folder, file)) as lines:
            counts = dict(line.split() for line in lines)
            if int(counts.get(word, 0)):
                return limit
    return None


def remove(cgroup: Cgroup, name: str) -> None:
    """The supervisor sweeps what stays behind."""
    for _ in range(_REMOVE_TRIES):
        try:
            os.rmdir(os.path.join(cgroup.path, name))
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            time.sleep(_REMOVE_AGAIN_S)
        else:
            return


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
