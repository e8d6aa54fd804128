"""Looks at a process from outside: CPU time, memory, wake-ups. All by /proc or the process's own CPU clock."""

from __future__ import annotations

import ctypes
import os
import resource
import time
from contextlib import suppress
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process, ended ones too, in nanosecond steps (clock_getcpuclockid(3)).

    /proc/PID/stat has the same in steps of 10 ms. Children are not in it.
    """
    clock = ctypes.c_int()
    if error := _libc.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(clock.value)


def cpu_with_children_s(pid: int) -> float:
    """The same with the children that it has reaped, in steps of 10 ms (proc_pid_stat(5)). 0: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Of all its threads: the one that started a child is its parent (proc_pid_task_children(5))."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _field(pid: int, file: str, name: str) -> int:
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/{pid}/{file} has no {name}")


def rss_kib(pid: int) -> int:
    return _field(pid, "status", "VmRSS")


def pss_kib(pid: int) -> int:
    """Its own pages, and its share of those that it has together with others."""
    return _field(pid, "smaps_rollup", "Pss")


def wakeups(pid: int) -> int:
    """How often its main thread, where the event loop runs, has slept and was woken.

    Not the sum of all threads: the count of a thread goes with it.
    """
    return _field(pid, "status", "voluntary_ctxt_switches")


def sockets(pid: int) -> int:
    """Open ones, of any kind."""
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed while we looked
            found += str(entry.readlink()).startswith("socket:")
    return found


def raise_open_files(wanted: int) -> int:
    """For us and all that we start. → the limit now in force, which may be less than wanted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    now = max(soft, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (now, hard))
    return now
