"""A switch for everything that emits: a lock on a file, held by the measurement while nothing shall be said.

So servers, children and connections are set up once, and the windows of several contestants can take turns. After
each opening an emitter begins at a random phase: emitters in step would hand out batches that no real load has.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Gate:
    """Closed when made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)  # agents have users of their own
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    @contextmanager
    def opened(self) -> Iterator[None]:
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_EX)

    def remove(self) -> None:
        os.close(self._fd)


def is_open(fd: int) -> bool:
    """For an emitter, which has opened the file itself (flock(2): a lock belongs to an open file)."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def wait_open(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_SH)
    fcntl.flock(fd, fcntl.LOCK_UN)
