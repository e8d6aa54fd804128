"""Launchers: the warm processes that turns are forked from, one for each agent and profile.

A launcher is born with one environment, one policy and one set of modules, and those never change in it. What it was
born with is a value (`Launch`); a turn asks for a launcher by that value, so what differs in any of it never shares one.
A launcher is old when a file that it has loaded changes on disk, or when a turn of the same agent, profile and policy
asks for something else, because the profile's `.env` or its variables changed. An old one ends its turns and takes no
more; a turn waits for the new one. One that has merely served many turns goes on until the next is ready.

A launcher that dies is started again, later each time; after some deaths in a short while turns fail at once with the
reason instead.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL

import structlog
import trio
from msgspec import Struct, field

import hermetic
from hermetic.protocol import PROTOCOL_VERSION, launch
from hermetic.protocol.errors import AgentError, ConfigError, HermeticError, HostError

log = structlog.get_logger()

DEATHS_MAX = 5
"""In DEATHS_S; then turns fail at once, until the first of them is that long ago."""
DEATHS_S = 60.0
BACKOFF_S = 0.1
"""After the first death, doubled by each further one: 0.1 to 0.8 s, less than a person would wait to try again."""
END_S = 5.0
"""From the end of its socket to the end of a launcher, which kills and reaps what is left of its turns."""
SAID_BYTES_MAX = 16 << 10
"""Of what a launcher prints the last part is kept; the server's log has it when the launcher dies."""
BOOTSTRAP = Path(hermetic.__file__).parent / "agent_child" / "bootstrap.py"


class Launch(Struct, frozen=True, kw_only=True):
    """What a launcher is born with."""

    agent: str
    profile: str
    environment: dict[str, str] = field(default_factory=dict)
    interpreter: str | None = None
    """The agent's own Python. None: the server's."""
    cold: bool = False
    """Each turn starts a Python anew."""
    preload: list[str] = field(default_factory=list)
    python_path: list[str] = field(default_factory=list)
    standby: int = 0
    watch: list[str] = field(default_factory=list)
    """Files that make it old when they change, beside those that it has loaded."""
    policy: launch.Policy = field(default_factory=launch.Policy)

    @property
    def slot(self) -> bytes:
        """Of those with the same, one is current."""
        return launch.encode(self.policy) + f"\0{self.agent}\0{self.profile}".encode()

    def argv(self, fd: int) -> list[str]:
        if self.interpreter is None or self.cold:
            return [sys.executable, "-I", "-m", "hermetic.agent_child.launcher", str(fd)]
        return [self.interpreter, "-I", str(BOOTSTRAP), "launcher", str(PROTOCOL_VERSION), str(fd)]

    def prepare(self) -> bytes:
        packet = launch.encode(
            launch.Prepare(
                policy=self.policy,
                preload=self.preload,
                python_path=self.python_path,
                standby=self.standby,
                interpreter=(self.interpreter or sys.executable) if self.cold else None,
            )
        )
        if len(packet) > launch.PACKET_BYTES_MAX:
            raise ConfigError(f"what the launcher of agent {self.agent} is to be told has {len(packet)} bytes")
        return packet


