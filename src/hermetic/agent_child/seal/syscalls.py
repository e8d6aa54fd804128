"""System calls by number, for what neither Python nor every libc has.

`ctypes.PyDLL` keeps the interpreter's lock over a call, which a fork needs and the rest does not mind: each of these
takes microseconds.
"""

from __future__ import annotations

import ctypes
import os
import platform

MACHINE = platform.machine()

# unistd_64.h of x86_64, and the generic table that aarch64 has; from 424 on all architectures have the same.
if MACHINE == "x86_64":
    CLONE, UNSHARE, PIVOT_ROOT, CAPSET, SECCOMP = 56, 272, 155, 126, 317
else:
    CLONE, UNSHARE, PIVOT_ROOT, CAPSET, SECCOMP = 220, 97, 41, 91, 277
OPEN_TREE, MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT, CLOSE_RANGE, OPENAT2 = 428, 429, 430, 431, 432, 436, 437
MOUNT_SETATTR, LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 442, 444, 445, 446

libc = ctypes.PyDLL(None, use_errno=True)
_syscall = libc.syscall
_syscall.restype = ctypes.c_long


def call(number: int, *arguments: int | bytes | ctypes._Pointer | ctypes.Array | None) -> int:  # type: ignore[type-arg]
    """Raises OSError. Integers go as 64 bits."""
    result: int = _syscall(
        ctypes.c_long(number), *(ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def check(result: int, what: str) -> int:
    """For libc's own functions."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
