"""A root of its own: what the policy names, at the same paths as outside, and nothing else.

**How it comes to be.** A small tmpfs becomes the root (pivot_root) and the host's is kept in a folder of it. Everything
that is wanted is cloned from there as a mount without a place (open_tree), made read-only, nosuid and nodev while
nobody can reach it yet (mount_setattr), and put in its place (move_mount). When the turn's workspace has been mounted
the same way, the old root is detached; nothing that is left leads to it. (Stacked on one another, as pivot_root(".",
".") leaves them, they would save the folder, but then the kernel takes init to live in a chroot and refuses it the user
namespace that idmap.py needs.)

**Links.** Paths of the policy are resolved by the supervisor, and are opened here with no symbolic link allowed in
them: part of the host's tree may be writable by an earlier turn, and a link put there must not say what is mounted.

**Recursion.** What is read-only is bound with everything mounted below it, the workspace without. In a user namespace
all must come along: the kernel does not let a less privileged namespace look under the host's mounts.

**Slave, not private.** A disk that the host unmounts must not be held by a waiting standby.

A process of the turn sees: /usr and the links that lead there; of /etc what programs need to run, to know the time and
to trust certificates; users, hosts and resolver made up for the turn; the common devices; its own /proc, read-only
(a turn that runs as root without capabilities could otherwise write /proc/sys); /tmp, /dev/shm and a home, each a tmpfs
with a cap in bytes and files, which count as memory of the turn.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hermetic.agent_child.seal import host_descriptors, idmap, syscalls
from hermetic.agent_child.seal.errors import SealError
from hermetic.protocol.launch import Policy

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "timezone", "os-release"),
    *("ssl/certs", "ssl/openssl.cnf", "ca-certificates", "pki/ca-trust", "pki/tls/certs", "pki/tls/openssl.cnf"),
    *("crypto-policies", "services", "protocols", "mime.types", "fonts", "terminfo"),
)
"""Not ssl/private and not pki as a whole: there are keys in them."""
SYSTEM_PATHS = (*SYSTEM, *(f"/etc/{name}" for name in ETC))
ETC_OUTSIDE = tuple(f"/etc/{name}" for name in (*ETC, "passwd", "group", "hosts", "resolv.conf", "nsswitch.conf"))
"""For a turn that sees the host's own root."""
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEV_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_MOUNT_POINTS = ("/tmp", "/mnt", "/run", "/var", "/home")
"""Any of them is where the new root waits for the moment of the pivot."""
_OLD = b".host"
_BUSY_S = 0.0005
_BUSY_TRIES = 400
"""Together 0.2 s: on a busy machine the agent may lose the processor in that very moment."""
_ROOT_OPTIONS = b"mode=0755,size=1m,nr_inodes=4096"
"""Folders, links and four small files of ours; no turn can write there."""
_BYTES_PER_FILE = 2048
"""A cap on the files of a tmpfs: an empty one costs the kernel about a kilobyte that its size does not count."""

_NOATIME = 1024
"""So that reading is not writing: see _make_read_only."""
_NOSUID, _NODEV, _NOEXEC, _REC, _SLAVE = 2, 4, 8, 1 << 14, 1 << 19
_DETACH = 2
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _AT_RECURSIVE, _AT_EMPTY_PATH = 1, os.O_CLOEXEC, 0x8000, 0x1000
_MOVE_EMPTY_PATHS = 0x04 | 0x40
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_NOEXEC = 1, 2, 4, 8


def make_slave() -> None:
    """What is mounted here is not seen outside; what the host unmounts disappears here too."""
    syscalls.mount(b"none", b"/", None, _REC | _SLAVE)


def mount_proc() -> None:
    """Raises OSError in a container that masks parts of its own /proc."""
    syscalls.mount(b"proc", b"/proc", b"proc", _NOSUID | _NODEV | _NOEXEC)


