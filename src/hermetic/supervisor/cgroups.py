"""Where the control groups of our turns live: one folder of ours per hierarchy, made at the start, swept of the dead.

The launcher makes and removes a folder per turn inside (agent_child/seal); here is what comes before and after. Our
folder's name carries our process id and start time, so that a later server knows whether its maker still lives: what a
dead one left is killed and removed. Version 2 where the controllers are there, version 1 otherwise (cgroups(7)); a
hierarchy in which we may not make folders is left out, and rlimits stand in (seal_policy.py).
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
from msgspec import Struct

from hermetic.protocol.launch import Cgroup

log = structlog.get_logger()

CONTROLLERS: Final = ("memory", "pids", "cpu")
SWEEP_S: Final = 5.0
"""For the killed processes of a dead server to leave their groups; they need milliseconds."""
_OURS: Final = re.compile(r"hermetic-(\d+)-(\d+)")


class Hierarchy(Struct, frozen=True):
    """A mounted hierarchy with the folder of this process in it."""

    version: int
    controllers: tuple[str, ...]
    folder: str


def hierarchies(own: str, mounts: str) -> list[Hierarchy]:
    """`/proc/self/cgroup` and `/proc/self/mountinfo` → where we are in each hierarchy that has a controller of ours.

    Mounts whose root does not hold our group (another container's) are left out. proc_pid_mountinfo(5)
    """
    groups: dict[tuple[int, frozenset[str]], str] = {}
    for line in own.splitlines():
        number, listed, path = line.split(":", 2)
        groups[(2, frozenset()) if number == "0" and not listed else (1, frozenset(listed.split(",")))] = path
    found = []
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        root, mounted = _unescaped(fields[3]), _unescaped(fields[4])
        version = 1 if kind[0] == "cgroup" else 2
        names = frozenset(kind[2].split(",")) - {"rw", "ro"} if version == 1 else frozenset()
        for (of_version, of_names), path in groups.items():
            if of_version != version or (version == 1 and not of_names & names & set(CONTROLLERS)):
                continue
            inside = _below(path, root)
            if inside is not None:
                known = tuple(name for name in CONTROLLERS if name in of_names)
                found.append(Hierarchy(version, known, os.path.normpath(f"{mounted}/{inside}")))
    return found


def _below(path: str, root: str) -> str | None:
    if root == "/":
        return None if path.startswith("/..") else path.lstrip("/")
    if path == root or path.startswith(root + "/"):
        return path[len(root) :].lstrip("/")
    return None


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


class Cgroups:
    """Ours, from `open` to `close`. `parents` go into each policy; empty: this host gives none."""

    def __init__(self, parents: list[Cgroup]) -> None:
        self.parents = parents

    @property
    def controllers(self) -> set[str]:
        return {name for parent in self.parents for name in parent.controllers}

    @classmethod
    def open(cls) -> Cgroups:
        """Makes our folders and sweeps those of dead servers. Never raises for what the host refuses. Blocks."""
        try:
            found = hierarchies(
                Path("/proc/self/cgroup").read_text(encoding="utf-8"),
                Path("/proc/self/mountinfo").read_text(encoding="utf-8"),
            )
        except (OSError, ValueError):
            return cls([])
        parents = []
        taken: set[str] = set()
        for hierarchy in sorted(found, key=lambda one: -one.version):
            cgroup = _make(hierarchy, taken)
            if cgroup:
                taken.update(cgroup.controllers)
                parents.append(cgroup)
        return cls(parents)

    def close(self) -> None:
        """Kills what is still in them, and removes them. Blocks, for SWEEP_S at most."""
        for parent in self.parents:
            _remove(Path(parent.path))


def our_name(pid: int | None = None) -> str:
    """Of the folder: unique among all processes since the host was started (proc_pid_stat(5), field 22)."""
    pid = pid or os.getpid()
    return f"hermetic-{pid}-{_start_time(pid)}"


def _start_time(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _make(hierarchy: Hierarchy, taken: set[str]) -> Cgroup | None:
    """One folder for the turns, or None where the host does not let us have a controller there."""
    base = Path(hierarchy.folder)
    try:
        if hierarchy.version == 1:
            controllers = [name for name in hierarchy.controllers if name not in taken]
            if not controllers:
                return None
            _sweep(base)
            ours = base / our_name()
            ours.mkdir(exist_ok=True)
            return Cgroup(version=1, controllers=controllers, path=str(ours))
        controllers = [n for n in _words(base / "cgroup.controllers") if n in CONTROLLERS and n not in taken]
        if not controllers:
            return None
        _sweep(base)
        ours = base / our_name()
        ours.mkdir(exist_ok=True)
        _enable(base, controllers, leave_to="hermetic-server")
        _enable(ours, controllers)
        return Cgroup(version=2, controllers=controllers, path=str(ours))
    except OSError as error:
        log.info("cgroups_refused", folder=str(base), error=error.strerror or str(error))
        with suppress(OSError):
            (base / our_name()).rmdir()
        return None


def _enable(folder: Path, controllers: list[str], *, leave_to: str | None = None) -> None:
    """Gives them to the groups below. Where processes are in the way (cgroups(7), "no internal processes") and they are
    all this process's group, which a service manager has delegated to it, they move into `leave_to`."""
    switch = " ".join(f"+{name}" for name in controllers)
    try:
        (folder / "cgroup.subtree_control").write_text(switch)
    except OSError as error:
        if error.errno != errno.EBUSY or leave_to is None:
            raise
        if set(_words(folder / "cgroup.procs")) != {str(os.getpid())}:
            raise  # others live there: not ours to move
        (folder / leave_to).mkdir(exist_ok=True)
        (folder / leave_to / "cgroup.procs").write_text(str(os.getpid()))
        (folder / "cgroup.subtree_control").write_text(switch)


def _sweep(base: Path) -> None:
    """What servers that are dead have left here."""
    for folder in base.glob("hermetic-*"):
        made = _OURS.fullmatch(folder.name)
        if made and _start_time(int(made[1])) != made[2]:
            log.warning("cgroups_swept", folder=str(folder), processes=len(list(_processes(folder))))
            _remove(folder)


def _remove(folder: Path) -> None:
    """Again and again until it is gone: a killed process takes its time to leave, and one that forks must not get away."""
    deadline = time.monotonic() + SWEEP_S
    while folder.exists():
        with suppress(OSError):
            (folder / "cgroup.kill").write_text("1")  # version 2, Linux 5.14
        for pid in _processes(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for inner, _, _ in os.walk(folder, topdown=False):
            with suppress(OSError):
                os.rmdir(inner)
        if time.monotonic() > deadline:
            log.error("cgroup_not_removed", folder=str(folder))
            return
        if folder.exists():
            time.sleep(0.005)


def _processes(folder: Path) -> Iterator[int]:
    for inner, _, _ in os.walk(folder):
        yield from map(int, _words(Path(inner, "cgroup.procs")))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []
