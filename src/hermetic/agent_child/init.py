"""Init: the root of the tree, process 1 of its namespace.

It forks the agent, hands SIGTERM on to it, reaps orphans, and ends when the agent has ended, which ends everyone else
in the namespace. It holds neither the event stream nor the command stream. It has no signal handlers: its signals are
blocked and waited for, so that none can come at a wrong moment (a blocked signal reaches even the init of a namespace).
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

from hermetic.agent_child import kernel
from hermetic.agent_child.killing import kill_descendants

HOLDS = ("pid_namespace", "mount_namespace", "ipc_namespace", "proc")
"""What should hold a tree; keeper and init report which of it is missing."""
AGAIN_S = 0.1
"""After this the agent gets a second SIGTERM: interrupts.py has why. To our handler two are as one."""
BROKEN = 70
"""Exit code of a process of ours that failed by a bug (sysexits' EX_SOFTWARE)."""
_WAITED_FOR = {signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1}


class Init:
    """`status_fd`: the pipe to the keeper. `namespaced`: we are process 1 of a PID namespace. `interpreter`: the Python
    that the agent runs in; None: this one."""

    def __init__(self, status_fd: int, namespaced: bool, interpreter: str | None = None) -> None:
        self._status_fd = status_fd
        self._interpreter = interpreter
        self._namespaced = namespaced
        self._agent_pid = 0

    def run(self, events_fd: int, commands_fd: int) -> NoReturn:
        os.setsid()  # so that a kill(0, …) inside the tree does not reach the keeper's process group
        kernel.set_name(b"hermetic-init")
        signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
        missing = self._isolate()
        self._die_with_the_keeper()
        self._agent_pid = os.fork()
        if self._agent_pid == 0:
            _become_agent(events_fd, commands_fd, self._interpreter)
        os.close(events_fd)
        os.close(commands_fd)
        self._tell(f"agent {' '.join(missing)}")
        self._tell(f"status {self._serve_until_the_agent_ends()}")
        if not self._namespaced:
            kill_descendants()
        os._exit(0)  # the kernel kills the rest of the namespace

    def _isolate(self) -> list[str]:
        if not self._namespaced:
            kernel.become_subreaper()
            return []
        missing = []
        try:
            kernel.unshare(kernel.CLONE_NEWIPC)
        except OSError:
            missing.append("ipc_namespace")
        try:
            kernel.unshare(kernel.CLONE_NEWNS)
            kernel.mount(None, b"/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        except OSError:
            return [*missing, "mount_namespace", "proc"]
        try:
            kernel.mount(b"proc", b"/proc", b"proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
        except OSError:  # a container that masks parts of its own /proc
            missing.append("proc")
        return missing

    def _die_with_the_keeper(self) -> None:
        if self._namespaced:
            kernel.signal_at_parents_death(signal.SIGKILL)
        else:
            # SIGKILL would leave the tree alive, so init gets a signal on which it can kill it first.
            kernel.signal_at_parents_death(signal.SIGUSR1)
        self._tell("init")  # raises when the keeper died before the line above: it alone has the pipe's other end

    def _serve_until_the_agent_ends(self) -> int:
        """Returns its wait status."""
        once_more = False
        while True:
            came = signal.sigtimedwait(_WAITED_FOR, AGAIN_S) if once_more else signal.sigwaitinfo(_WAITED_FOR)
            if came is None or came.si_signo == signal.SIGTERM:
                once_more = came is not None
                os.kill(self._agent_pid, signal.SIGTERM)  # not reaped, so the id is the agent's
            elif came.si_signo == signal.SIGUSR1:
                kill_descendants()
                os._exit(0)
            elif (status := self._reap()) is not None:
                return status

    def _reap(self) -> int | None:
        """All that have ended; the agent's wait status when it is one of them."""
        agent_status = None
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._agent_pid:
                    agent_status = ended[1]
        return agent_status

    def _tell(self, line: str) -> None:
        os.write(self._status_fd, line.encode() + b"\n")


def _become_agent(events_fd: int, commands_fd: int, interpreter: str | None) -> NoReturn:
    try:
        os.setsid()
        low, high = sorted((events_fd, commands_fd))
        os.closerange(3, low)
        os.closerange(low + 1, high)
        os.closerange(high + 1, 1 << 30)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        if interpreter is not None:
            from hermetic.agent_child.interpreter import exec_interpreter

            exec_interpreter(interpreter, events_fd, commands_fd)
        run_agent(events_fd, commands_fd)
    except BaseException:  # noqa: BLE001  whatever it is, this process ends here
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(BROKEN)


def run_agent(events_fd: int, commands_fd: int) -> NoReturn:
    """The agent's process from where its streams are its own; its signals are still blocked. Never returns."""
    try:
        kernel.set_name(b"hermetic-agent")
        for number in (signal.SIGTERM, signal.SIGINT):  # before Start there is nothing to end but ourselves
            signal.signal(number, lambda *_: os._exit(0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED_FOR)
        from hermetic.agent_child import session

        session.run(events_fd, commands_fd)
    except BaseException:  # noqa: BLE001  whatever it is, this process ends here
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(BROKEN)
