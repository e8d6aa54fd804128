"""What a running turn uses, and whether the kernel has had to enforce a limit, read from its control groups.

The folders are found by the turn's own process id (proc_pid_cgroup(5)), so whoever made them keeps its ways to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from hermetic.protocol.launch import Cgroup
from hermetic.supervisor.cgroups import hierarchies


class Usage(Struct, frozen=True):
    """At one moment; None: this host does not say."""

    memory_bytes: int | None = None
    processes: int | None = None
    cpu_s: float | None = None


class Meter:
    """Of one turn. All reads are of a few bytes from the kernel's memory: they do not block."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self._folders = folders

    @classmethod
    def of(cls, pid: int, parents: Sequence[Cgroup]) -> Meter:
        """Of the turn with this process, as far as its groups are below `parents`: ours, nobody else's."""
        try:
            own = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
            found = hierarchies(own, Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return cls({})
        folders = {
            controller: Path(hierarchy.folder)
            for parent in parents
            for controller in parent.controllers
            for hierarchy in found
            if hierarchy.version == parent.version
            and (hierarchy.version == 2 or controller in hierarchy.controllers)
            and hierarchy.folder.startswith(parent.path + "/")
        }
        return cls(folders)

    @property
    def controllers(self) -> set[str]:
        return set(self._folders)

    def usage(self) -> Usage:
        cpu = self._counter("cpu", "cpu.stat", "usage_usec")
        return Usage(
            memory_bytes=self._number("memory", "memory.current", "memory.usage_in_bytes"),
            processes=self._number("pids", "pids.current"),
            cpu_s=None if cpu is None else cpu / 1e6,
        )

    def enforced(self) -> str | None:
        """The field of launch.Limits over which the turn has gone: the kernel has killed or refused because of it."""
        if self._counter("memory", "memory.events", "oom_kill") or self._counter(
            "memory", "memory.oom_control", "oom_kill"
        ):
            return "memory_bytes"
        return "processes" if self._counter("pids", "pids.events", "max") else None

    def _number(self, controller: str, *names: str) -> int | None:
        for name in names:
            text = self._read(controller, name).strip()
            if text.isdigit():
                return int(text)
        return None

    def _counter(self, controller: str, file: str, name: str) -> int | None:
        for line in self._read(controller, file).splitlines():
            key, _, value = line.partition(" ")
            if key == name and value.isdigit():
                return int(value)
        return None

    def _read(self, controller: str, name: str) -> str:
        folder = self._folders.get(controller)
        if folder is None:
            return ""
        try:
            return (folder / name).read_text(encoding="utf-8")
        except OSError:  # the turn has ended, or the other version's name
            return ""
