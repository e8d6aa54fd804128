"""What an agent will try. The function adapter runs `run` inside a real turn; the message names one attack.

Each attack returns what it got when it succeeded, and raises what the kernel said when it did not. Nothing here knows of
Hermetic: it is what any program could do. Attacks that break the process they run in (a forbidden system call of another
architecture) run in a forked child and report how that ended.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

NUMBERS = {
    "x86_64": {
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_open": 434, "pidfd_getfd": 438,
        "bpf": 321, "perf_event_open": 298, "io_uring_setup": 425, "userfaultfd": 323, "kexec_load": 246,
        "init_module": 175, "finit_module": 313, "delete_module": 176, "keyctl": 250, "add_key": 248, "request_key": 249,
        "unshare": 272, "setns": 308, "clone": 56, "clone3": 435, "mount": 165, "umount2": 166, "pivot_root": 155,
        "chroot": 161, "fsopen": 430, "open_tree": 428, "move_mount": 429, "mount_setattr": 442, "fsmount": 432,
        "open_by_handle_at": 304, "name_to_handle_at": 303, "prlimit64": 302, "swapon": 167, "reboot": 169,
        "sethostname": 170, "settimeofday": 164, "clock_settime": 227, "acct": 163, "quotactl": 179, "syslog": 103,
        "personality": 135, "openat2": 437, "fchmodat2": 452, "mknodat": 259, "iopl": 172, "ioperm": 173,
        "lookup_dcookie": 212, "kcmp": 312, "process_madvise": 440, "landlock_restrict_self": 446, "getpid": 39,
    },
    "aarch64": {
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "pidfd_open": 434, "pidfd_getfd": 438,
        "bpf": 280, "perf_event_open": 241, "io_uring_setup": 425, "userfaultfd": 282, "kexec_load": 104,
        "init_module": 105, "finit_module": 273, "delete_module": 106, "keyctl": 219, "add_key": 217, "request_key": 218,
        "unshare": 97, "setns": 268, "clone": 220, "clone3": 435, "mount": 40, "umount2": 39, "pivot_root": 41,
        "chroot": 51, "fsopen": 430, "open_tree": 428, "move_mount": 429, "mount_setattr": 442, "fsmount": 432,
        "open_by_handle_at": 265, "name_to_handle_at": 264, "prlimit64": 261, "swapon": 224, "reboot": 142,
        "sethostname": 161, "settimeofday": 170, "clock_settime": 112, "acct": 89, "quotactl": 60, "syslog": 116,
        "personality": 92, "openat2": 437, "fchmodat2": 452, "mknodat": 33, "kcmp": 272, "process_madvise": 440,
        "landlock_restrict_self": 446, "getpid": 172,
    },
}[platform.machine()]  # fmt: skip


def syscall(name: str, *arguments: object) -> int:
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(NUMBERS[name]), *[_argument(value) for value in arguments])
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _argument(value: object) -> object:
    return ctypes.c_long(value) if isinstance(value, int) else value


# --- files --------------------------------------------------------------------------------------------------------


def read(path: str) -> str:
    with open(path, "rb") as file:
        return file.read(4096).decode("utf-8", "replace")


def listing(path: str) -> list[str]:
    return os.listdir(path)


def look(path: str) -> int:
    return os.stat(path).st_size


def write(path: str) -> str:
    with open(path, "w") as file:
        file.write("attacked")
    return "written"


def change_mode(path: str, mode: int = 0o777) -> str:
    os.chmod(path, mode)
    return "changed"


def change_time(path: str) -> str:
    os.utime(path, (1, 1))
    return "changed"


def watch(path: str) -> str:
    fd = libc.inotify_init1(0)
    if libc.inotify_add_watch(fd, path.encode(), 0xFFF) < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    return "watching"


def through_symlink(path: str) -> str:
    os.symlink(path, "innocent")
    return read("innocent")


def through_hardlink(path: str) -> str:
    os.link(path, "innocent-too")
    return read("innocent-too")


def through_dots(path: str) -> str:
    return read("../" * 30 + path.lstrip("/"))


def through_proc(path: str) -> str:
    for link in ("/proc/1/root", "/proc/self/root", "/proc/1/cwd", "/proc/self/cwd/../../../../../.."):
        try:
            return read(link + path)
        except OSError as error:
            last = error
    raise last


def through_descriptors(path: str) -> str:
    """Every descriptor that we have, as the place to start from."""
    os.open(".", os.O_RDONLY)
    for fd in map(int, os.listdir("/proc/self/fd")):
        for start in (path.lstrip("/"), "../" * 30 + path.lstrip("/")):
            try:
                found = os.open(start, os.O_RDONLY, dir_fd=fd)
                return os.read(found, 100).decode()
            except OSError:
                pass
    raise PermissionError(errno.EACCES, "no descriptor leads there")


def by_handle(path: str) -> str:
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + b"\0" * 128)
    mount_id = ctypes.c_int()
    syscall("name_to_handle_at", -100, path.encode(), handle, ctypes.byref(mount_id), 0)
    start = os.open("/", os.O_RDONLY)
    fd = syscall("open_by_handle_at", start, handle, 0)
    return os.read(fd, 100).decode()


def handles_without_a_path() -> str:
    """The root's inode by a guessed handle: how containers were broken out of in 2014 ("shocker")."""
    handle = ctypes.create_string_buffer(struct.pack("IiQI", 8, 1, 2, 0) + b"\0" * 64)
    return str(syscall("open_by_handle_at", os.open(".", os.O_RDONLY), handle, 0))


