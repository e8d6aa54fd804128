"""The agent's tools cannot end it, read it, or speak for it, however Python starts them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from seal_turns import USERS, WITHOUT_NAMESPACES, Host, folder

import hermetic


@pytest.fixture(params=USERS)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with folder() as path:
        yield Host(request.param, path)


# Each starts a shell that runs `attack`, whose output goes to the file `out`.
WAYS = {
    "subprocess": "subprocess.run(argv)",
    "subprocess without closing descriptors": "subprocess.run(argv, close_fds=False)",
    "subprocess with a preexec_fn": "subprocess.run(argv, preexec_fn=lambda: None)",
    "subprocess in a thread": "t = threading.Thread(target=subprocess.run, args=(argv,)); t.start(); t.join()",
    "os.system": "os.system(attack)",
    "os.popen": "os.popen(attack).close()",
    "os.posix_spawn": "os.waitpid(os.posix_spawn('/bin/sh', argv, os.environ), 0)",
    "os.posix_spawnp": "os.waitpid(os.posix_spawnp('sh', argv, os.environ, setsid=True), 0)",
    "os.spawnv": "os.spawnv(os.P_WAIT, '/bin/sh', argv)",
    "os.fork and exec": "pid = os.fork()\nif pid == 0: os.execv('/bin/sh', argv)\nos.waitpid(pid, 0)",
    "os.forkpty": "pid, fd = os.forkpty()\nif pid == 0: os.execv('/bin/sh', argv)\nos.waitpid(pid, 0)",
}
SCRIPT = """
    me = os.getpid()
    target = 0 if {control} else 15
    attack = (f"exec > out 2>&1; kill -{{target}} {{me}} && echo signalled; head -c1 /proc/{{me}}/environ > /dev/null && echo read;"
              f"ls /proc/{{me}}/fd > /dev/null && echo listed; dd if=/proc/{{me}}/mem of=/dev/null bs=1 count=0 && echo opened;"
              f"kill -0 1 && echo init; ls -l /proc/self/fd | grep pipe")
    argv = ["/bin/sh", "-c", attack]
    exec({way!r})
    say(out=open("out").read().split("\\n"))
"""


@pytest.mark.parametrize("way", WAYS)
def test_a_tool_cannot_signal_or_read_the_agent_or_init(host: Host, way: str) -> None:
    result = host.run(SCRIPT.format(way=WAYS[way], control=False), guarded=True)
    said = set(result["out"])
    assert not said & {"signalled", "read", "listed", "opened", "init"}, said


def test_without_the_guard_a_tool_signals_the_agent(host: Host) -> None:
    """The control: the same user, in the same domain."""
    result = host.run(SCRIPT.format(way=WAYS["subprocess"], control=True))
    assert {"signalled"} <= set(result["out"])


def test_an_agent_that_is_dumpable_is_read_by_its_tools(host: Host) -> None:
    """The control: it is not the folder's rights alone."""
    result = host.run("\n    privileges.set_dumpable(True)" + SCRIPT.format(way=WAYS["subprocess"], control=True))
    assert {"read", "listed"} <= set(result["out"])


def test_a_tools_own_children_may_signal_each_other_and_the_agent_its_tools(host: Host) -> None:
    result = host.run(
        """
        tool = subprocess.Popen(["/bin/sleep", "600"])
        tool.terminate()
        say(ended=tool.wait(), family=sh("sleep 600 & kill $! && wait $!; echo $?")[-3:])
        """,
        guarded=True,
    )
    assert (result["ended"], result["family"]) == (-15, "143")


def test_a_child_has_no_way_to_the_event_stream(host: Host) -> None:
    """Also one that does not exec, such as multiprocessing's; what it writes there goes nowhere."""
    result = host.run(
        """
        os.set_inheritable(report, True)
        tool = sh(f"echo forged >&{report}; ls /proc/self/fd")
        pid = os.fork()
        if pid == 0:
            os.write(report, b"forged\\n")
            os._exit(os.fstat(report).st_rdev != os.stat("/dev/null").st_rdev)
        say(status=os.waitpid(pid, 0)[1], tool=tool)
        """,
        guarded=True,
    )
    assert result["status"] == 0
    assert "agent" in result, "the first line of the stream was the agent's"


