"""Drives one real child as the supervisor does: a launcher, three pipes, a control socket, no event loop."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Self

from hermetic.protocol import control, events, launch
from hermetic.protocol.commands import AnyCommand, Start
from hermetic.protocol.events import Failed, Ready, Result, Token
from hermetic.protocol.framing import event_decoder, frame


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


Run = Callable[..., "Child"]
PATIENCE_S = 20.0
"""Longest wait for anything: a loaded machine, not a measure of speed."""


TREE = ["pid_namespace", "mount_namespace", "ipc_namespace", "proc"]


class Child:
    """Started at once. Use it as a context manager: nothing it started outlives the block.

    A launcher of its own, told to retire after this one turn: `process` ends when the turn's tree has.
    """

    def __init__(
        self,
        *,
        namespaces: bool = True,
        interpreter: str | None = None,
        env: dict[str, str] | None = None,
        python: tuple[str, ...] = (sys.executable, "-I", "-m", "hermetic.agent_child.launcher"),
        preload: Sequence[str] = (),
        python_path: Sequence[str] = (),
        workspace: str = "/tmp",
        **popen: Any,
    ) -> None:
        self.control, their_control = pair()
        supervisor, theirs = pair()
        self.began = time.monotonic()
        with theirs:
            self.process = subprocess.Popen(
                [*python, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                env={"PATH": os.environ["PATH"], **(env or {})},
                pass_fds=[theirs.fileno()],
                bufsize=0,
                **popen,
            )
        their_commands, commands = os.pipe()
        events_fd, their_events = os.pipe()
        stderr_fd, their_stderr = os.pipe()
        self.stdin = open(commands, "wb", buffering=0)  # noqa: SIM115  closed in __exit__
        self.stdout = open(events_fd, "rb", buffering=0)  # noqa: SIM115
        self.prints = open(stderr_fd, "rb", buffering=0)  # noqa: SIM115
        policy = launch.Policy(optional=TREE if namespaces else [])
        prepare = launch.Prepare(
            policy=policy, interpreter=interpreter, preload=list(preload), python_path=list(python_path)
        )
        spawn = launch.Spawn(turn_id="t", workspace=workspace)
        with supervisor, their_control, suppress(BrokenPipeError):
            supervisor.send(launch.encode(prepare))
            self.prepared = launch.decode(supervisor.recv(launch.PACKET_BYTES_MAX))
            fds = [their_commands, their_events, their_stderr, their_control.fileno()]
            socket.send_fds(supervisor, [launch.encode(spawn)], fds)
            supervisor.send(launch.encode(launch.Retire()))
            # The end of this socket is an order to kill, so it is kept until the launcher has heard Retire.
            self._supervisor = supervisor.dup()
        for fd in (their_commands, their_events, their_stderr):
            os.close(fd)
        self._decoder = event_decoder(1 << 20)
        self._files = {
            self.stdout.fileno(): self._hear_events,
            self.prints.fileno(): self._hear_stderr,
            self.control.fileno(): self._hear_reports,
        }
        self.events: list[events.ChildEvent] = []
        self.frames: list[bytes] = []
        self.heard_at: list[float] = []
        self.stderr = ""
        self.reports: list[control.AnyReport] = []

    # --- reading --------------------------------------------------------------------------------------------------

    def _hear_events(self, fd: int) -> bool:
        data = os.read(fd, 1 << 16)
        for line, event in self._decoder.feed(data):
            self.events.append(event)
            self.frames.append(line)
            self.heard_at.append(time.monotonic())
        return bool(data)

    def _hear_stderr(self, fd: int) -> bool:
        data = os.read(fd, 1 << 16)
        self.stderr += data.decode()
        return bool(data)

    def _hear_reports(self, fd: int) -> bool:
        try:
            data = os.read(fd, 1 << 16)
        except ConnectionResetError:
            return False
        if data:
            self.reports.append(control.decode(data))
        return bool(data)

    def wait_until(self, true: Callable[[Child], Any], patience_s: float = PATIENCE_S) -> Any:
        """Reads everything until `true(self)`; fails when all streams end, or patience, before that."""
        deadline = time.monotonic() + patience_s
        while not (found := true(self)):
            left = deadline - time.monotonic()
            assert left > 0, f"waited for too long; heard {self.events[-5:]} {self.reports} {self.stderr[-2000:]}"
            assert self._files, f"all streams ended; heard {self.events[-5:]} {self.reports} {self.stderr[-2000:]}"
            for fd in select.select(list(self._files), [], [], left)[0]:
                if not self._files[fd](fd):
                    del self._files[fd]
        return found

    def wait_event(self, kind: type, number: int = 1) -> Any:
        """The `number`th event of this type."""
        return self.wait_until(lambda _: [e for e in self.events if isinstance(e, kind)][number - 1 : number])[0]

    def wait_text(self, text: str) -> None:
        self.wait_until(lambda _: text in self.text)

    def wait_exited(self) -> control.Exited:
        """Reads all to the end, reaps the launcher, returns the last report."""
        self.wait_until(lambda _: not self._files)
        assert self.process.wait(PATIENCE_S) == 0, self.stderr
        last = self.reports[-1]
        assert isinstance(last, control.Exited)
        return last

    @property
    def text(self) -> str:
        return "".join(e.text for e in self.events if isinstance(e, Token))

    @property
    def spawned(self) -> control.Spawned:
        report = self.wait_until(lambda _: self.reports)[0]
        assert isinstance(report, control.Spawned)
        return report

    # --- speaking -------------------------------------------------------------------------------------------------

    def send(self, command: AnyCommand) -> None:
        """A child that has ended hears nothing, which is no error: it may end at any moment."""
        with suppress(BrokenPipeError):
            self.stdin.write(frame(command))

    def start(self, **fields: Any) -> None:
        self.wait_event(Ready)
        base: dict[str, Any] = {
            "protocol": 1, "turn_id": "t1", "session_id": "0123456789ab", "message": "hello", "workspace": "/tmp",
        }  # fmt: skip
        self.send(Start(**(base | fields)))

    def terminate(self) -> None:
        with suppress(BrokenPipeError):
            self.control.send(control.TERMINATE)

    def kill(self) -> None:
        with suppress(BrokenPipeError):
            self.control.send(control.KILL)

    def finish(self) -> Result | Failed:
        """Reads to the end: the turn's one last event, a clean exit of the agent."""
        exited = self.wait_exited()
        ends = [e for e in self.events if isinstance(e, Result | Failed)]
        assert len(ends) == 1 and self.events[-1] is ends[0], (self.events[-5:], self.stderr)
        assert exited == control.Exited(exit_code=0)
        return ends[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            assert self.process.stderr
            for file in (self.stdin, self.stdout, self.prints, self.process.stderr, self._supervisor):
                file.close()
