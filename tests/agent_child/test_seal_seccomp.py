"""System calls that a turn does not get, asked for by number; and the programs that must still run."""

from __future__ import annotations

import platform
import shutil
import struct
from collections.abc import Iterator

import pytest
from seal_turns import USERS, Host, folder

from hermetic.agent_child.seal import seccomp

X86 = platform.machine() == "x86_64"


@pytest.fixture(params=USERS)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with folder() as path:
        yield Host(request.param, path)


CALLS = """
    def number(name):
        table = seccomp._DENIED | seccomp._ABSENT | seccomp._LOOKED_AT
        return table[name][list(seccomp.AUDIT_ARCH).index(syscalls.MACHINE)]
    def asked(name, *arguments):
        return outcome(lambda: syscalls.call(number(name), *arguments))
"""


def test_every_call_on_the_list_is_refused_whatever_its_arguments(host: Host) -> None:
    result = host.run(
        CALLS
        + """
    wrong = {}
    for table, expected in ((seccomp._DENIED, "EPERM"), (seccomp._ABSENT, "ENOSYS")):
        for name in table:
            if number(name) is not None and (got := asked(name, 0, 0, 0, 0, 0)) != expected:
                wrong[name] = got
    say(wrong=wrong)
    """
    )
    assert result["wrong"] == {}


def test_without_the_filter_the_kernel_answers_otherwise(host: Host) -> None:
    """The control: the refusals above are the filter's."""
    script = """
    say(clone3=asked("clone3", 0, 0), kcmp=asked("kcmp", os.getpid(), os.getpid(), 0, 0, 0), openat2=asked("openat2", 0, 0, 0, 0),
        user_namespace=asked("unshare", 0x10000000), key=asked("keyctl", 0, -3, 0), bits=outcome(lambda: os.chmod(".", 0o4755)),
        netlink=outcome(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()), limit=outcome(lambda: resource.prlimit(1, resource.RLIMIT_NOFILE)),
        trace=asked("ptrace", 16, 999999, 0, 0))
    """
    result = host.run(CALLS + script, host.policy(without="seccomp"))
    assert (result["clone3"], result["openat2"], result["trace"]) == ("EINVAL", "EINVAL", "ESRCH")
    for name in ("user_namespace", "bits", "netlink"):
        assert result[name] is None or result[name] == 0, name
    assert result["key"] != "EPERM"
    refused = host.run(CALLS + script)
    for name in ("user_namespace", "bits", "trace", "kcmp", "limit"):
        assert refused[name] == "EPERM", name
    assert refused["netlink"] == "EAFNOSUPPORT"


def test_set_user_id_bits_cannot_be_set_in_any_way(host: Host) -> None:
    result = host.run(
        CALLS
        + """
    open("file", "w").close()
    file = os.open("file", os.O_RDONLY)
    here = os.open(".", os.O_RDONLY)
    said = {}
    for bits in (0o4755, 0o2755, 0o6777):
        said[f"chmod {bits:o}"] = outcome(lambda: os.chmod("file", bits))
        said[f"fchmod {bits:o}"] = outcome(lambda: os.fchmod(file, bits))
        said[f"fchmodat {bits:o}"] = outcome(lambda: os.chmod("file", bits, dir_fd=here))
        said[f"fchmodat2 {bits:o}"] = asked("fchmodat2", here, b"file", bits, 0)
        said[f"openat {bits:o}"] = outcome(lambda: os.open("new", os.O_CREAT | os.O_WRONLY, bits))
        said[f"tmpfile {bits:o}"] = outcome(lambda: os.open(".", os.O_TMPFILE | os.O_WRONLY, bits))
        said[f"mkdirat {bits:o}"] = outcome(lambda: os.mkdir("folder", bits))
        said[f"mknodat {bits:o}"] = outcome(lambda: os.mknod("node", stat.S_IFREG | bits))
        if number("open") is not None:
            said[f"open {bits:o}"] = asked("open", b"new", os.O_CREAT | os.O_WRONLY, bits)
            said[f"creat {bits:o}"] = asked("creat", b"new", bits)
            said[f"mkdir {bits:o}"] = asked("mkdir", b"folder", bits)
            said[f"mknod {bits:o}"] = asked("mknod", b"node", stat.S_IFREG | bits, 0)
            said[f"old chmod {bits:o}"] = asked("chmod", b"file", bits)
    fine = [outcome(lambda: os.chmod("file", 0o1755)), outcome(lambda: os.close(os.open("file", os.O_RDONLY, 0o6777)))]
    fine.append(asked("openat", -100, b"file", 0, 0o6777) > 2)
    say(refused=said, fine=fine, sticky=os.stat("file").st_mode & 0o7777, names=os.listdir("."))
    """
    )
    assert {name for name, got in result["refused"].items() if got != "EPERM"} == set()
    assert result["fine"] == [None, None, True], "a mode that makes nothing is nobody's business"
    assert result["sticky"] == 0o1755
    assert result["names"] == ["file"]