def setuid_file() -> str:
    with open("left-behind", "w") as file:
        file.write("#!/bin/sh\nid\n")
    os.chmod("left-behind", 0o4755)
    if not os.stat("left-behind").st_mode & stat.S_ISUID:
        raise PermissionError(errno.EPERM, "the bit did not stay")
    return "setuid"


def setuid_ways(way: str) -> str:
    """The other system calls that can set the bit."""
    name = f"left-{way}"
    if way == "open":
        fd = os.open(name, os.O_CREAT | os.O_WRONLY, 0o6755)
    elif way == "fchmod":
        fd = os.open(name, os.O_CREAT | os.O_WRONLY, 0o755)
        os.fchmod(fd, 0o6755)
    elif way == "fchmodat2":
        open(name, "w").close()
        syscall("fchmodat2", -100, name.encode(), 0o6755, 0)
    elif way == "openat2":
        syscall("openat2", -100, name.encode(), struct.pack("QQQ", os.O_CREAT | os.O_WRONLY, 0o6755, 0), 24)
    elif way == "mknod":
        os.mknod(name, 0o6755 | stat.S_IFREG)
    elif way == "mkdir":
        os.mkdir(name, 0o2755)
        os.chmod(name, 0o2755)
    elif way == "tool":
        subprocess.run(["sh", "-c", f"touch {name} && chmod u+s {name}"], check=False)
    if not os.stat(name).st_mode & (stat.S_ISUID | stat.S_ISGID):
        raise PermissionError(errno.EPERM, "the bit did not stay")
    return "set"


def device() -> str:
    os.mknod("disk", 0o600 | stat.S_IFBLK, os.makedev(8, 0))
    return "made"


def device_char() -> str:
    os.mknod("mem", 0o600 | stat.S_IFCHR, os.makedev(1, 1))
    return "made"


def write_to(path: str, what: str) -> str:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, what.encode())
    return "written"


# --- processes ----------------------------------------------------------------------------------------------------


def environ_of(pid: int) -> str:
    return read(f"/proc/{pid}/environ")


