"""How much a workspace holds, measured from outside while its turn may do anything to it.

The tree is hostile: names change under the walk, links appear where folders were, folders nest without end. So every
folder is opened by its name relative to its parent's descriptor and never through a link (openat(2), O_NOFOLLOW), and
what counts is blocks on the disk, so that a sparse file is as large as what it takes. A hard link counts each time: two
names for one file are rare, and telling them apart would need memory for each.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

BLOCK = 512
"""Bytes of st_blocks, whatever the file system's own blocks are (inode(7))."""
ENTRY_BYTES = 512
"""Charged for each name: an inode and its directory entry. A million empty files are not free."""
DEPTH_MAX = 128
"""Folders within folders: each open one takes a descriptor of the server. Deeper than any source tree; deeper still
counts as over every quota."""


class Unmeasurable(Exception):
    """The tree cannot be measured, and its owner is why."""


def measure(folder: str, enough: int) -> int:
    """Bytes in the tree below `folder`; stops counting when it has found more than `enough`. Blocks on the file system.

    What vanishes meanwhile does not count. Raises `Unmeasurable` for nesting beyond DEPTH_MAX and for a folder that its
    owner has closed to us, OSError when `folder` itself cannot be opened.
    """
    total = 0
    open_fds = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    todo: list[list[str]] = []
    try:
        while open_fds:
            if len(todo) < len(open_fds):  # a folder that has just been opened
                names = []
                with os.scandir(open_fds[-1]) as entries:
                    for entry in entries:
                        with suppress(OSError):
                            found = entry.stat(follow_symlinks=False)
                            total += found.st_blocks * BLOCK + ENTRY_BYTES
                            if stat.S_ISDIR(found.st_mode):
                                names.append(entry.name)
                        if total > enough:
                            return total
                todo.append(names)
            if not todo[-1]:
                todo.pop()
                os.close(open_fds.pop())
                continue
            if len(open_fds) >= DEPTH_MAX:
                raise Unmeasurable(f"folders nest deeper than {DEPTH_MAX}")
            name = todo[-1].pop()
            with suppress(FileNotFoundError, NotADirectoryError):  # gone, or something else by now
                open_fds.append(
                    os.open(
                        name,
                        os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC,
                        dir_fd=open_fds[-1],
                    )
                )
    except OSError as error:  # ELOOP is a link that has taken a folder's place
        raise Unmeasurable(f"a folder cannot be read: {error.strerror}") from error
    finally:
        for fd in open_fds:
            os.close(fd)
    return total
