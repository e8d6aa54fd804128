"""Landlock: which files, sockets and processes, by rules that a process lays upon itself (landlock(7)).

It is the second wall behind the private root, and the first where there is none. What is named may be read, or read and
written; all else, also what should not be there at all, is refused by the kernel, whoever owns it. Abstract UNIX
sockets and signals stop at the domain's border, and so does ptrace.

Domains nest, and a nested one cannot reach up. The agent's tools each get one more domain (tools.py), which is what
keeps them from signalling the agent, whose user they share.

A rule holds a file by its inode, so the rules for what is mounted already can be made before the workspace is there.
Without a network namespace TCP is ruled too; other protocols are left to seccomp.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress

from hermetic.agent_child.seal import syscalls

ABI_FOR_SCOPES = 6
"""Linux 6.12. Before it tools can signal the agent."""

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_MAKE_SOCK, _MAKE_FIFO, _MAKE_SYM = 1 << 9, 1 << 10, 1 << 12
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_ALL = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
"""What a rule for something that is not a folder may say."""

READ = _EXECUTE | _READ_FILE | _READ_DIR
LIST = _READ_DIR
WRITE = (
    READ
    | _WRITE_FILE
    | _TRUNCATE
    | _REMOVE_DIR
    | _REMOVE_FILE
    | _MAKE_DIR
    | _MAKE_REG
    | _MAKE_SOCK
    | _MAKE_FIFO
    | _MAKE_SYM
    | _REFER
)
DEVICE = _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV | _READ_DIR

_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT, _SCOPE_SIGNAL = 1, 2
_RULE_PATH, _RULE_PORT = 1, 2
_VERSION_FLAG = 1


def abi() -> int:
    """Raises OSError where there is no Landlock (ENOSYS), or it is switched off (EOPNOTSUPP)."""
    return syscalls.call(syscalls.LANDLOCK_CREATE_RULESET, None, 0, _VERSION_FLAG)


class Ruleset:
    """`ports`: those that may be connected to, and no other, nor bound; None: the network is not ruled."""

    def __init__(self, ports: Iterable[int] | None) -> None:
        self.abi = abi()
        self._handled = _ALL[min(self.abi, max(_ALL))]
        net = _BIND_TCP | _CONNECT_TCP if ports is not None else 0
        self.fd = _create(self.abi, self._handled, net, _SCOPE_ABSTRACT | _SCOPE_SIGNAL)
        for port in ports or ():
            if self.abi >= 4:
                rule = struct.pack("QQ", _CONNECT_TCP, port)
                syscalls.call(syscalls.LANDLOCK_ADD_RULE, self.fd, _RULE_PORT, rule, 0)

    def allow(self, path: str, access: int, *, may_be_missing: bool = False) -> None:
        """What `path` leads to, and all below it."""
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            if may_be_missing:
                return
            raise
        try:
            access &= self._handled
            if not stat.S_ISDIR(os.stat(place).st_mode):
                access &= _OF_A_FILE
            rule = struct.pack("=Qi", access, place)
            syscalls.call(syscalls.LANDLOCK_ADD_RULE, self.fd, _RULE_PATH, rule, 0)
        finally:
            os.close(place)

    def enter(self) -> None:
        """For good. Needs no_new_privs."""
        syscalls.call(syscalls.LANDLOCK_RESTRICT_SELF, self.fd, 0)
        os.close(self.fd)


def below_the_agent() -> int:
    """A ruleset that only sets the border for signals and ptrace; -1 where there is none to be had."""
    with suppress(OSError):
        if abi() >= ABI_FOR_SCOPES:
            return _create(ABI_FOR_SCOPES, 0, 0, _SCOPE_SIGNAL)
    return -1


def _create(version: int, files: int, net: int, scopes: int) -> int:
    fields = 3 if version >= ABI_FOR_SCOPES else 2 if version >= 4 else 1
    attributes = struct.pack(f"{fields}Q", *(files, net, scopes)[:fields])
    return syscalls.call(syscalls.LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
