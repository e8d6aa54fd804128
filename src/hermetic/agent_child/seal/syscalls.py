"""System calls by number, for what neither Python nor every libc has.

`ctypes.PyDLL` keeps the interpreter's lock over a call, which a fork needs and the rest does not mind: each of these
takes microseconds.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

MACHINE = platform.machine()

# unistd_64.h of x86_64, and the generic table that aarch64 has; from 424 on all architectures have the same.
if MACHINE == "x86_64":
    CLONE, UNSHARE, PIVOT_ROOT, CAPSET, SECCOMP = 56, 272, 155, 126, 317
else:
    CLONE, UNSHARE, PIVOT_ROOT, CAPSET, SECCOMP = 220, 97, 41, 91, 277
OPEN_TREE, MOVE_MOUNT, OPENAT2, MOUNT_SETATTR = 428, 429, 437, 442
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446

libc = ctypes.PyDLL(None, use_errno=True)
_syscall = libc.syscall
_syscall.restype = ctypes.c_long
_long = ctypes.c_long

Buffer = ctypes.Array[ctypes.c_char]


def call(number: int, *arguments: int | bytes | Buffer | None) -> int:
    """Raises OSError. Integers go as 64 bits, bytes and buffers by their address."""
    result: int = _syscall(_long(number), *[_long(one) if isinstance(one, int) else one for one in arguments])
    if result < 0:
        _raise()
    return result


def mount(source: bytes, target: bytes, kind: bytes | None, flags: int, options: bytes | None = None) -> None:
    """mount(2)"""
    if libc.mount(source, target, kind, ctypes.c_ulong(flags), options) < 0:
        _raise()


def unmount(target: bytes, flags: int) -> None:
    """umount2(2)"""
    if libc.umount2(target, flags) < 0:
        _raise()


def prctl(option: int, value: int = 0, *more: int) -> int:
    """prctl(2)"""
    arguments = [value, *more, 0, 0, 0][:4]
    result: int = libc.prctl(option, *[ctypes.c_ulong(one) for one in arguments])
    if result < 0:
        _raise()
    return result


def open_beneath(folder: int, path: str) -> int:
    """A descriptor for a place (O_PATH): `path` from `folder` on, with no symbolic link anywhere in it."""
    how = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS)
    return call(OPENAT2, folder, os.fsencode(path.strip("/") or "."), how, len(how))


_RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 4, 8


def _raise() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