def test_of_sockets_there_are_unix_tcp_and_udp(host: Host) -> None:
    result = host.run(
        """
        def kind(*arguments):
            return outcome(lambda: socket.socket(*arguments).close())
        say(unix=kind(1, 1), tcp=kind(2, 1), tcp6=kind(10, 1), udp=kind(2, 2), tcp_named=kind(2, 1, 6), udp_named=kind(2, 2, 17),
            netlink=kind(16, 3), packet=kind(17, 3), vsock=kind(40, 1), alg=kind(38, 5), bluetooth=kind(31, 3), xdp=kind(44, 3),
            mptcp=kind(2, 1, 262), sctp=kind(2, 1, 132), ping=kind(2, 2, 1), raw=kind(2, 3, 255),
            pair=outcome(lambda: [one.close() for one in socket.socketpair()]))
        """
    )
    for name in ("unix", "tcp", "tcp6", "udp", "tcp_named", "udp_named"):
        assert result[name] is None, name
    for name in ("netlink", "packet", "vsock", "alg", "bluetooth", "xdp"):
        assert result[name] == "EAFNOSUPPORT", name
    for name in ("mptcp", "sctp", "ping", "raw"):
        assert result[name] == "EPROTONOSUPPORT", name
    assert result["pair"] == [None, None]


def test_typing_into_a_terminal_is_refused_also_with_high_bits(host: Host) -> None:
    result = host.run(
        """
        mine, theirs = os.openpty()
        number = 16 if syscalls.MACHINE == "x86_64" else 29
        def ioctl(request):
            return outcome(lambda: syscalls.call(number, theirs, request, b"x"))
        say(plain=ioctl(0x5412), high=ioctl(0x5412 | 1 << 32), linux=ioctl(0x541C | 1 << 40), size=ioctl(0x5413 | 1 << 32))
        """,
    )
    assert (result["plain"], result["high"], result["linux"]) == ("EPERM", "EPERM", "EPERM")
    assert result["size"] == 0, "other requests are not looked at"


@pytest.mark.skipif(not X86, reason="x86 alone has other call conventions in the same process")
def test_the_calls_of_other_architectures_do_not_work(host: Host) -> None:
    script = """
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
        function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
        child = os.fork()
        if child == 0:
            os._exit(function() == os.getpid())
        say(x32=outcome(lambda: syscalls.call(0x40000000 | 39)), ended=os.waitpid(child, 0)[1])
    """
    result = host.run(script)
    assert result["x32"] == "ENOSYS"
    assert result["ended"] & 0x7F == 31, "SIGSYS"
    control = host.run(script, host.policy(without="seccomp"))["ended"]
    if control & 0x7F == 0:  # else this kernel was built without them
        assert control >> 8 == 1


