"""The keeper: answers for the whole tree of one turn.

It lives outside the tree's namespace and runs none of the agent's code. Its promise: when it has ended, nothing of the
tree lives. It keeps it because the root of the tree is the init of a PID namespace: the kernel kills every process in
the namespace when its init ends, and lets the init be reaped only when they are all gone (pid_namespaces(7)). Where no
namespace can be had, the keeper and init are subreapers and kill by walking /proc (killing.py). When the keeper itself
is killed, init gets a signal for its parent's death.

Messages with the supervisor: protocol/control.py. Messages from init, one line each on a pipe:
`init` (it will die with the keeper), `agent WORDS` (the agent is forked; what could not be had) and `status N` (the
agent's wait status).
"""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import suppress
from itertools import pairwise
from typing import NoReturn

from hermetic.agent_child import init, kernel
from hermetic.agent_child.killing import kill_descendants


def main(arguments: list[str], events_fd: int, commands_fd: int) -> NoReturn:
    """Never returns: each of the three processes ends inside."""
    options = dict(pairwise(arguments))
    keeper = Keeper(int(options["--control-fd"]), options.get("--interpreter"))
    keeper.fork_init("--no-namespaces" not in arguments, events_fd, commands_fd)
    keeper.watch()
    os._exit(0)


class Keeper:
    def __init__(self, control_fd: int, interpreter: str | None) -> None:
        os.set_inheritable(control_fd, False)
        self._interpreter = interpreter
        self._control_fd = control_fd
        self._mechanisms: list[str] = []
        self._init_pid = 0
        self._agent_is_there = False
        self._terminate_wanted = False
        self._agent_status: int | None = None

    # --- start ----------------------------------------------------------------------------------------------------

    def fork_init(self, use_namespaces: bool, events_fd: int, commands_fd: int) -> None:
        with suppress(PermissionError):  # already the leader of a session
            os.setsid()
        kernel.set_name(b"hermetic-keeper")
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        # Blocked until each process has a handler of its own: the init of a namespace would lose it, the others die.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        if use_namespaces and enter_pid_namespace(self._mechanisms):
            namespaced = True
        else:
            namespaced = False
            kernel.become_subreaper()
            self._mechanisms.append("subreaper")
        self._status_fd, status_write_fd = os.pipe()
        self._init_pid = os.fork()
        if self._init_pid == 0:
            try:
                os.close(self._status_fd)
                os.close(self._control_fd)
                init.Init(status_write_fd, namespaced, self._interpreter).run(events_fd, commands_fd)
            except BaseException:  # noqa: BLE001  whatever it is, this process ends here
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(init.BROKEN)
        self._namespaced = namespaced
        # Only the agent may hold the streams: their end is how the supervisor sees that it has gone.
        for fd in (status_write_fd, events_fd, commands_fd):
            os.close(fd)
        signal.signal(signal.SIGTERM, lambda *_: self.terminate())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    # --- while the tree lives -------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Serves the supervisor until init has ended; then makes sure of the rest and reports."""
        poll = select.poll()
        poll.register(self._control_fd, select.POLLIN)
        poll.register(self._status_fd, select.POLLIN)
        lines = b""
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._status_fd in ready:
                data = os.read(self._status_fd, 4096)
                if not data:
                    break
                *whole, lines = (lines + data).split(b"\n")
                for line in whole:
                    self._hear(line.decode())
            if self._control_fd in ready and self._obey():
                poll.unregister(self._control_fd)
        init_status = self._wait_for_the_end()
        status = init_status if self._agent_status is None else self._agent_status
        if os.WIFSIGNALED(status):
            self._report(f'{{"report":"exited","signal":"{_signal_name(os.WTERMSIG(status))}"}}')
        else:
            self._report(f'{{"report":"exited","exit_code":{os.WEXITSTATUS(status)}}}')

    def terminate(self) -> None:
        """SIGTERM for the agent, by way of init; kept until there is one."""
        self._terminate_wanted = True
        if self._agent_is_there:
            with suppress(ProcessLookupError):
                os.kill(self._init_pid, signal.SIGTERM)

    def kill(self) -> None:
        if self._namespaced:
            os.kill(self._init_pid, signal.SIGKILL)  # not reaped before watch() ends, so the id is still init's
        else:
            kill_descendants()

    def _obey(self) -> bool:
        """What the supervisor says; True when nothing more can come."""
        try:
            said = os.read(self._control_fd, 64)
        except OSError:  # reset: the supervisor died with reports unread
            said = b""
        if not said or b"K" in said:
            self.kill()
            return True
        if b"T" in said:
            self.terminate()
        return False

    def _hear(self, line: str) -> None:
        word, *words = line.split()
        if word == "status":
            self._agent_status = int(words[0])
        if word != "agent":
            return
        self._agent_is_there = True
        held = [name for name in init.HOLDS if name not in words and self._namespaced]
        missing = [name for name in init.HOLDS if name not in held]
        # By hand: the words are our own, and json would cost its import.
        self._report(
            f'{{"report":"spawned","pid":{self._agent_pid()},"init_pid":{self._init_pid},'
            f'"mechanisms":{_json(held + self._mechanisms)},"missing":{_json(missing)}}}'
        )
        if self._terminate_wanted:
            self.terminate()

    def _agent_pid(self) -> int:
        """As seen from outside the namespace: init's first child, or init when the kernel does not tell."""
        try:
            with open(f"/proc/{self._init_pid}/task/{self._init_pid}/children", "rb") as file:
                return int(file.read().split()[0])
        except (OSError, IndexError):
            return self._init_pid

    # --- end ------------------------------------------------------------------------------------------------------

    def _wait_for_the_end(self) -> int:
        """Returns init's wait status, or SIGKILL's when the walk has reaped it."""
        try:
            status = os.waitpid(self._init_pid, 0)[1]
        except ChildProcessError:
            status = int(signal.SIGKILL)
        if not self._namespaced:
            kill_descendants()
        return status

    def _report(self, line: str) -> None:
        with suppress(OSError):  # the supervisor is gone; the end of the socket has told _obey
            os.write(self._control_fd, line.encode() + b"\n")


def enter_pid_namespace(mechanisms: list[str]) -> bool:
    """The next child will be the init of a new PID namespace. False when this host does not give one."""
    with suppress(OSError):
        kernel.unshare(kernel.CLONE_NEWPID)
        return True
    uid, gid = os.getuid(), os.getgid()  # inside, until it is mapped, every id reads as the overflow id
    try:
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID)
    except OSError:
        return False
    with suppress(OSError):  # user_namespaces(7): without a map the namespaces still hold
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    mechanisms.append("user_namespace")
    return True


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _json(words: list[str]) -> str:
    return "[" + ",".join(f'"{word}"' for word in words) + "]"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"
