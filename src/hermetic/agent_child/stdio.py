"""Claims the protocol's streams, so that whatever prints to stdout prints to stderr.

A `print`, a C library's `write(1, …)` and a subprocess that inherits fd 1 all end on stderr, because the event stream
has a descriptor of its own and fd 1 is a copy of fd 2.
"""

from __future__ import annotations

import os
import sys
from fcntl import F_DUPFD_CLOEXEC, fcntl

PRIVATE_FD = 100
"""Lowest number for the private copies: far above what code that counts on small descriptors will guess."""


def claim(commands_fd: int, events_fd: int, stderr_fd: int) -> tuple[int, int]:
    """Takes a turn's three descriptors; returns those of its event stream and its command stream, closed on exec."""
    events = fcntl(events_fd, F_DUPFD_CLOEXEC, PRIVATE_FD)
    commands = fcntl(commands_fd, F_DUPFD_CLOEXEC, PRIVATE_FD)
    print_to(stderr_fd)
    for fd in (commands_fd, events_fd, stderr_fd):
        os.close(fd)
    return events, commands


def print_to(stderr_fd: int) -> None:
    os.dup2(stderr_fd, 2)
    os.dup2(stderr_fd, 1)


def by_lines() -> None:
    """Lines appear when they are printed, and text that UTF-8 cannot carry does not raise in the user's print."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]


def flush() -> None:
    """What is in the buffers, before a fork would double it."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
