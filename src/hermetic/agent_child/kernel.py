"""The few system calls that Python's os module does not have, by ctypes. Each raises OSError."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REC = 16384
MS_PRIVATE = 1 << 18

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """unshare(2). A new PID namespace is for the next child, not for the caller."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int) -> None:
    """mount(2)"""
    _check(_libc.mount(source, target, kind, ctypes.c_ulong(flags), None), f"mount {os.fsdecode(target)}")


def _prctl(option: int, value: int | bytes) -> None:
    argument = value if isinstance(value, bytes) else ctypes.c_ulong(value)
    _check(_libc.prctl(ctypes.c_int(option), argument, *(ctypes.c_ulong(0),) * 3), "prctl")


def signal_at_parents_death(number: int) -> None:
    """PR_SET_PDEATHSIG(2const). It follows the parent's *thread*: the parent must fork from a thread that stays."""
    _prctl(_PR_SET_PDEATHSIG, number)


def become_subreaper() -> None:
    """PR_SET_CHILD_SUBREAPER(2const): orphans of the tree below become the caller's children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: bytes) -> None:
    """What ps and top call the process, at most 15 bytes."""
    _prctl(_PR_SET_NAME, name)
