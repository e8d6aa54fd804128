"""A turn's processes, seen from outside: three pipes, a control socket and a promise.

They are forked by a launcher (launchers.py), and never by the supervisor, which imports no agent code. The promise: when
`open_child` is left, the whole tree is dead, daemons included. The control socket carries reports to us and single bytes
to whoever answers for the tree (protocol/control.py); our end closing, also by our own kill -9, is an order to kill.
"""

from __future__ import annotations

import os
import signal
import socket
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import trio

from hermetic.protocol import commands, control, launch
from hermetic.protocol.control import KILL, AnyReport, Spawned
from hermetic.protocol.errors import HostError
from hermetic.protocol.framing import frame
from hermetic.supervisor.launchers import Launch, Launcher, Launchers

REPORT_BYTES_MAX = 64 << 10
"""A report is a few hundred bytes."""
LISTENERS_MAX = 16
"""More than a policy has ports."""
KILL_S = 5.0
"""From the order to kill to the last report. It takes milliseconds, unless a process of ours was stopped (SIGSTOP, by an
agent that shares its namespace) or the kernel holds one of the tree in an uninterruptible wait."""


class Child:
    """One turn's tree."""

    def __init__(self, launcher: Launcher, control_socket: socket.socket, fds: tuple[int, int, int]) -> None:
        commands_fd, events_fd, stderr_fd = fds
        self.commands: trio.abc.SendStream = trio.lowlevel.FdStream(commands_fd)
        self.events: trio.abc.ReceiveStream = trio.lowlevel.FdStream(events_fd)
        self.stderr: trio.abc.ReceiveStream = trio.lowlevel.FdStream(stderr_fd)
        self.listeners: list[socket.socket] = []
        """With `Spawned`: one for each of the policy's ports, listening inside the turn's network."""
        self._launcher = launcher
        self._control = trio.socket.from_stdlib_socket(control_socket)
        self._spawned: Spawned | None = None
        self._pidfd: int | None = None
        self._exited = False

    async def report(self) -> AnyReport | None:
        """The next report; None when nobody is left who could send one."""
        try:
            packet, ancillary, _, _ = await self._control.recvmsg(
                REPORT_BYTES_MAX, socket.CMSG_SPACE(4 * LISTENERS_MAX)
            )
        except (OSError, trio.ClosedResourceError):
            return None
        for _, kind, data in ancillary:
            if kind == socket.SCM_RIGHTS:
                fds = array("i", data[: len(data) - len(data) % 4])
                self.listeners += [socket.socket(fileno=fd) for fd in fds]
        if not packet:
            return None
        try:
            report: AnyReport = control.decode(packet)
        except msgspec.MsgspecError:
            return None
        if isinstance(report, Spawned):
            self._spawned = report
            with suppress(OSError):
                self._pidfd = os.pidfd_open(report.init_pid)
        else:
            self._exited = True
        return report

    def take_listeners(self) -> list[trio.SocketListener]:
        """Whoever takes them closes them."""
        taken, self.listeners = self.listeners, []
        for listener in taken:
            listener.setblocking(False)
        return [trio.SocketListener(trio.socket.from_stdlib_socket(listener)) for listener in taken]

    async def send(self, command: commands.Command) -> None:
        """Raises trio.BrokenResourceError when the child has closed its end."""
        await self.commands.send_all(frame(command))

    async def order(self, byte: bytes) -> None:
        """TERMINATE or KILL; no error when nobody is left to hear it."""
        with suppress(OSError, trio.ClosedResourceError):
            await self._control.send(byte)

    async def kill_late(self) -> None:
        """KILL_S after an order to kill that had no effect: without whoever was to obey it."""
        await trio.sleep(KILL_S)
        await self._kill_directly()

    async def _kill_directly(self) -> None:
        """The process that the tree hangs on; the launcher, with all its turns, only where that is not known."""
        if self._spawned is None or not _kill_below(self._launcher.pid, self._spawned.init_pid):
            self._launcher.kill()
        self._launcher.hung = True
        await self._launcher.retire()
        await self._wait_init()
        with suppress(OSError, trio.ClosedResourceError):
            self._control.shutdown(socket.SHUT_RDWR)  # so that report() returns

    async def _wait_init(self) -> None:
        """Until init and with it the tree is dead, if we know init at all."""
        if self._pidfd is not None:
            await trio.lowlevel.wait_readable(self._pidfd)

    async def wait_exited(self) -> str | None:
        """After the last report: until the tree is dead. → why there was no `Exited`; None: there was."""
        if self._exited:
            return None
        await self._wait_init()
        with trio.move_on_after(KILL_S):
            await self._launcher.ended.wait()
            return f"{self._launcher.why_ended} while this turn ran"
        return f"the launcher of agent {self._launcher.launch.agent} did not answer"

    async def end(self) -> None:
        """Kills what is left, and closes everything."""
        with trio.move_on_after(KILL_S) as patience:
            if not self._exited:
                await self.order(KILL)
            while not self._exited and await self.report() is not None:
                pass
            await self._wait_init()
        if patience.cancelled_caught:
            with trio.move_on_after(KILL_S):
                await self._kill_directly()
        self._control.close()
        for listener in self.listeners:
            listener.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        for stream in (self.commands, self.events, self.stderr):
            await stream.aclose()


@asynccontextmanager
async def open_child(launchers: Launchers, launch_: Launch, turn: launch.Spawn) -> AsyncIterator[Child]:
    """Has a turn forked. On exit its tree is dead, its streams closed.

    Raises `HostError` and `AgentError` when that cannot be done.
    """
    async with launchers.launcher(launch_) as launcher:
        try:
            child = await _spawn(launcher, turn)
        except OSError as error:
            raise HostError(
                f"the child process cannot be started: {launcher.why_ended or error}",
                hint="The host is out of processes, memory or descriptors; lower turns.concurrent_max.",
            ) from error
        try:
            launchers.began(launcher)
            yield child
        finally:
            with trio.CancelScope(shield=True):
                await child.end()


async def _spawn(launcher: Launcher, turn: launch.Spawn) -> Child:
    ours: list[int] = []
    theirs: list[int] = []
    control_socket, their_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with their_control:
            for mine in (1, 0, 0):  # commands are written by us, events and stderr read
                ends = os.pipe()
                ours.append(ends[mine])
                theirs.append(ends[1 - mine])
            await launcher.spawn(turn, [*theirs, their_control.fileno()])
    except BaseException:
        control_socket.close()
        for fd in ours:
            os.close(fd)
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    return Child(launcher, control_socket, (ours[0], ours[1], ours[2]))


def _kill_below(launcher_pid: int, pid: int) -> bool:
    """SIGKILL to the launcher's own child that `pid` descends from: init itself, or its keeper, with whose end init ends.

    False: it does not descend from the launcher.
    """
    with suppress(OSError):
        while (parent := _parent(pid)) != launcher_pid:
            if parent <= 1:
                return False
            pid = parent
        pidfd = os.pidfd_open(pid)
        try:
            if _parent(pid) == launcher_pid:  # still: an id may be given to another process until it is held
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                return True
        finally:
            os.close(pidfd)
    return False


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