def test_namespaces_are_refused_to_clone_and_unshare_alike(host: Host) -> None:
    result = host.run(
        CALLS
        + """
    flags = {"ns": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
    def clone(flag):
        pid = asked("clone", flag | 17, 0, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        return pid
    say(clone=[clone(flag) for flag in flags.values()], unshare=[asked("unshare", flag) for flag in flags.values()],
        setns=asked("setns", os.open("/proc/self/ns/user", os.O_RDONLY), 0), tool=sh("unshare -Ur true; echo $?")[-1])
    thread = threading.Thread(target=lambda: say(thread="ran"))
    thread.start()
    thread.join()
    """
    )
    assert set(result["clone"]) == set(result["unshare"]) == {"EPERM"}
    assert result["setns"] == "EPERM"
    assert result["tool"] == "1"
    assert result["thread"] == "ran"


def test_another_processs_limits_are_not_to_be_touched(host: Host) -> None:
    result = host.run(
        """
        say(own=outcome(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))),
            other=outcome(lambda: resource.prlimit(os.getpid(), resource.RLIMIT_CPU, (1, 1))))
        """
    )
    assert (result["own"], result["other"]) == (None, "EPERM")


PROGRAMS = {
    "git": ("git init -q g && cd g && echo a > a && git add a && git -c user.name=a -c user.email=a commit -qm one"
            " && git log --format=%s"),
    "node": "node -e 'require(\"fs\").writeFileSync(\"a\", \"one\"); setTimeout(() => console.log(\"one\"), 1)'",
    "curl": "echo one > a && curl -sS file://$PWD/a",
    "cc": "echo '#include <stdio.h>\nint main() { puts(\"one\"); }' > a.c && cc a.c -o a && ./a",
    "tar": "echo one > a && tar cf a.tar a && rm a && tar xf a.tar && cat a",
    "bash": "bash -c 'diff <(echo 1) <(echo 1) && coproc cat; echo one >&${COPROC[1]}; read x <&${COPROC[0]}; echo $x'",
}  # fmt: skip


@pytest.mark.parametrize("program", [name for name in PROGRAMS if shutil.which(name, path="/usr/bin")])
def test_programs_that_agents_use_run(host: Host, program: str) -> None:
    result = host.run(
        f"say(printed=sh({PROGRAMS[program]!r}))",
        before="os.environ['HOME'] = '/home/agent'; os.environ['PATH'] = '/usr/bin:/bin'",
    )
    assert result["printed"].splitlines()[-1:] == ["one"], result["printed"]


@pytest.mark.parametrize("network", ["own", "ruled", "host"])
@pytest.mark.parametrize("machine", seccomp.AUDIT_ARCH)
def test_the_program_is_whole_on_each_architecture(machine: str, network: str) -> None:
    """No jump leads out of it, each way through it ends in a return, and it fits the kernel's bound."""
    code = [struct.unpack_from("HBBI", seccomp.program(network, machine), at) for at in
            range(0, len(seccomp.program(network, machine)), 8)]  # fmt: skip
    assert len(code) < 4096
    for place, (operation, if_true, if_false, _) in enumerate(code):
        if operation == seccomp._RETURN:
            continue
        jumps = operation & 0x07 == 0x05
        for step in (if_true, if_false) if jumps else (0,):
            assert place + 1 + step < len(code)
    assert code[-1][0] == seccomp._RETURN


@pytest.mark.parametrize("machine", seccomp.AUDIT_ARCH)
def test_no_call_is_named_twice(machine: str) -> None:
    place = list(seccomp.AUDIT_ARCH).index(machine)
    tables = [seccomp._DENIED, seccomp._ABSENT, seccomp._LOOKED_AT]
    numbers = [table[name][place] for table in tables for name in table if table[name][place] is not None]
    assert len(numbers) == len(set(numbers))


def test_an_architecture_without_a_table_is_refused() -> None:
    with pytest.raises(OSError, match="riscv64"):
        seccomp.program("own", "riscv64")