def find_in_environs(needle: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if needle.encode() in file.read():
                        found.append(int(name))
            except OSError:
                pass
    if not found:
        raise PermissionError(errno.EACCES, "nowhere to be read")
    return found


def processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


def command_line_of(pid: int) -> str:
    return read(f"/proc/{pid}/cmdline")


def attach(pid: int) -> str:
    syscall("ptrace", 16, pid, 0, 0)  # PTRACE_ATTACH
    os.waitpid(pid, 0)
    syscall("ptrace", 17, pid, 0, 0)
    return "attached"


def read_memory_of(pid: int) -> str:
    with open(f"/proc/{pid}/maps") as maps:
        start = next(int(line.split("-")[0], 16) for line in maps if " r" in line)
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("PN", ctypes.addressof(buffer), 8)
    remote = struct.pack("PN", start, 8)
    syscall("process_vm_readv", pid, local, 1, remote, 1, 0)
    return buffer.raw.hex()


def vm_call(pid: int) -> str:
    """Without looking at its maps first: whether the call itself is allowed."""
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("PN", ctypes.addressof(buffer), 8)
    syscall("process_vm_readv", pid, local, 1, local, 1, 0)
    return "read"


def send_signal(pid: int, number: int = 0) -> str:
    os.kill(pid, number)
    return "sent"


def renice(pid: int) -> str:
    os.setpriority(os.PRIO_PROCESS, pid, 10)
    return "reniced"


def limit(pid: int) -> str:
    resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
    return "limited"


def take_descriptor(pid: int) -> str:
    pidfd = syscall("pidfd_open", pid, 0)
    return str(syscall("pidfd_getfd", pidfd, 0, 0))


def descriptors() -> dict[str, str]:
    """All that we hold."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass
    return found


def who() -> dict[str, object]:
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    return {
        "uid": os.getresuid(),
        "gid": os.getresgid(),
        "groups": os.getgroups(),
        "capabilities": {name: status[name].strip("0") for name in status if name.startswith("Cap")},
        "no_new_privs": status["NoNewPrivs"],
        "seccomp": status["Seccomp"],
        "pid": os.getpid(),
        "cwd": os.getcwd(),
        "host": socket.gethostname(),
    }


def setuid_program() -> str:
    """Every setuid program that we can see, run with nothing: none may have become another user."""
    tried = []
    for folder in ("/bin", "/usr/bin", "/usr/sbin", "/sbin", "/usr/local/bin"):
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            path = os.path.join(folder, name)
            try:
                if os.stat(path).st_mode & stat.S_ISUID:
                    tried.append(path)
            except OSError:
                pass
    became = []
    for path in tried:
        program = subprocess.Popen(
            [path], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            with open(f"/proc/{program.pid}/status") as file:
                uids = next(line for line in file if line.startswith("Uid:")).split()[1:]
            if len(set(uids)) != 1 or int(uids[0]) != os.getuid():
                became.append(f"{path} {uids}")
        except (OSError, StopIteration):
            pass
        finally:
            program.kill()
            program.wait()
    if not became:
        raise PermissionError(errno.EPERM, f"none of {len(tried)}")
    return " ".join(became)


# --- network ------------------------------------------------------------------------------------------------------


def connect(host: str, port: int) -> str:
    with socket.create_connection((host, port), timeout=3) as connection:
        connection.sendall(b"GET /v1/health HTTP/1.0\r\n\r\n")
        return connection.recv(100).decode("utf-8", "replace")


def connect_fast_open(host: str, port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # a timeout of Python's makes it non-blocking
            sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", 3, 0))
        sock.sendto(b"GET /v1/health HTTP/1.0\r\n\r\n", 0x20000000, (host, port))  # MSG_FASTOPEN
        return sock.recv(100).decode("utf-8", "replace")


def connect_multipath(host: str, port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as sock:  # IPPROTO_MPTCP
        sock.settimeout(3)
        sock.connect((host, port))
        return "connected"


def send_datagram(host: str, port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.connect((host, port))
        sock.send(b"ping")
        return sock.recv(100).decode()


def unix_connect(path: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(3)
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        return sock.recv(100).decode()


def open_socket(family: int, kind: int, protocol: int = 0) -> str:
    socket.socket(family, kind, protocol).close()
    return "opened"


def interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def through_proxy(proxy: str, target: str) -> str:
    host, port = proxy.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        answer = sock.recv(4096).decode("utf-8", "replace")
    if " 200 " not in answer.splitlines()[0]:
        raise PermissionError(errno.EACCES, answer.splitlines()[0])
    return answer


# --- the kernel ---------------------------------------------------------------------------------------------------

CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWNET = 0x10000000, 0x00020000, 0x40000000


def call(name: str, *arguments: int) -> str:
    """A system call that a sandbox has no use for, with arguments that do no harm where it is allowed."""
    return str(syscall(name, *arguments))


def new_user_namespace() -> str:
    return in_child(lambda: syscall("unshare", CLONE_NEWUSER))


def new_namespace_by_clone() -> str:
    def attempt() -> None:
        pid = syscall("clone", CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    return in_child(attempt)


def new_namespace_by_clone3() -> str:
    def attempt() -> None:
        pid = syscall("clone3", struct.pack("QQQQQQQQ", CLONE_NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 64)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    return in_child(attempt)


def new_namespace_by_tool() -> str:
    done = subprocess.run(["unshare", "--user", "--map-root-user", "id"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(errno.EPERM, done.stderr)
    return done.stdout


def mount_tmpfs() -> str:
    os.makedirs("mounted", exist_ok=True)
    syscall("mount", b"none", b"mounted", b"tmpfs", 0, 0)
    return "mounted"


def unmount(path: str) -> str:
    syscall("umount2", path.encode(), 2)
    return "unmounted"


def remount_writable(path: str) -> str:
    syscall("mount", 0, path.encode(), 0, 32 | 4096, 0)  # MS_REMOUNT | MS_BIND
    return "remounted"


def push_input(request: int) -> str:
    """TIOCSTI and TIOCLINUX on a terminal of our own; the kernel looks at the low 32 bits of the request alone."""
    main, terminal = os.openpty()

    def attempt() -> None:
        os.setsid()
        fcntl.ioctl(terminal, 0x540E, 0)  # TIOCSCTTY
        libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p]
        if libc.ioctl(terminal, request, b"x") < 0:
            raise OSError(ctypes.get_errno(), "ioctl")

    try:
        return in_child(attempt)
    finally:
        os.close(main)
        os.close(terminal)


def other_architecture() -> str:
    """`int 0x80` on x86_64: the filter of a careless sandbox looks at 64-bit numbers only."""
    code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20 (getpid there); int 0x80; ret
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    function = ctypes.CFUNCTYPE(ctypes.c_long)(address)

    def attempt() -> None:
        result = function()
        if result < 0:
            raise OSError(-result, "int 0x80")

    return in_child(attempt)


def x32() -> str:
    return in_child(lambda: _check_x32())


def _check_x32() -> None:
    ctypes.set_errno(0)
    if libc.syscall(ctypes.c_long(0x40000000 | 39)) < 0:
        raise OSError(ctypes.get_errno(), "x32")


def shared_memory(key: int) -> str:
    shm = libc.shmget(key, 0, 0)
    if shm < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    return "found"


def in_child(attempt) -> str:
    """→ what it returned; raises what it raised; a death by signal is EPERM's like."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
            os.write(writer, b"ok")
        except OSError as error:
            os.write(writer, str(error.errno).encode())
        finally:
            os._exit(0)
    os.close(writer)
    said = os.read(reader, 100)
    os.close(reader)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        raise PermissionError(errno.EPERM, f"killed by {signal.Signals(os.WTERMSIG(status)).name}")
    if said != b"ok":
        raise OSError(int(said or b"0"), "in the child")
    return "ok"


# --- tools against their agent ------------------------------------------------------------------------------------


def tool(script: str, language: str = "python") -> str:
    """A tool that the agent runs, in whatever way an agent runs tools, with the agent's process id as its argument."""
    command = [sys.executable, "-I", "-c", script] if language == "python" else ["sh", "-c", script, "sh"]
    done = subprocess.run([*command, str(os.getpid())], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise PermissionError(errno.EPERM, f"{done.returncode} {done.stdout} {done.stderr[-300:]}")
    return done.stdout


def tool_by(way: str, script: str) -> str:
    """The other ways in which Python starts a process; the script's exit code is the answer."""
    agent = str(os.getpid())
    command = ["/bin/sh", "-c", script, "sh", agent]
    if way == "fork":
        pid = os.fork()
        if pid == 0:
            os.execv(command[0], command)
    elif way == "posix_spawn":
        pid = os.posix_spawn(command[0], command, os.environ)
    elif way == "system":
        code = os.waitstatus_to_exitcode(os.system(f"/bin/sh -c '{script}' sh {agent}"))
        return _succeeded(code)
    elif way == "pty":
        import pty

        pid, _ = pty.fork()
        if pid == 0:
            os.execv(command[0], command)
    elif way == "thread":
        import threading

        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(subprocess.run(command, check=False).returncode))
        thread.start()
        thread.join()
        return _succeeded(codes[0])
    return _succeeded(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _succeeded(code: int) -> str:
    if code:
        raise PermissionError(errno.EPERM, f"exit code {code}")
    return "done"


# --- limits -------------------------------------------------------------------------------------------------------


def fork_bomb() -> str:
    while True:
        try:
            if os.fork() == 0:
                while True:
                    try:
                        if os.fork() == 0:
                            continue
                    except OSError:
                        time.sleep(0.01)
        except OSError:
            time.sleep(0.01)


def fork_count() -> int:
    """How many processes there can be at once."""
    children = []
    try:
        while len(children) < 5000:
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return len(children)


def memory_bomb() -> str:
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1 << 20)) * 16)


