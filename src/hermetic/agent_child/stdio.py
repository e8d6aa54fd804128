"""Claims the protocol's streams, so that whatever prints to stdout prints to stderr.

A `print`, a C library's `write(1, …)` and a subprocess that inherits fd 1 all end on stderr, because the event stream
moves to a descriptor of its own and fd 1 becomes a copy of fd 2. Imports nothing that is not loaded already: an import
can print.
"""

from __future__ import annotations

import os
import sys

PRIVATE_FD = 100
"""Lowest number for the private copies: far above what code that counts on small descriptors will guess."""


def claim() -> tuple[int, int]:
    """Returns the descriptors of the event stream (to write) and of the command stream (to read).

    Both are closed on exec. Afterwards fd 0 is /dev/null and fd 1 is stderr. Raises OSError when fd 0, 1 or 2 is not
    open.
    """
    from fcntl import F_DUPFD_CLOEXEC, fcntl

    events_fd = fcntl(1, F_DUPFD_CLOEXEC, PRIVATE_FD)
    commands_fd = fcntl(0, F_DUPFD_CLOEXEC, PRIVATE_FD)
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for stream in (sys.stdout, sys.stderr):
        # Lines appear when they are printed, and text that UTF-8 cannot carry does not raise in the user's print.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    return events_fd, commands_fd
