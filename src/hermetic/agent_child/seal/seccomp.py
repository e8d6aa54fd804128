"""Seccomp: system calls that the agent and its tools do not get, whatever else holds them.

A filter is a small program for the kernel's packet filter (seccomp(2), bpf(4)): it is given the call's number, the
architecture and the six arguments, and answers what to do. It cannot follow a pointer, so a call whose meaning lies
behind one (clone3, openat2) can only be refused whole; ENOSYS then makes libraries take the older call, whose flags can
be seen. All that is refused is a way to more privilege, into another process, or into parts of the kernel that no agent
needs and that have been ways out of sandboxes before. The kernel remembers which numbers are allowed whatever their
arguments (since 5.11), so the length of the list costs nothing where it matters.

Set-user-id and set-group-id bits cannot be set: on the host the file may be owned by somebody else (idmap.py), and the
bits work there. A call of another architecture (int 0x80) ends the process; x32 numbers do not exist.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import struct

from hermetic.agent_child.seal import syscalls

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_Table = dict[str, tuple[int | None, int | None]]
"""(x86_64, aarch64): asm/unistd_64.h and asm-generic/unistd.h. None: the architecture has no such call."""

_DENIED: _Table = {
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "uselib": (134, None),
    "vhangup": (153, 58),
    "modify_ldt": (154, None),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "mount": (165, 40),
    "umount2": (166, 39),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "quotactl": (179, 60),
    "lookup_dcookie": (212, 18),
    "clock_settime": (227, 112),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "migrate_pages": (256, 238),
    "unshare": (272, 97),
    "move_pages": (279, 239),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "finit_module": (313, 273),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442),
    "quotactl_fd": (443, 443),
    "lsm_set_self_attr": (460, 460),
    "open_tree_attr": (467, 467),
}
"""EPERM, whatever the arguments."""

_ABSENT: _Table = {
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "clone3": (435, 435),
    "openat2": (437, 437),
}
"""ENOSYS."""

_LOOKED_AT: _Table = {
    "open": (2, None),
    "ioctl": (16, 29),
    "socket": (41, 198),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "socketpair": (53, 199),
    "clone": (56, 220),
    "mkdir": (83, None),
    "creat": (85, None),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "mknod": (133, None),
    "openat": (257, 56),
    "mkdirat": (258, 34),
    "mknodat": (259, 33),
    "fchmodat": (268, 53),
    "prlimit64": (302, 261),
    "sendmmsg": (307, 269),
    "fchmodat2": (452, 452),
}
"""By their arguments."""

_MODE_ARGUMENT = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "creat": 1, "mkdir": 1, "mkdirat": 2}
_OPEN_ARGUMENTS = {"open": (1, 2), "openat": (2, 3)}
_MKNOD_ARGUMENT = {"mknod": 1, "mknodat": 2}
_FLAGS_ARGUMENT = {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}

_S_ISUID_OR_ISGID, _S_IFMT, _S_IFCHR, _S_IFBLK = 0o6000, 0o170000, 0o020000, 0o060000
_O_CREAT, _O_TMPFILE = 0o100, 0o20000000
_CLONE_NEW = 0x7E020080
"""Of all namespaces, that of time too."""
_MSG_FASTOPEN = 0x20000000
_AF_UNIX, _AF_INET, _AF_INET6, _SOCK_STREAM, _SOCK_TYPE_MASK = 1, 2, 10, 1, 0xF
_IPPROTO_TCP, _IPPROTO_UDP = 6, 17
_TERMINAL_INJECTION = (0x5412, 0x541C)
"""TIOCSTI, TIOCLINUX: they type into the terminal. The kernel reads 32 bits of an ioctl's number, so we do too."""
_X32 = 0x40000000

# linux/filter.h, linux/bpf_common.h
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_SET_MODE_FILTER = 1

_Instruction = tuple[int, int, int, int]


def install(network: str) -> None:
    """For the caller, its one thread, and all that comes of it. Needs no_new_privs. Raises OSError.

    `network`: see `program`.
    """
    code = program(network)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    syscalls.call(syscalls.SECCOMP, _SET_MODE_FILTER, 0, filter_)


