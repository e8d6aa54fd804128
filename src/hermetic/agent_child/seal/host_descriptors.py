"""Descriptors that lead to the host: init's alone.

The agent is forked while they are open, so it has them too, and closes them first of all. Each is known by its device
and inode as well: a caller that has closed everything before may have given the number to another file.
"""

from __future__ import annotations

import os
from contextlib import suppress

_kept: dict[int, tuple[int, int]] = {}


def keep(fd: int) -> int:
    """Returns it."""
    found = os.fstat(fd)
    _kept[fd] = found.st_dev, found.st_ino
    return fd


def close_all() -> None:
    for fd, wanted in _kept.items():
        with suppress(OSError):
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) == wanted:
                os.close(fd)
    _kept.clear()
