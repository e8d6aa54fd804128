"""Room for last words: a file that takes disk space only to give it back.

When the disk is full the journal cannot take the end of a turn, and a turn that cannot end hangs its readers. So the
data directory holds some megabytes in reserve. The first write that fails drops them; the ends of running turns fit
into the space, and no new turn is admitted until the reserve can be filled again.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import structlog

from hermetic.protocol.errors import StorageError

log = structlog.get_logger()

BALLAST_BYTES = 8 << 20
"""The ends of a thousand turns at some kilobytes each."""
RETRY_S = 5.0
"""Between two tries to fill the reserve again: one costs writing it."""


class Ballast:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._tried_at = 0.0
        self.full = not self._fill()
        """True while the disk has no room for it."""

    def check(self) -> None:
        """Raises `StorageError` while there is no room for new work."""
        if self.full and time.monotonic() - self._tried_at > RETRY_S:
            self.full = not self._fill()
        if self.full:
            raise StorageError("the disk that holds the data directory is full; no new work is taken")

    def drop(self) -> None:
        """A write has failed."""
        self._tried_at = time.monotonic()
        if not self.full:
            log.error("disk_full", path=str(self._path.parent))
        self.full = True
        self._remove()

    def _fill(self) -> bool:
        self._tried_at = time.monotonic()
        try:
            if self._path.exists() and self._path.stat().st_blocks * 512 >= BALLAST_BYTES:
                return True
            with self._path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
        except OSError:
            self._remove()
            return False
        return True

    def _remove(self) -> None:
        """Never raises: a file system that has gone read-only is why writes fail, and its error must not end more."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.error("ballast_stays", path=str(self._path), error=str(error))
