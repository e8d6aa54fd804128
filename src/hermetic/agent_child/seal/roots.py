"""Mounts."""

from __future__ import annotations

from hermetic.agent_child import kernel


def make_private() -> None:
    """What is mounted here is not seen outside; what is mounted outside from now on is not seen here."""
    kernel.mount(None, b"/", None, kernel.MS_REC | kernel.MS_PRIVATE)


def mount_proc(path: str) -> None:
    """Raises OSError in a container that masks parts of its own /proc."""
    kernel.mount(b"proc", path.encode(), b"proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