def test_children_of_children_start_however_deep(host: Host) -> None:
    """Landlock's domains are 16 deep at most."""
    result = host.run(
        """
        def deeper(depth):
            pid = os.fork()
            if pid == 0:
                try:
                    os.kill(1, 0)
                except PermissionError:
                    os._exit(deeper(depth - 1) if depth else subprocess.run(["/bin/true"]).returncode)
                os._exit(99)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        say(code=deeper(30))
        """,
        guarded=True,
    )
    assert result["code"] == 0


def test_a_tool_can_be_started_while_many_threads_are_busy(host: Host) -> None:
    """The hook runs in a copy of a process in which any thread may hold any lock."""
    result = host.run(
        """
        stop = threading.Event()
        def busy():
            while not stop.is_set():
                logging.getLogger("x").debug("%s", [object() for _ in range(100)])
        threads = [threading.Thread(target=busy) for _ in range(4)]
        for thread in threads:
            thread.start()
        printed = {sh("echo one") for _ in range(20)}
        stop.set()
        say(printed=sorted(printed))
        """,
        guarded=True,
    )
    assert result["printed"] == ["one"]


def test_what_replaces_the_functions_of_os_behaves_as_they_do() -> None:
    """The same script, guarded and not."""
    script = """
        import os, signal, sys
        if sys.argv[1] == "guarded":
            from hermetic.agent_child.seal import privileges, tools
            tools.guard([])
            assert os.system.__module__ == "posix", "what is not sealed is left as it is"
            privileges.gain_nothing_by_exec()
            tools.guard([])
            assert os.system.__module__ == tools.__name__
        def attempt(action):
            try:
                return action()
            except OSError as error:
                return type(error).__name__, error.errno, error.filename
        def ended(pid):
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(os.system("exit 3"), os.system(b"kill -9 $$"), os.system("kill -INT $$"), os.system("no-such-program 2>/dev/null"))
        print(attempt(lambda: os.posix_spawn("/no/such", ["x"], {})), attempt(lambda: os.posix_spawnp("no-such", ["x"], os.environ)))
        print(attempt(lambda: os.posix_spawn("/etc/passwd", ["x"], {})), attempt(lambda: os.posix_spawn("/bin/sh", ["x"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/no/such", 0, 0)])))
        read_fd, write_fd = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, write_fd, 1), (os.POSIX_SPAWN_CLOSE, write_fd), (os.POSIX_SPAWN_OPEN, 9, "/dev/null", os.O_RDONLY, 0)]
        shell = 'echo $HOME; test -e /proc/self/fd/9 && echo nine; ps -o sid= -p $$ | grep -qw $$ && echo leader'
        print(ended(os.posix_spawn("/bin/sh", ["sh", "-c", shell], {"HOME": "there", "PATH": "/bin:/usr/bin"}, file_actions=actions, setsid=True)), os.read(read_fd, 100))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(ended(os.posix_spawn("/bin/sh", ["sh", "-c", "kill $$; exit 5"], {}, setsigdef=[signal.SIGTERM])),
              ended(os.posix_spawn("/bin/sh", ["sh", "-c", "kill $$; exit 5"], {})),
              ended(os.posix_spawn("/bin/sh", ["sh", "-c", "kill -USR1 $$; exit 6"], {}, setsigmask=[signal.SIGUSR1])))
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("none left")
    """

    def run(how: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(script), how],
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(Path(hermetic.__file__).parent.parent), "PATH": "/usr/bin:/bin"},
        )
        return done.stdout.splitlines()

    assert run("guarded") == run("plain")


def test_the_guard_holds_without_namespaces_too() -> None:
    for kind in USERS:
        with folder() as path:
            host = Host(kind, path)
            if kind == "root":
                os.chown(host.workspace, host.turn_uid, host.turn_uid)
            result = host.run(
                SCRIPT.format(way=WAYS["subprocess"], control=False).replace("kill -0 1", "false"),
                host.policy(WITHOUT_NAMESPACES),
                guarded=True,
            )
            assert not set(result["out"]) & {"signalled", "read", "listed", "opened"}