def memory_bomb_in_tools() -> str:
    script = "k=[]\nwhile True: k.append(bytearray(b'x') * (1 << 24))"
    tools = [subprocess.Popen([sys.executable, "-I", "-c", script]) for _ in range(4)]
    for one in tools:
        one.wait()
    time.sleep(30)
    return "still here"


def fill(path: str) -> str:
    with open(path, "wb") as file:
        while True:
            file.write(b"\1" * (1 << 20))


def many_descriptors() -> int:
    kept = []
    try:
        while True:
            kept.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    count = len(kept)
    for fd in kept:
        os.close(fd)
    return count


# --- leaving things behind ----------------------------------------------------------------------------------------


def plant() -> str:
    """For the next turn in this workspace."""
    shim = "import os, sys\nopen('planted-ran', 'a').write(f'{__file__} {os.getpid()}\\n')\n"
    for name in ("json.py", "sitecustomize.py", "usercustomize.py", "hermetic.py", "msgspec.py", "attacks.py", "os.py"):
        with open(name, "w") as file:
            file.write(shim)
    with open("shim.pth", "w") as file:
        file.write("import os; open('planted-ran', 'a').write('pth')\n")
    os.makedirs("bin", exist_ok=True)
    for name in ("git", "sh", "python3"):
        with open(f"bin/{name}", "w") as file:
            file.write("#!/bin/sh\necho shim >> planted-ran\n")
        os.chmod(f"bin/{name}", 0o755)
    os.makedirs(".git/hooks", exist_ok=True)
    for name in ("pre-commit", "post-checkout", "fsmonitor"):
        with open(f".git/hooks/{name}", "w") as file:
            file.write("#!/bin/sh\necho hook >> planted-ran\n")
        os.chmod(f".git/hooks/{name}", 0o755)
    with open(".git/config", "w") as file:
        file.write("[core]\n\tfsmonitor = .git/hooks/fsmonitor\n")
    for home in {os.environ.get("HOME", ""), os.getcwd()}:
        try:
            for name in (".profile", ".bashrc", ".pythonrc", ".pdbrc"):
                with open(os.path.join(home, name), "w") as file:
                    file.write("echo home >> planted-ran\n")
            user_site = os.path.join(
                home, ".local/lib", f"python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
            )
            os.makedirs(user_site, exist_ok=True)
            with open(os.path.join(user_site, "usercustomize.py"), "w") as file:
                file.write(shim)
        except OSError:
            pass
    return "planted"


def origin() -> dict[str, object]:
    """Where the modules of this turn come from, and whether anything planted has run."""
    import json as loaded

    return {
        "json": loaded.__file__,
        "path": sys.path,
        "ran": os.path.exists("planted-ran"),
        "preload": os.environ.get("LD_PRELOAD"),
        "customised": [name for name in ("sitecustomize", "usercustomize") if name in sys.modules],
        "search": os.environ["PATH"],
    }


# --- the adapter's target -----------------------------------------------------------------------------------------


def run(message: str) -> str:
    """`{"attack": NAME, "with": {…}}` → `{"did": …}` or `{"refused": ERRNO, "said": …}`."""
    asked = json.loads(message)
    attack = globals()[asked["attack"]]
    arguments = asked.get("with", {})
    try:
        did = attack(**arguments) if isinstance(arguments, dict) else attack(*arguments)
        return json.dumps({"did": did})
    except OSError as error:
        return json.dumps({"refused": errno.errorcode.get(error.errno or 0, str(error.errno)), "said": str(error)})
    except MemoryError:
        return json.dumps({"refused": "ENOMEM", "said": "MemoryError"})
    except subprocess.TimeoutExpired:
        return json.dumps({"refused": "timeout", "said": "the tool hung"})