class Launcher:
    """One process. Use `Launchers`."""

    def __init__(self, launch_: Launch) -> None:
        self.launch = launch_
        self.pid = 0
        self.ready = trio.Event()
        """Set when it can take turns, or never will."""
        self.ended = trio.Event()
        self.failure: HermeticError | None = None
        """Why it never will."""
        self.why_ended = ""
        self.turns = 0
        """Begun so far."""
        self.running = 0
        self.used_at = trio.current_time()
        self.retired = False
        self.hung = False
        """It did not do what it was told; it is killed when it has no turn left."""
        self._process: trio.Process | None = None
        self._socket: trio.socket.SocketType | None = None
        self._files: dict[str, tuple[int, int, int] | None] = {}
        self._said = bytearray()

    # --- its life, in a task of its own ---------------------------------------------------------------------------

    async def run(self, ready_s: float) -> None:
        """From its start to its end. Never raises but for a cancel, which ends it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        read_fd, write_fd = os.pipe()
        started_at = time.time_ns()
        self._socket = trio.socket.from_stdlib_socket(ours)
        try:
            with theirs:
                try:
                    packet = self.launch.prepare()
                    self._process = await trio.lowlevel.open_process(
                        self.launch.argv(theirs.fileno()),
                        stdin=DEVNULL,
                        stdout=write_fd,
                        stderr=write_fd,
                        env=self.launch.environment,
                        cwd="/",
                        pass_fds=(theirs.fileno(),),
                    )
                finally:
                    os.close(write_fd)
            self.pid = self._process.pid
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, read_fd)
                read_fd = -1
                with trio.move_on_after(ready_s) as patience:
                    await self._socket.send(packet)
                    answer = await self._receive()
                if patience.cancelled_caught:
                    self.failure = HostError(
                        f"the launcher of agent {self.launch.agent} was not ready within turns.ready_s = {ready_s:g} s",
                        hint="Preload less, or raise turns.ready_s.",
                    )
                    self._process.kill()
                elif isinstance(answer, launch.Prepared):
                    self._files = {path: fingerprint(path) for path in (*answer.files, *self.launch.watch)}
                    if any(print_ and started_at < print_[0] <= time.time_ns() for print_ in self._files.values()):
                        self._files[""] = (0, 0, 0)  # which of both versions it has loaded, nobody knows
                    self.ready.set()
                    await self._receive()
                elif isinstance(answer, launch.CannotPrepare):
                    kind = AgentError if answer.fault == "agent" else HostError
                    self.failure = kind(answer.message, hint=answer.hint)
                await self._process.wait()
                nursery.cancel_scope.deadline = trio.current_time() + 0.2
        except (OSError, ConfigError) as error:
            self.failure = _cannot_start(self.launch, error)
        finally:
            self._socket.close()
            if read_fd >= 0:
                os.close(read_fd)
            with trio.CancelScope(shield=True):
                await self._wait_for_the_end()
            code = self._process.returncode if self._process else None
            self.why_ended = f"the launcher of agent {self.launch.agent} {_how(code)}"
            if not self.ready.is_set() and self.failure is None:
                self.failure = HostError(
                    f"{self.why_ended} before it was ready",
                    hint="The server's log has what it printed.",
                )
            self.ended.set()
            self.ready.set()

    async def _wait_for_the_end(self) -> None:
        if self._process is None:
            return
        with trio.move_on_after(END_S):
            await self._process.wait()
            return
        self._process.kill()
        await self._process.wait()

    async def _listen(self, fd: int) -> None:
        async with trio.lowlevel.FdStream(fd) as stream:
            with suppress(trio.BrokenResourceError):
                while data := await stream.receive_some(4096):
                    self._said += data
                    del self._said[:-SAID_BYTES_MAX]

    async def _receive(self) -> launch.AnyMessage | None:
        """None: it is gone."""
        assert self._socket
        try:
            packet = await self._socket.recv(launch.PACKET_BYTES_MAX)
            return launch.decode(packet) if packet else None
        except OSError:
            return None

    @property
    def said(self) -> str:
        """What it printed last, but for what turns print."""
        return self._said.decode("utf-8", "replace")

    # --- what others do with it -----------------------------------------------------------------------------------

    async def spawn(self, turn: launch.Spawn, fds: Sequence[int]) -> None:
        """Raises OSError when it is gone."""
        assert self._socket
        if self.ended.is_set():
            raise BrokenPipeError
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))
        await self._socket.sendmsg([launch.encode(turn)], [rights])
        self.turns += 1

    def kill(self) -> None:
        """And all of its turns."""
        if self._process is not None:
            self._process.kill()

    async def retire(self) -> None:
        """It takes no more turns, and ends with its last."""
        if self.retired:
            return
        self.retired = True
        if self._socket is not None and not self.ended.is_set():
            with suppress(OSError, trio.ClosedResourceError):
                await self._socket.send(launch.encode(launch.Retire()))

    def is_old(self) -> bool:
        """Blocks for some microseconds a file."""
        return any(fingerprint(path) != was for path, was in self._files.items())


class Budget:
    """When a launcher may be started again."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque(maxlen=DEATHS_MAX)
        self.failure: HermeticError | None = None

    def died(self, now: float, failure: HermeticError) -> None:
        self._deaths.append(now)
        self.failure = failure

    def lived(self) -> None:
        """It has begun a turn."""
        self._deaths.clear()

    def given_up(self, now: float) -> bool:
        return len(self._deaths) == DEATHS_MAX and now - self._deaths[0] < DEATHS_S

    def start_at(self) -> float:
        if not self._deaths:
            return 0.0
        return self._deaths[-1] + BACKOFF_S * 2.0 ** (len(self._deaths) - 1)


class Slot:
    """One agent, profile and policy."""

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.budget = Budget()
        self.current: Launcher | None = None
        self.succeeding = False


