"""What a launcher imports before its first turn: what every turn needs, then what the agent's configuration names.

A fork copies one thread and all descriptors. A module that starts a thread would leave its turns with a lock that nobody
holds and work that nobody does; one that keeps a descriptor open would share it between turns, and lose it, because a
turn's process is given its own descriptors and no others. Both are refused, by name.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module

NEEDED = (
    "asyncio",
    "json",
    "traceback",
    "hermetic.agent_child.adapters.demo",
    "hermetic.agent_child.adapters.function",
    "hermetic.agent_child.adapters.hermes",
    "hermetic.agent_child.session",
)
"""By nearly every turn. asyncio alone would cost each async agent 40 ms."""
FILES_BYTES_MAX = 64 << 10
"""Of the names of files that are watched: half of a packet. With more than that, their folders are."""


class CannotPreload(Exception):
    """`fault`: as in protocol/errors.py."""

    def __init__(self, message: str, hint: str, fault: str = "host") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fault = fault


def preload(names: Iterable[str]) -> list[str]:
    """Imports all; returns what to watch (launch.Prepared.files). Raises CannotPreload."""
    for name in NEEDED:
        import_module(name)
    before = set(sys.modules)
    for name in names:
        _import(name)
    return watched(set(sys.modules) - before)


def _import(name: str) -> None:
    open_before = _descriptors()
    try:
        import_module(name)
    except BaseException as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        if not missing:
            sys.excepthook(*sys.exc_info())
        raise CannotPreload(
            f'preloading the module "{name}" failed: {type(error).__name__}: {error}',
            "Put the folder that holds it into the agent's python_path, or install it in the agent's environment."
            if missing
            else "The server's log has what it printed. Without it in the agent's `preload` each turn imports it anew.",
            fault="host" if missing else "agent",
        ) from error
    if threads := _threads():
        raise CannotPreload(
            f'the module "{name}" starts a thread when it is imported ({", ".join(threads)}), so it cannot be preloaded: '
            "a fork would lose the thread",
            "Take it out of the agent's `preload`. A numerical library may start none with OMP_NUM_THREADS=1 and "
            "OPENBLAS_NUM_THREADS=1 in the agent's env.",
        )
    if left := _descriptors() - open_before:
        what = ", ".join(sorted({link for fd in left if (link := _link(fd))}))
        raise CannotPreload(
            f'the module "{name}" keeps a file or socket open when it is imported ({what}), so it cannot be preloaded: '
            "all turns would share it",
            "Take it out of the agent's `preload`, or let it open that later.",
        )


def _threads() -> list[str]:
    """All but the main one, those of C libraries as well."""
    named = {thread.native_id: thread.name for thread in threading.enumerate()}
    found = []
    for task in os.listdir("/proc/self/task"):
        if int(task) != os.getpid():
            with suppress(OSError), open(f"/proc/self/task/{task}/comm") as file:
                found.append(named.get(int(task)) or file.read().strip())
    return found


def _descriptors() -> set[int]:
    open_now = {int(name) for name in os.listdir("/proc/self/fd")}
    return {fd for fd in open_now if _link(fd)}  # not the one that was listed with


def _link(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def watched(modules: Iterable[str]) -> list[str]:
    """Source files; of installed packages their folder and the one they are installed in, which pip changes."""
    library = os.path.dirname(os.__file__) + "/"
    found: set[str] = set()
    for name in modules:
        file = getattr(sys.modules.get(name), "__file__", None)
        if not isinstance(file, str) or not os.path.isabs(file):
            continue
        folder, kind, inside = _installed(file)
        if kind:
            found |= {folder + kind, os.path.join(folder + kind, inside.partition("/")[0])}
        elif not file.startswith(library):
            found.add(file)
    if sum(map(len, found)) > FILES_BYTES_MAX:
        found = {os.path.dirname(file) for file in found}
    return sorted(found)


def _installed(file: str) -> tuple[str, str, str]:
    """`/venv/lib/python3/site-packages/openai/x.py` → what is before, `site-packages`, what is behind."""
    for kind in ("site-packages", "dist-packages"):
        before, found, behind = file.partition(f"/{kind}/")
        if found:
            return before + "/", kind, behind
    return "", "", ""