class PrivateRoot:
    """In init. `ids`: user and group that the turn will have. `unprivileged`: it lives in a user namespace."""

    def __init__(self, policy: Policy, ids: tuple[int, int], unprivileged: bool, sealed_network: bool) -> None:
        self._policy = policy
        self._unprivileged = unprivileged
        self._ids = ids
        # Looked up while the host's root is still ours.
        self._system = {path: os.path.realpath(path) for path in SYSTEM_PATHS if os.path.exists(path)}
        self._etc = _etc_files(policy, *ids, sealed_network)
        self.has_proc = False
        self._old = self._new = -1
        """Descriptors of the host's root and of ours."""

    def fill(self) -> None:
        """All but the workspace and /proc. Raises OSError and SealError."""
        with _umask(_FOR_PASSING):
            for path, real in self._system.items():
                self._bind_system(path, real)
            self._fill_etc()
            self._fill_dev()
            for path in ("/proc", "/run", "/var", "/var/tmp"):
                os.mkdir(path)
            os.symlink("/run", "/var/run")
            self._fill_by_policy()
        os.chdir("/")

    def enter(self, workspace: str) -> None:
        """Raises OSError and SealError."""
        if workspace == "/":
            raise SealError("private_root", "the host's root cannot be a workspace")
        with _umask(_FOR_PASSING):
            self._mount_workspace(workspace)
        syscalls.unmount(b"/" + _OLD, _DETACH)
        os.rmdir(b"/" + _OLD)
        if self.has_proc:
            _make_read_only(b"/proc")
        _make_read_only(b"/")
        host_descriptors.close_all()

    def _mount_workspace(self, workspace: str) -> None:
        owner = self._bind_owned(workspace)
        # What lies inside the workspace has been covered by it. The folders on the way are mounted on themselves: a
        # mount point cannot be renamed, so nothing else can be put where the next turn's agent is read from.
        inside = [path for path in (*self._policy.readable, *self._policy.writable) if _is_below(path, workspace)]
        for path in _by_depth([step for one in inside for step in _steps(one, workspace)]):
            if path in self._policy.readable:
                self._bind_readable(path)
            else:
                self._bind_owned(path, None if path in self._policy.writable else owner)

    def pivot(self) -> None:
        """When it raises, all is as before."""
        self._old = host_descriptors.keep(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        point = next((path for path in _MOUNT_POINTS if os.path.isdir(path)), "/usr")
        syscalls.mount(b"tmpfs", point.encode(), b"tmpfs", _NOSUID | _NODEV | _NOATIME, _ROOT_OPTIONS)
        os.chdir(point)
        os.mkdir(_OLD, 0o700)
        try:
            syscalls.call(syscalls.PIVOT_ROOT, b".", _OLD)
        except OSError as error:
            os.chdir("/")
            syscalls.unmount(point.encode(), _DETACH)
            why = f"pivot_root: {error.strerror} (is the host's root an initramfs?)"
            raise SealError("private_root", why) from error
        self._new = host_descriptors.keep(os.open("/", os.O_PATH | os.O_CLOEXEC))

    def _bind_system(self, path: str, real: str) -> None:
        """What is a link into /usr stays one; any other link is followed, by us and now."""
        if path != real and real.startswith("/usr/"):
            _make_folder(os.path.dirname(path))
            os.symlink(real, path)
        else:
            self._bind_readable(real, path)

    def _fill_etc(self) -> None:
        _make_folder("/etc")
        for name, text in self._etc.items():
            with open(f"/etc/{name}", "w") as file:
                file.write(text)

    def _fill_dev(self) -> None:
        os.mkdir("/dev")
        for name in DEVICES:
            with _opened(self._clone(f"/dev/{name}", recursive=False)) as tree:
                # Read-only keeps the node as it is (a turn that is root could change its mode), not from being used.
                _set_attributes(tree, b"", _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NOEXEC)
                self._attach(tree, f"/dev/{name}", folder=False)
        os.mkdir("/dev/pts")
        syscalls.mount(b"devpts", b"/dev/pts", b"devpts", _NOSUID | _NOEXEC, b"newinstance,ptmxmode=0666,mode=0620")
        for name, target in _DEV_LINKS.items():
            os.symlink(target, f"/dev/{name}")
        self._tmpfs("/dev/shm", self._policy.limits.shm_bytes, "mode=1777")

    def _fill_by_policy(self) -> None:
        policy = self._policy
        self._tmpfs("/tmp", policy.limits.tmp_bytes, "mode=1777")
        with _opened(_clone(self._new, "/tmp")) as tree:  # not a link: a workspace may lie there
            self._attach(tree, "/var/tmp", folder=True)
        for path in _by_depth({*policy.readable, *policy.writable, *([policy.home] if policy.home else [])}):
            if path == policy.home:
                self._tmpfs(path, policy.limits.tmp_bytes, "mode=0700,uid={},gid={}".format(*self._ids))
            elif path in policy.writable:
                self._bind_owned(path)
            else:
                self._bind_readable(path)

    def _bind_readable(self, path: str, at: str | None = None) -> None:
        with _opened(self._clone(path, recursive=True)) as tree:
            _set_attributes(tree, b"", _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, recursive=True)
            self._open_to_tenant(tree)
            self._attach(tree, at or path, folder=_is_folder(tree))

    def _open_to_tenant(self, tree: int) -> None:
        """What the host has listed as readable, and keeps closed to others than its owner, the tenant reads as the owner."""
        found = os.stat(tree)
        closed = not found.st_mode & stat.S_IROTH or (stat.S_ISDIR(found.st_mode) and not found.st_mode & stat.S_IXOTH)
        owner = (found.st_uid, found.st_gid)
        if closed and not self._unprivileged and owner != self._ids:
            with suppress(OSError):  # a file system that cannot: then it stays closed, and who reads it is told so
                idmap.translate(tree, owner, self._ids)

    def _bind_owned(self, path: str, owner: tuple[int, int] | None = None) -> tuple[int, int]:
        """Writable, and the turn's own, whoever owns it on the host. `owner`: only what is theirs is the turn's own."""
        with _opened(self._clone(path, recursive=self._unprivileged)) as tree:
            found = os.stat(tree)
            owner = owner or (found.st_uid, found.st_gid)
            _set_attributes(tree, b"", _ATTR_NOSUID | _ATTR_NODEV, recursive=self._unprivileged)
            if not self._unprivileged and owner != self._ids:
                try:
                    idmap.translate(tree, owner, self._ids)
                except OSError as error:
                    why = _cannot_translate(path, owner[0], self._ids[0], error)
                    raise SealError("tenant_uid", why) from error
            self._attach(tree, path, folder=stat.S_ISDIR(found.st_mode))
            return owner

    def _clone(self, path: str, *, recursive: bool) -> int:
        """From the host."""
        try:
            return _clone(self._old, path, recursive=recursive)
        except OSError as error:
            why = "there is a symbolic link in it" if error.errno == errno.ELOOP else error.strerror
            raise SealError("private_root", f"{path} cannot be mounted: {why}") from error

    def _attach(self, tree: int, path: str, *, folder: bool) -> None:
        with _opened(_place(self._new, path, folder=folder)) as target:
            syscalls.call(syscalls.MOVE_MOUNT, tree, b"", target, b"", _MOVE_EMPTY_PATHS)

    def _tmpfs(self, path: str, size: int, options: str) -> None:
        with _opened(_place(self._new, path, folder=True)) as target:
            os.fchdir(target)
            options += f",size={size},nr_inodes={max(size // _BYTES_PER_FILE, 1024)}"
            syscalls.mount(b"tmpfs", b".", b"tmpfs", _NOSUID | _NODEV, options.encode())


class _opened:
    """A descriptor for the length of a block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


_AT_FDCWD = -100
_FOR_PASSING = 0o022
"""The umask for folders that the tenant must be able to pass through to what lies below."""


def _clone(root: int, path: str, *, recursive: bool = False) -> int:
    """A mount of what is there, not attached anywhere."""
    with _opened(syscalls.open_beneath(root, path)) as place:
        flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
        return syscalls.call(syscalls.OPEN_TREE, place, b"", flags)


def _set_attributes(fd: int, path: bytes, attributes: int, *, recursive: bool = False) -> None:
    change = struct.pack("QQQQ", attributes, 0, 0, 0)
    flags = (0 if path else _AT_EMPTY_PATH) | (_AT_RECURSIVE if recursive else 0)
    syscalls.call(syscalls.MOUNT_SETATTR, fd, path, flags, change, len(change))


def _make_read_only(path: bytes) -> None:
    """Of a mount in use. EBUSY: the agent, which waits beside init, is writing there in this moment, if only the time at
    which it read a link; it has nothing to do but to wait, so the moment passes."""
    for _ in range(_BUSY_TRIES):
        try:
            return _set_attributes(_AT_FDCWD, path, _ATTR_RDONLY)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        time.sleep(_BUSY_S)
    _set_attributes(_AT_FDCWD, path, _ATTR_RDONLY)


def _place(root: int, path: str, *, folder: bool) -> int:
    """A descriptor of the place to mount on, in the new root, made where it is missing."""
    with suppress(FileNotFoundError):
        return syscalls.open_beneath(root, path)
    if folder:
        _make_folder(path)
    else:
        _make_folder(os.path.dirname(path))
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    return syscalls.open_beneath(root, path)


def _make_folder(path: str) -> None:
    """With its parents."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass
    except FileNotFoundError:
        _make_folder(os.path.dirname(path))
        os.mkdir(path, 0o755)


def _is_folder(fd: int) -> bool:
    return stat.S_ISDIR(os.stat(fd).st_mode)


def _by_depth(paths: set[str] | list[str]) -> list[str]:
    return sorted(set(paths), key=lambda path: (path.count("/"), path))


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _steps(path: str, folder: str) -> list[str]:
    """`path` and the folders between it and `folder`."""
    steps = []
    while _is_below(path, folder):
        steps.append(path)
        path = os.path.dirname(path)
    return steps


def _cannot_translate(path: str, owner: int, tenant: int, error: OSError) -> str:
    return (
        f"{path} belongs to user {owner}, and its file system cannot show it as the tenant's ({error.strerror}); "
        f"give it to user {tenant} (chown), or put it on ext4, xfs, btrfs or tmpfs"
    )


def _etc_files(policy: Policy, uid: int, gid: int, sealed_network: bool) -> dict[str, str]:
    home = policy.home or (policy.writable[0] if policy.writable else "/")
    passwd = f"agent:x:{uid}:{gid}::{home}:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
    group = f"agent:x:{gid}:\nnogroup:x:65534:\n"
    if uid != 0:
        passwd = "root:x:0:0::/:/bin/false\n" + passwd
        group = ("root:x:0:\n" if gid else "") + group
    files = {
        "passwd": passwd,
        "group": group,
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
        "hosts": "127.0.0.1 localhost\n::1 localhost\n",
        "resolv.conf": "# This turn has no name server.\n",
    }
    if not sealed_network:
        for name in ("hosts", "resolv.conf"):
            with suppress(OSError), open(f"/etc/{name}") as file:
                files[name] = file.read()
    return files
