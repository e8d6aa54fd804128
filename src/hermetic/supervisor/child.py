"""A turn's processes, seen from outside: three pipes, a control socket and a promise.

The supervisor starts one process, the keeper (hermetic.agent_child), and never imports or forks agent code. The
keeper's promise: when it has exited, the whole tree below it is dead, daemons included. The control socket carries its
reports (protocol/control.py) to us and single bytes to it; our end closing, also by our own kill -9, is an order to kill.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from subprocess import PIPE

import trio

from hermetic.protocol import commands
from hermetic.protocol.control import AnyReport, decode
from hermetic.protocol.errors import HostError
from hermetic.protocol.framing import LineSplitter, frame

REPORT_BYTES_MAX = 64 << 10
"""A report is a few hundred bytes; the keeper is our own code, but its environment is the agent's."""
KILL_S = 5.0
"""From the order to kill to the keeper's last report. It takes milliseconds, unless the keeper was stopped (SIGSTOP, by an
agent that shares its namespace) or the kernel holds a process of the tree in an uninterruptible wait."""
KEEPER_EXIT_S = 5.0
"""From the keeper's last report to its exit: nothing is left to do, so more means that it hangs."""


class Child:
    """One running keeper with what hangs on it."""

    def __init__(self, process: trio.Process, control: trio.SocketStream) -> None:
        assert process.stdin and process.stdout and process.stderr
        self.commands: trio.abc.SendStream = process.stdin
        self.events: trio.abc.ReceiveStream = process.stdout
        self.stderr: trio.abc.ReceiveStream = process.stderr
        self._process = process
        self._control = control
        self._lines = LineSplitter(REPORT_BYTES_MAX)
        self._reports: list[AnyReport] = []

    async def report(self) -> AnyReport | None:
        """The keeper's next report; None when it is gone without one."""
        while not self._reports:
            try:
                data = await self._control.receive_some(4096)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                return None
            self._reports += [decode(line) for line in self._lines.feed(data)]
        return self._reports.pop(0)

    async def send(self, command: commands.Command) -> None:
        """Raises trio.BrokenResourceError when the child has closed its end."""
        await self.commands.send_all(frame(command))

    async def order(self, byte: bytes) -> None:
        """TERMINATE or KILL; no error when the keeper is gone already."""
        try:
            await self._control.send_all(byte)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def kill_late(self) -> None:
        """KILL_S after an order to kill that had no effect: the keeper itself, and its init dies with it."""
        await trio.sleep(KILL_S)
        self._process.kill()

    async def wait_exited(self) -> int:
        """The keeper's return code, after which its tree is dead. One that hangs is killed."""
        with trio.move_on_after(KEEPER_EXIT_S):
            return await self._process.wait()
        self._process.kill()
        return await self._process.wait()


@asynccontextmanager
async def open_child(environment: Mapping[str, str], interpreter: str | None = None) -> AsyncIterator[Child]:
    """Starts a keeper with exactly this environment. On exit it and its tree are dead, its streams closed.

    `interpreter`: the Python that the agent runs in, if it has an environment of its own.

    Raises `HostError` when the process cannot be started (EAGAIN, ENOMEM, EMFILE).
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            argv = [sys.executable, "-I", "-m", "hermetic.agent_child", "--control-fd", str(theirs.fileno())]
            argv += [] if interpreter is None else ["--interpreter", interpreter]
            try:
                process = await trio.lowlevel.open_process(
                    argv,
                    stdin=PIPE,
                    stdout=PIPE,
                    stderr=PIPE,
                    env=environment,
                    cwd="/",
                    pass_fds=(theirs.fileno(),),
                )
            except OSError as error:
                raise HostError(
                    f"the child process cannot be started: {error}",
                    hint="The host is out of processes, memory or descriptors; lower turns.concurrent_max.",
                ) from error
        control = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        child = Child(process, control)
        try:
            yield child
        finally:
            with trio.CancelScope(shield=True):
                await control.aclose()
                await child.wait_exited()
                for stream in (child.commands, child.events, child.stderr):
                    await stream.aclose()
