"""What an agent will try, in real turns: refused at levels 3 and 2, as root and as an ordinary user.

Each attack names where it must succeed without the seal (`bites`): a control run at level 0 holds it to that, so that a
refusal proves the seal and not a mistake in the attack. An empty `bites` is an attack that this kernel or level 0's own
namespaces refuse as well.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from world import World, alive

ROOT, USER, BOTH, NOBODY = {"root"}, {"user"}, {"root", "user"}, set[str]()
REFUSALS = {
    *("EPERM", "EACCES", "ENOENT", "ESRCH", "ENOSYS", "EROFS", "EXDEV", "ELOOP", "ENODEV", "EAFNOSUPPORT"),
    *("EPROTONOSUPPORT", "ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH", "ENOTDIR", "EINVAL", "EIO", "ESOCKTNOSUPPORT"),
}


class Attack(NamedTuple):
    what: str
    call: str
    arguments: Callable[[World], dict[str, Any]] = lambda world: {}
    bites: set[str] = NOBODY


def path(what: str) -> Callable[[World], dict[str, Any]]:
    return lambda world: {"path": getattr(world, what)}


def server(**more: Any) -> Callable[[World], dict[str, Any]]:
    return lambda world: {"pid": world.server.process.pid, **more}


def neighbour(**more: Any) -> Callable[[World], dict[str, Any]]:
    return lambda world: {"pid": world.neighbours_pid, **more}


def fixed(**arguments: Any) -> Callable[[World], dict[str, Any]]:
    return lambda world: arguments


TIOCSTI, TIOCLINUX = 0x5412, 0x541C
HIGH = 1 << 32
SOCKETS = {
    "raw": (socket.AF_INET, socket.SOCK_RAW, 1),
    "raw6": (socket.AF_INET6, socket.SOCK_RAW, 58),
    "packet": (socket.AF_PACKET, socket.SOCK_RAW, 0),
    "netlink_route": (socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "netlink_audit": (socket.AF_NETLINK, socket.SOCK_RAW, 9),
    "vsock": (socket.AF_VSOCK, socket.SOCK_STREAM, 0),
    "alg": (socket.AF_ALG, socket.SOCK_SEQPACKET, 0),
    "bluetooth": (31, socket.SOCK_RAW, 1),
    "can": (29, socket.SOCK_RAW, 1),
    "xdp": (44, socket.SOCK_RAW, 0),
    "key": (15, socket.SOCK_RAW, 2),
    "rds": (21, socket.SOCK_SEQPACKET, 0),
    "tipc": (30, socket.SOCK_STREAM, 0),
}

ATTACKS = [
    # files of others
    Attack("read a host's file", "read", path("secret"), BOTH),
    Attack("read a neighbour's file", "read", path("neighbours_file"), BOTH),
    Attack("read a private key", "read", path("ssh_key"), BOTH),
    Attack("read the server's database", "read", lambda w: {"path": str(w.server.data / "hermetic.db")}, BOTH),
    Attack("read the server's configuration", "read", lambda w: {"path": str(w.server.config)}, BOTH),
    Attack("read the passwords", "read", fixed(path="/etc/shadow"), ROOT),
    Attack("list a neighbour's folder", "listing", path("neighbours_workspace"), BOTH),
    Attack("list a host's folder", "listing", lambda w: {"path": str(w.folder / "private")}, BOTH),
    Attack("list the host's services", "listing", fixed(path="/var/lib"), BOTH),
    Attack("stat a neighbour's file", "look", path("neighbours_file"), BOTH),
    Attack("chmod a neighbour's file", "change_mode", path("neighbours_file"), BOTH),
    Attack("set the times of a neighbour's file", "change_time", path("neighbours_file"), BOTH),
    Attack("watch a neighbour's folder", "watch", path("neighbours_workspace"), BOTH),
    Attack("write outside of the workspace", "write", lambda w: {"path": str(w.folder / "private/left")}, BOTH),
    Attack("write to the system", "write", fixed(path="/usr/local/hermetic-attack"), NOBODY),
    Attack("write into its own agent's code", "write", lambda w: {"path": str(w.server.agents / "left.py")}, BOTH),
    Attack("follow a symbolic link out", "through_symlink", path("secret"), BOTH),
    Attack("follow a hard link out", "through_hardlink", path("secret"), BOTH),
    Attack("climb out by dots", "through_dots", path("secret"), BOTH),
    Attack("climb out by links of /proc", "through_proc", path("secret"), BOTH),
    Attack("climb out by a descriptor", "through_descriptors", path("secret"), BOTH),
    Attack("open by a handle", "by_handle", path("secret"), ROOT),
    Attack("open the root by a guessed handle", "handles_without_a_path"),
    Attack("make a block device", "device", bites=ROOT),
    Attack("make a character device", "device_char", bites=ROOT),
    *(Attack(f"set a setuid bit by {way}", "setuid_ways", fixed(way=way), BOTH)
      for way in ("open", "fchmod", "fchmodat2", "mknod", "mkdir", "tool")),
    Attack("set a setuid bit by openat2", "setuid_ways", fixed(way="openat2"), BOTH),
    Attack("set a setuid bit by chmod", "setuid_file", bites=BOTH),
    Attack("change what runs at a crash", "write_to", fixed(path="/proc/sys/kernel/core_pattern", what="")),
    Attack("press a magic key", "write_to", fixed(path="/proc/sysrq-trigger", what="")),
    Attack("load by sysfs", "listing", fixed(path="/sys/kernel")),
    # processes of others
    Attack("read the server's environment", "environ_of", server()),
    Attack("find a server's secret in any environment", "find_in_environs", fixed(needle="SERVER-ENV")),
    Attack("find a neighbour's secret in any environment", "find_in_environs", fixed(needle="NEIGHBOUR-ENV")),
    Attack("read its init's environment", "environ_of", fixed(pid=1), ROOT),
    Attack("read its init's memory", "read_memory_of", fixed(pid=1), ROOT),
    Attack("list its init's root", "listing", fixed(path="/proc/1/root/root"), ROOT),
    Attack("attach to its init", "attach", fixed(pid=1), ROOT),
    Attack("attach to the server", "attach", server()),
    Attack("read memory by the system call", "vm_call", fixed(pid=1)),
    Attack("kill its init", "send_signal", fixed(pid=1, number=0), BOTH),
    Attack("signal the server", "send_signal", server()),
    Attack("signal a neighbour", "send_signal", neighbour()),
    Attack("renice the server", "renice", server()),
    Attack("renice a neighbour", "renice", neighbour()),
    Attack("limit the server", "limit", server()),
    Attack("take a descriptor of its init", "take_descriptor", fixed(pid=1), ROOT),
    Attack("become another user by a setuid program", "setuid_program"),
    # network
    Attack("connect to the server's port", "connect", lambda w: {"host": "127.0.0.1", "port": w.port}, BOTH),
    Attack("connect to another port of the host", "connect", lambda w: {"host": "127.0.0.1", "port": w.tcp_port}, BOTH),
    Attack("connect with fast open", "connect_fast_open", lambda w: {"host": "127.0.0.1", "port": w.port}, BOTH),
    Attack("connect by several paths", "connect_multipath", lambda w: {"host": "127.0.0.1", "port": w.port}, BOTH),
    Attack("ask the cloud's metadata", "connect", fixed(host="169.254.169.254", port=80)),
    Attack("send a datagram", "send_datagram", lambda w: {"host": "127.0.0.1", "port": w.udp_port}, BOTH),
    Attack("ask a name server", "send_datagram", fixed(host="8.8.8.8", port=53)),
    Attack("connect to a socket in a folder", "unix_connect", path("unix_path"), BOTH),
    Attack("connect to an abstract socket", "unix_connect", path("abstract"), BOTH),
    *(Attack(f"open a {name} socket", "open_socket", fixed(family=f, kind=k, protocol=p),
             BOTH if name in ("netlink_route",) else ROOT if name in ("raw", "packet") else NOBODY)
      for name, (f, k, p) in SOCKETS.items()),
    # the kernel
    Attack("make a user namespace", "new_user_namespace", bites=BOTH),
    Attack("make a namespace by clone", "new_namespace_by_clone", bites=BOTH),
    Attack("make a namespace by clone3", "new_namespace_by_clone3", bites=BOTH),
    Attack("make a namespace by a tool", "new_namespace_by_tool", bites=BOTH),
    Attack("mount", "mount_tmpfs", bites=ROOT),
    Attack("unmount /proc", "unmount", fixed(path="/proc"), ROOT),
    Attack("remount the root", "remount_writable", fixed(path="/")),
    *(Attack(f"call {name}", "call", lambda w, n=name, a=arguments: {"name": n, **a}, NOBODY)
      for name, arguments in {
          "fsopen": {}, "open_tree": {}, "move_mount": {}, "mount_setattr": {}, "fsmount": {}, "pivot_root": {},
          "chroot": {}, "bpf": {}, "perf_event_open": {}, "io_uring_setup": {}, "userfaultfd": {}, "kexec_load": {},
          "init_module": {}, "finit_module": {}, "delete_module": {}, "keyctl": {}, "add_key": {}, "request_key": {},
          "setns": {}, "swapon": {}, "reboot": {}, "sethostname": {}, "settimeofday": {}, "acct": {}, "quotactl": {},
          "open_by_handle_at": {}, "kcmp": {}, "syslog": {},
      }.items()),
    Attack("push input into a terminal", "push_input", fixed(request=TIOCSTI)),
    Attack("push input, high bits set", "push_input", fixed(request=TIOCSTI | HIGH)),
    Attack("push input by the console", "push_input", fixed(request=TIOCLINUX)),
    Attack("push input by the console, high bits set", "push_input", fixed(request=TIOCLINUX | HIGH)),
    Attack("find the host's shared memory", "shared_memory", lambda w: {"key": w.shm_key}),
]  # fmt: skip
if platform.machine() == "x86_64":
    ATTACKS += [
        Attack("call as a 32-bit program", "other_architecture"),
        Attack("call as an x32 program", "x32"),
    ]

AGENT = "int(sys.argv[1])"
TOOLS = {
    "kill the agent": f"import os, sys; os.kill({AGENT}, 0)",
    "stop the agent": f"import os, sys; os.kill({AGENT}, 19)",
    "read the agent's environment": f"import sys; print(open(f'/proc/{{{AGENT}}}/environ').read())",
    "read the agent's memory": (
        f"import os, sys; at = int(open(f'/proc/{{{AGENT}}}/maps').readline().split('-')[0], 16)\n"
        f"os.pread(os.open(f'/proc/{{{AGENT}}}/mem', 0), 1, at)"
    ),
    "see the agent's maps": f"import sys; print(open(f'/proc/{{{AGENT}}}/maps').read())",
    "see the agent's descriptors": f"import os, sys; print(os.listdir(f'/proc/{{{AGENT}}}/fd'))",
    "write to the agent's event stream": (
        "import os, sys\n"
        f"fds = [f'/proc/{{{AGENT}}}/fd/{{n}}' for n in range(100, 120)]\n"
        "streams = [fd for fd in fds if os.path.exists(fd) and os.readlink(fd).startswith('pipe')]\n"
        "[os.open(fd, os.O_WRONLY | os.O_NONBLOCK) for fd in streams]; sys.exit(not streams)"
    ),
    "write to a descriptor of its own that leads there": (
        "import os, sys\n"
        "pipes = [fd for fd in os.listdir('/proc/self/fd') if int(fd) > 2 and 'pipe' in os.readlink(f'/proc/self/fd/{fd}')]\n"
        "print(pipes); sys.exit(not pipes)"
    ),
    "take the agent's descriptor": (
        "import ctypes, os, sys\n"
        f"p = os.pidfd_open({AGENT}); c = ctypes.CDLL(None, use_errno=True)\n"
        "sys.exit(c.syscall(438, p, 100, 0) < 0)"
    ),
    "signal it by a pidfd": (f"import os, signal, sys; signal.pidfd_send_signal(os.pidfd_open({AGENT}), 0)"),
    "limit the agent": f"import resource, sys; resource.prlimit({AGENT}, resource.RLIMIT_CORE, (0, 0))",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.what for attack in ATTACKS])
def test_an_attack_is_refused(sealed: World, attack: Attack) -> None:
    got = sealed.attack(attack.call, **attack.arguments(sealed))
    assert got.get("refused") in REFUSALS | {"timeout", "TimeoutError"}, got
    for secret in ("HOST-SECRET", "HOST-KEY", "NEIGHBOUR-FILE", "SERVER-ENV", "NEIGHBOUR-ENV"):
        assert secret not in str(got)
    assert alive(sealed.server.process.pid) and alive(sealed.neighbours_pid)


@pytest.mark.parametrize(
    "attack", [a for a in ATTACKS if a.bites], ids=[attack.what for attack in ATTACKS if attack.bites]
)
def test_the_attack_succeeds_where_nothing_is_sealed(unsealed: World, attack: Attack) -> None:
    if unsealed.user not in attack.bites:
        return  # only root could do this, and the test above shows that a sealed turn of root's cannot
    got = unsealed.attack(attack.call, **attack.arguments(unsealed))
    assert "did" in got, got


@pytest.mark.parametrize("what", TOOLS)
def test_a_tool_cannot_touch_its_agent(sealed: World, what: str) -> None:
    got = sealed.attack("tool", script=TOOLS[what])
    assert got.get("refused") == "EPERM", got


USER_TOOLS = ("kill the agent", "signal it by a pidfd", "limit the agent")
"""An unsealed turn of an ordinary user is in a user namespace with all capabilities there, which its tools lose when they
are executed: the kernel lets nobody look into a process that has more than himself (ptrace(2))."""


@pytest.mark.parametrize("what", [what for what in TOOLS if "stop" not in what and "leads there" not in what])
def test_the_tool_can_where_nothing_is_sealed(unsealed: World, what: str) -> None:
    if unsealed.user == "user" and what not in USER_TOOLS:
        return
    got = unsealed.attack("tool", script=TOOLS[what])
    assert "did" in got, got


@pytest.mark.parametrize("way", ["fork", "posix_spawn", "system", "pty", "thread"])
def test_a_tool_cannot_signal_its_agent_however_it_was_started(sealed: World, way: str) -> None:
    got = sealed.attack("tool_by", way=way, script="kill -0 $1")
    assert got.get("refused") == "EPERM", got


@pytest.mark.parametrize("way", ["fork", "posix_spawn", "system", "pty", "thread"])
def test_a_tool_runs_however_it_was_started(sealed: World, way: str) -> None:
    assert sealed.attack("tool_by", way=way, script="test -d .")["did"] == "done"


def test_a_turn_sees_its_own_processes_alone(sealed: World) -> None:
    seen = sealed.attack("processes")["did"]
    assert len(seen) <= 4 and str(sealed.server.process.pid) not in seen, seen


def test_a_turn_has_no_network_but_a_loopback_of_its_own(sealed: World) -> None:
    assert sealed.attack("interfaces").get("did", ["lo"]) == ["lo"]  # asking may be refused altogether


def test_a_turn_is_nobody_that_the_host_knows(sealed: World) -> None:
    who = sealed.attack("who")["did"]
    assert not any(who["capabilities"].values()), who
    assert who["no_new_privs"] == "1" and who["seccomp"] == "2" and who["groups"] in ([], [who["gid"][0]])
    assert len(set(who["uid"])) == 1 and who["uid"][0] != 0
    assert who["cwd"] == sealed.workspace
    assert who["host"] != socket.gethostname()


def test_a_turn_holds_no_descriptor_but_its_own_streams(sealed: World) -> None:
    held = sealed.attack("descriptors")["did"]
    for number, target in held.items():
        assert target.startswith(("pipe:", "/dev/null", "/proc/", "anon_inode:", "socket:")), (number, target)
    assert sum(target.startswith("socket:") for target in held.values()) == 0, held


def test_the_first_event_says_what_holds_the_turn(sealed: World) -> None:
    started = sealed.started(sealed.neighbours_turn)
    assert started["seal"]["level"] == sealed.level == sealed.health["level"]
    assert {"seccomp", "private_root", "network_namespace"} <= set(started["seal"]["mechanisms"])
    assert ("cgroup_memory" in started["seal"]["mechanisms"]) == (sealed.level == 3)


def test_what_the_seal_says_is_what_the_kernel_says(sealed: World) -> None:
    pid = sealed.neighbours_pid
    for link in ("pid", "mnt", "ipc", "net", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{link}") != os.readlink(f"/proc/self/ns/{link}"), link
    assert os.stat(f"/proc/{pid}").st_uid != os.getuid()