class Launchers:
    """All launchers of a server. They live in `nursery` and end when it is cancelled."""

    def __init__(self, nursery: trio.Nursery, *, ready_s: float, turns_max: int, idle_max: int) -> None:
        self._nursery = nursery
        self._ready_s = ready_s
        self._turns_max = turns_max
        self._idle_max = idle_max
        self._slots: dict[bytes, Slot] = {}

    @asynccontextmanager
    async def launcher(self, launch_: Launch) -> AsyncIterator[Launcher]:
        """One that is ready, held until the turn has ended. Raises `HostError`, `AgentError`."""
        found = await self._get(launch_)
        found.running += 1
        try:
            yield found
        finally:
            found.running -= 1
            found.used_at = trio.current_time()
            if found.hung and not found.running:
                found.kill()
            with trio.CancelScope(shield=True):
                await self._retire_idle()

    def began(self, launcher: Launcher) -> None:
        """A turn of it has begun: it works."""
        slot = self._slots.get(launcher.launch.slot)
        if slot is not None and slot.current is launcher:
            slot.budget.lived()
            if launcher.turns >= self._turns_max and not slot.succeeding:
                slot.succeeding = True
                self._nursery.start_soon(self._succeed, slot, launcher)

    async def _get(self, launch_: Launch) -> Launcher:
        slot = self._slots.setdefault(launch_.slot, Slot())
        async with slot.lock:
            current = slot.current
            if current is not None and (
                current.launch != launch_ or current.retired or current.ended.is_set() or current.is_old()
            ):
                log.info("launcher_retired", agent=launch_.agent, profile=launch_.profile, turns=current.turns)
                slot.current = None
                await current.retire()
            if slot.current is None:
                if slot.budget.given_up(trio.current_time()):
                    assert slot.budget.failure
                    raise _again(slot.budget.failure)
                await trio.sleep_until(slot.budget.start_at())
                slot.current = self._start(slot, launch_)
            current = slot.current
        await current.ready.wait()
        if current.failure is not None:
            raise _again(current.failure)
        return current

    def _start(self, slot: Slot, launch_: Launch) -> Launcher:
        launcher = Launcher(launch_)
        self._nursery.start_soon(self._run, slot, launcher)
        return launcher

    async def _run(self, slot: Slot, launcher: Launcher) -> None:
        await launcher.run(self._ready_s)
        if slot.current is launcher:
            slot.current = None
        if launcher.retired:
            return
        now = trio.current_time()
        failure = launcher.failure or HostError(launcher.why_ended)
        slot.budget.died(now, failure)
        given_up = slot.budget.given_up(now)
        about = {"agent": launcher.launch.agent, "profile": launcher.launch.profile, "pid": launcher.pid}
        log.error("launcher_died", why=failure.message, given_up=given_up, said=launcher.said, **about)

    async def _succeed(self, slot: Slot, old: Launcher) -> None:
        """A new one in the place of `old`, as soon as it is ready."""
        new = self._start(slot, old.launch)
        await new.ready.wait()
        slot.succeeding = False
        if new.failure is None and slot.current is old:
            slot.current = new
            await old.retire()
        else:
            await new.retire()

    async def _retire_idle(self) -> None:
        idle = sorted(
            (slot.current.used_at, key)
            for key, slot in self._slots.items()
            if slot.current is not None and not slot.current.running and slot.current.ready.is_set()
        )
        for _, key in idle[: max(len(idle) - self._idle_max, 0)]:
            current, self._slots[key].current = self._slots[key].current, None
            if current is not None:
                await current.retire()


def fingerprint(path: str) -> tuple[int, int, int] | None:
    """Changes with the file's content, or the folder's; None: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _cannot_start(launch_: Launch, error: OSError | ConfigError) -> HermeticError:
    if isinstance(error, ConfigError):
        return error
    if launch_.interpreter is not None and not launch_.cold:
        return HostError(
            f"the agent's interpreter cannot be started: {error.strerror or error}",
            hint="Set `interpreter` in the agent's section of the configuration to the python of a virtual "
            "environment, for example /srv/agent/.venv/bin/python.",
        )
    return HostError(
        f"the launcher of agent {launch_.agent} cannot be started: {error}",
        hint="The host is out of processes, memory or descriptors; lower turns.concurrent_max.",
    )


def _again(failure: HermeticError) -> HermeticError:
    """The same for another turn: an exception that is raised twice grows a traceback."""
    return type(failure)(failure.message, hint=failure.hint)


def _how(code: int | None) -> str:
    if code is None:
        return "was not started"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
