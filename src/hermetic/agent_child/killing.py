"""Kills a process's descendants where there is no PID namespace to do it.

The theory: a walk over /proc sees a moment that is past when it ends, and a tree that forks faster than the walk gets
away. A stopped process does not fork. So stop all that are seen, look again, and again until nobody is new; then kill
them all. A stopped or killed parent's orphans come to the nearest subreaper, which is the caller, so no daemon leaves
the tree by forking twice. What remains: between the look and the signal a process may end and its id be given to
another, which takes a whole turn of the kernel's counter in that time. A PID namespace has none of this, so it is
always preferred.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

_LOOK_AGAIN_S = 0.002
"""Killed processes need a moment to die; they leave the table one by one."""


def kill_descendants() -> None:
    """SIGKILL to all below the caller, which must be a subreaper, and wait until the last is reaped."""
    while True:
        stopped: set[int] = set()
        while new := _descendants(os.getpid()) - stopped:
            for pid in new:
                _kill(pid, signal.SIGSTOP)
            stopped |= new
        for pid in stopped:
            _kill(pid, signal.SIGKILL)
        if not _reap():
            return
        time.sleep(_LOOK_AGAIN_S)


def _kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap() -> bool:
    """True while there are children left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _descendants(root: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                # pid (name) state ppid …; the name may hold anything, so count from its last bracket (proc_pid_stat(5))
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state != b"Z":
                    children.setdefault(int(parent), []).append(int(entry))
    found: set[int] = set()
    todo = [root]
    while todo:
        for pid in children.get(todo.pop(), ()):
            if pid not in found:
                found.add(pid)
                todo.append(pid)
    return found
