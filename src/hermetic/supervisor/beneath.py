"""Folders opened so that no link leads out of where they belong, whoever swaps what at the same time.

A path that was looked at and then opened may be another one by then: an agent that may write in a folder above can put a
link there in between. So the kernel is asked to follow none on the way (openat2(2), RESOLVE_BENEATH and
RESOLVE_NO_SYMLINKS); where it does not know how (before 5.6, or under a filter) the path is opened part by part, each
relative to the one before and none through a link, which comes to the same and takes longer.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

OPENAT2: Final = 437
"""The same number on every architecture (unified since Linux 5.1)."""
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(root: Path, path: Path) -> int:
    """→ a descriptor of the folder `path`, which is `root` or lies in it. Close it. `root` may be reached by links.

    Raises `OSError`: `ELOOP` for a link on the way, `ENOTDIR`, `ENOENT`; `ValueError` when it is not in `root`.
    """
    within = path.relative_to(root)
    if ".." in within.parts:
        raise ValueError(f"{path} has .. in it")
    top = os.open(root, FOLDER)
    try:
        try:
            return _openat2(top, within)
        except OSError as error:
            # EPERM: a seccomp filter that does not know the call; EXDEV would be a path that leaves.
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
        return _open_by_parts(top, within)
    finally:
        os.close(top)


def make_beneath(root: Path, path: Path) -> None:
    """Makes the folder `path` in `root`, and those above it (mode 0700), where they are not there. Raises as above."""
    folder = os.open(root, FOLDER)
    try:
        for part in path.relative_to(root).parts:
            try:
                os.mkdir(part, 0o700, dir_fd=folder)
            except FileExistsError:
                pass
            deeper = os.open(part, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = deeper
    finally:
        os.close(folder)


def _openat2(top: int, within: Path) -> int:
    how = _OpenHow(FOLDER, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
    fd = _libc.syscall(
        ctypes.c_long(OPENAT2),
        ctypes.c_int(top),
        ctypes.c_char_p(os.fsencode(within)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(within))
    return int(fd)


def _open_by_parts(top: int, within: Path) -> int:
    folder = os.open(".", FOLDER, dir_fd=top)
    for part in within.parts:
        try:
            deeper = os.open(part, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        finally:
            os.close(folder)
        folder = deeper
    return folder