@functools.cache
def program(network: str, machine: str = syscalls.MACHINE) -> bytes:
    """`network`: `own` (a namespace with nothing in it), `ruled` (the host's, with Landlock's rules, which know TCP
    alone: so TCP alone is left, and only as Landlock sees it) or `host`. OSError on an architecture without a table."""
    if machine not in AUDIT_ARCH:
        raise OSError(errno.ENOSYS, f"there is no table of system calls for {machine}")
    code: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32),
        _fail(errno.ENOSYS),
    ]
    numbers = _DENIED | _ABSENT | _LOOKED_AT
    for name, action in _rules(network):
        number = numbers[name][list(AUDIT_ARCH).index(machine)]
        if number is not None:
            code += [(_EQUAL, 0, len(action), number), *action]
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _rules(network: str) -> list[tuple[str, list[_Instruction]]]:
    """Each action ends in a return, so that no number is looked at twice."""
    rules = [(name, [_fail(errno.EPERM)]) for name in _DENIED]
    rules += [(name, [_fail(errno.ENOSYS)]) for name in _ABSENT]
    rules += [(name, _refuse_bits(at, _S_ISUID_OR_ISGID)) for name, at in _MODE_ARGUMENT.items()]
    rules += [(name, _open(*at)) for name, at in _OPEN_ARGUMENTS.items()]
    rules += [(name, _mknod(at)) for name, at in _MKNOD_ARGUMENT.items()]
    rules.append(("clone", _refuse_bits(0, _CLONE_NEW)))
    rules.append(("ioctl", [_argument(1), *_refuse_values(_TERMINAL_INJECTION), _allow()]))
    # The limits of another process, such as the agent's; 0 is the caller.
    rules.append(("prlimit64", [_argument(0), (_EQUAL, 1, 0, 0), _fail(errno.EPERM), _allow()]))
    rules.append(("socket", _socket(network)))
    rules.append(("socketpair", [_argument(0), (_EQUAL, 1, 0, _AF_UNIX), _fail(errno.EAFNOSUPPORT), _allow()]))
    if network == "ruled":  # data sent with the first packet goes past the rule for connect
        rules += [(name, _refuse_bits(at, _MSG_FASTOPEN)) for name, at in _FLAGS_ARGUMENT.items()]
    return rules


def _argument(number: int) -> _Instruction:
    """Its low 32 bits: both architectures are little-endian."""
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * number)


def _fail(number: int) -> _Instruction:
    return (_RETURN, 0, 0, _ERRNO | number)


def _allow() -> _Instruction:
    return (_RETURN, 0, 0, _ALLOW)


def _refuse_bits(argument: int, bits: int) -> list[_Instruction]:
    return [_argument(argument), (_ANY_BIT, 0, 1, bits), _fail(errno.EPERM), _allow()]


def _refuse_values(values: tuple[int, ...]) -> list[_Instruction]:
    code = []
    for value in values:
        code += [(_EQUAL, 0, 1, value), _fail(errno.EPERM)]
    return code


def _open(flags_at: int, mode_at: int) -> list[_Instruction]:
    """The mode counts only where a file may be made; else it is whatever was in the register."""
    return [
        _argument(flags_at),
        (_ANY_BIT, 1, 0, _O_CREAT | _O_TMPFILE),
        _allow(),
        *_refuse_bits(mode_at, _S_ISUID_OR_ISGID),
    ]


def _mknod(mode_at: int) -> list[_Instruction]:
    return [
        _argument(mode_at),
        (_ANY_BIT, 0, 1, _S_ISUID_OR_ISGID),
        _fail(errno.EPERM),
        (_AND, 0, 0, _S_IFMT),
        *_refuse_values((_S_IFCHR, _S_IFBLK)),
        _allow(),
    ]


def _socket(network: str) -> list[_Instruction]:
    """UNIX; TCP and UDP, and no other protocol under their families (MPTCP, SCTP, raw)."""
    code = [
        _argument(0),
        (_EQUAL, 0, 1, _AF_UNIX),
        _allow(),
        (_EQUAL, 2, 0, _AF_INET),
        (_EQUAL, 1, 0, _AF_INET6),
        _fail(errno.EAFNOSUPPORT),
    ]
    protocols = [0, _IPPROTO_TCP]
    if network == "ruled":
        code += [_argument(1), (_AND, 0, 0, _SOCK_TYPE_MASK), (_EQUAL, 1, 0, _SOCK_STREAM), _fail(errno.EACCES)]
    else:
        protocols.append(_IPPROTO_UDP)
    code.append(_argument(2))
    for protocol in protocols:
        code += [(_EQUAL, 0, 1, protocol), _allow()]
    return [*code, _fail(errno.EPROTONOSUPPORT)]
