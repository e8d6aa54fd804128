"""A turn's tree, as the process sees it that answers for its end.

The promise: when `Exited` is reported, nothing of the tree lives. It is kept because the root of the tree is the init of
a PID namespace: the kernel kills every process in the namespace when its init ends, and lets the init be reaped only
when they are all gone (pid_namespaces(7)). The launcher answers for all of its turns this way. When the launcher itself
is killed, its inits get a signal for their parent's death.

Where no namespace can be had, each turn has a keeper between the launcher and init: it and init are subreapers and kill
by walking /proc (killing.py), which takes a process that has no other children. The end of its channel to the launcher
means that the launcher is gone.

Messages with the supervisor: protocol/control.py; with init and agent: channel.py.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from hermetic.agent_child import agent, channel, init, kernel, seal
from hermetic.agent_child.killing import kill_descendants
from hermetic.agent_child.seal import idmap
from hermetic.protocol import control, launch

DIED = "the processes that were made for it died before it began"


class Watch:
    """The one loop of a single-threaded process: descriptors, and what is done when one can be read."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}

    def add(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._poll.register(fd, select.POLLIN)

    def remove(self, fd: int) -> None:
        if self._handlers.pop(fd, None):
            self._poll.unregister(fd)

    def once(self, wait_ms: float | None = None) -> bool:
        """False: nothing came in that time."""
        ready = self._poll.poll(wait_ms)
        for fd, _ in ready:
            if (handler := self._handlers.get(fd)) is not None:  # another handler may have removed it
                handler()
        return bool(ready)


@contextmanager
def no_sigterm() -> Iterator[None]:
    """Until the child has a handler of its own: ours must not run in it, and an init without one would lose the signal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def on_sigterm(action: Callable[[], None]) -> None:
    """From a service manager that signals every process of the service, or from a person."""
    signal.signal(signal.SIGTERM, lambda *_: action())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


class Tree:
    """Init, agent and all that these start. At first it is a standby: forked, waiting for a turn."""

    def __init__(
        self,
        watch: Watch,
        policy: launch.Policy,
        name: str,
        interpreter: str | None,
        *,
        namespaced: bool,
        on_end: Callable[[Tree], None],
    ) -> None:
        """Forks it. Raises SealError and OSError when that cannot be done."""
        self._watch = watch
        self._policy = policy
        self._name = name
        self._namespaced = namespaced
        self._on_end = on_end
        self._control: socket.socket | None = None
        self._agent_pid = 0
        self._status: int | None = None
        self.refused: str | None = None
        self._terminate_wanted = False
        self._mechanisms: tuple[list[str], list[str]] = ([], [])
        self._listeners: list[int] = []
        self.turn: tuple[bytes, list[int]] | None = None
        """The turn, as long as nobody has said that it begins."""
        self.begun = False
        """It has been given a turn."""
        self.killed = False
        self.in_advance = False
        self._channel, theirs = channel.pair()
        try:
            with no_sigterm():
                self._init_pid = seal.clone_init(policy)
                if self._init_pid == 0:
                    init.run(theirs, policy, name, interpreter, namespaced=namespaced)
        except BaseException:
            self._channel.close()
            raise
        finally:
            theirs.close()
        watch.add(self._channel.fileno(), self._hear)

    def give(self, packet: bytes, fds: list[int], control_socket: socket.socket) -> bool:
        """Its turn: a `Spawn` with commands, events and stderr. False: it has died meanwhile."""
        try:
            channel.send(self._channel, packet, fds)
        except OSError:
            while self._channel.fileno() >= 0:  # what it said last
                self._hear()
            return False
        self.turn = packet, fds
        self.begun = True
        self._control = control_socket
        self._watch.add(control_socket.fileno(), self._obey)
        return True

    def terminate(self) -> None:
        """SIGTERM for the agent, by way of init; kept until there is one."""
        self._terminate_wanted = True
        if self._agent_pid:
            with suppress(ProcessLookupError):
                os.kill(self._init_pid, signal.SIGTERM)

    def kill(self) -> None:
        self.killed = True
        if self._namespaced:
            os.kill(self._init_pid, signal.SIGKILL)  # not reaped before _ended(), so the id is still init's
        else:
            kill_descendants()

    # --- what is said ---------------------------------------------------------------------------------------------

    def _obey(self) -> None:
        """What the supervisor says."""
        assert self._control is not None
        try:
            said = self._control.recv(64)
        except OSError:  # reset: the supervisor died with reports unread
            said = b""
        if said == control.TERMINATE:
            self.terminate()
        else:
            self._watch.remove(self._control.fileno())
            self.kill()

    def _hear(self) -> None:
        """What init and the agent say."""
        packet, fds = channel.receive(self._channel)
        kind, payload = packet[:1], packet[1:]
        match kind:
            case channel.FORKED:
                self._agent_pid = _first_child(self._init_pid)
                if self._terminate_wanted:
                    self.terminate()
            case channel.INIT_ENTERED:
                self._mechanisms, self._listeners = channel.decode_mechanisms(payload), fds
            case channel.ENTERED:
                self._begun(*channel.decode_mechanisms(payload))
            case channel.REFUSED:
                self.refused = payload.decode()
            case channel.STATUS:
                self._status = int(payload)
            case _:
                self._watch.remove(self._channel.fileno())
                self._channel.close()
                self._wait_for_the_end()

    def _begun(self, held: list[str], missing: list[str]) -> None:
        missing = list(dict.fromkeys([*self._mechanisms[1], *missing]))
        held = [*self._mechanisms[0], *held, *([] if self._namespaced else ["subreaper"])]
        report = control.Spawned(
            pid=self._agent_pid,
            init_pid=self._init_pid,
            # What only one of both has does not hold the tree.
            mechanisms=[name for name in dict.fromkeys(held) if name not in missing],
            missing=missing,
        )
        self._report(report, self._listeners)
        self._let_go()

    def _let_go(self) -> None:
        """Only the agent may hold the streams: their end is how the supervisor sees that it has gone."""
        if self.turn is not None:
            for fd in self.turn[1]:
                os.close(fd)
            self.turn = None
        for fd in self._listeners:
            os.close(fd)
        self._listeners = []

    # --- end ------------------------------------------------------------------------------------------------------

    def _wait_for_the_end(self) -> None:
        """Init has closed its descriptors. The kernel may need a while for the rest of the namespace."""
        try:
            self._pidfd = os.pidfd_open(self._init_pid)
        except ProcessLookupError:  # the walk has reaped it
            self._ended(int(signal.SIGKILL))
            return
        self._watch.add(self._pidfd, self._reap)

    def _reap(self) -> None:
        self._watch.remove(self._pidfd)
        os.close(self._pidfd)
        try:
            status = os.waitpid(self._init_pid, 0)[1]
        except ChildProcessError:
            status = int(signal.SIGKILL)
        self._ended(status)

    def _ended(self, init_status: int) -> None:
        if not self._namespaced:
            kill_descendants()
        self._over_limit = seal.reap(self._policy, self._name)
        self._init_status = init_status
        self._on_end(self)

    def report_end(self) -> None:
        self._let_go()
        if self._control is None:
            return
        status = self._init_status if self._status is None else self._status
        by_signal = os.WIFSIGNALED(status)
        self._report(
            control.Exited(
                exit_code=None if by_signal else os.WEXITSTATUS(status),
                signal=_signal_name(os.WTERMSIG(status)) if by_signal else None,
                over_limit=self._over_limit,
                refused=self.refused,
            )
        )
        self._watch.remove(self._control.fileno())
        self._control.close()

    @property
    def may_begin_again(self) -> bool:
        """It died as a standby that had just been given its turn, by nobody's order: another can have that turn."""
        return self.in_advance and self.turn is not None and not self.killed and self.refused is None

    def take_turn(self) -> tuple[bytes, list[int], socket.socket]:
        assert self.turn is not None and self._control is not None
        self._watch.remove(self._control.fileno())
        packet, fds = self.turn
        self.turn = None
        return packet, fds, self._control

    def _report(self, report: control.AnyReport, fds: list[int] | None = None) -> None:
        assert self._control is not None
        with suppress(OSError):  # the supervisor is gone; the end of the socket tells _obey
            channel.send(self._control, control.encode(report), fds or [])


class Kept:
    """A tree without a namespace, as the launcher sees it: a keeper of its own, which is told the turn and left alone."""

    may_begin_again = False
    refused = None

    def __init__(
        self,
        watch: Watch,
        policy: launch.Policy,
        name: str,
        interpreter: str | None,
        *,
        on_end: Callable[[Kept], None],
    ) -> None:
        self._watch = watch
        self._on_end = on_end
        self.killed = False
        self.in_advance = False
        self._channel, theirs = channel.pair()
        with no_sigterm():
            self._pid = os.fork()
            if self._pid == 0:
                keep(theirs, policy, name, interpreter)
        theirs.close()
        self._pidfd = os.pidfd_open(self._pid)
        watch.add(self._pidfd, self._reap)

    def give(self, packet: bytes, fds: list[int], control_socket: socket.socket) -> bool:
        try:
            channel.send(self._channel, packet, [*fds, control_socket.fileno()])
        except OSError:
            return False
        for fd in fds:
            os.close(fd)
        control_socket.close()
        return True

    def terminate(self) -> None:
        os.kill(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        self.killed = True
        self._channel.close()

    def _reap(self) -> None:
        self._watch.remove(self._pidfd)
        os.close(self._pidfd)
        os.waitpid(self._pid, 0)
        self._channel.close()
        self._on_end(self)

    def report_end(self) -> None:
        """The keeper has done that."""


def keep(turns: socket.socket, policy: launch.Policy, name: str, interpreter: str | None) -> NoReturn:
    """The keeper's process."""
    try:
        channel.close_all_but(turns.fileno(), *idmap.descriptors())
        os.setsid()
        kernel.set_name(b"hermetic-keeper")
        kernel.become_subreaper()
        Keeper(turns).run(policy, name, interpreter)
    except BaseException:  # noqa: BLE001  whatever it is, this process ends here
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(agent.BROKEN)


class Keeper:
    def __init__(self, turns: socket.socket) -> None:
        self._turns = turns
        self._watch = Watch()
        self._tree: Tree | None = None
        self._refused: str | None = None
        self._ended = False

    def run(self, policy: launch.Policy, name: str, interpreter: str | None) -> NoReturn:
        self._watch.add(self._turns.fileno(), self._hear)
        try:
            self._tree = Tree(self._watch, policy, name, interpreter, namespaced=False, on_end=self._end)
            on_sigterm(self._tree.terminate)
        except seal.SealError as error:
            self._refused = str(error)
        while not self._ended:
            self._watch.once()
        os._exit(0)

    def _hear(self) -> None:
        packet, fds = channel.receive(self._turns)
        if not packet:  # the launcher is gone: the supervisor is told why by its end
            if self._tree is not None:
                self._tree.kill()
            os._exit(0)
        *streams, control_fd = fds
        control_socket = socket.socket(fileno=control_fd)
        if self._refused is not None or self._tree is None:
            refuse(control_socket, self._refused or "")
            os._exit(0)
        if not self._tree.give(packet, streams, control_socket):
            refuse(control_socket, self._tree.refused or DIED)
            os._exit(0)

    def _end(self, tree: Tree) -> None:
        tree.report_end()
        self._refused = tree.refused
        self._ended = tree.begun or self._refused is None  # else its turn is to be told


def refuse(control_socket: socket.socket, why: str) -> None:
    """A turn's last report, when its processes could not be made."""
    with suppress(OSError):
        channel.send(control_socket, control.encode(control.Exited(refused=why)))
    control_socket.close()


def _first_child(pid: int) -> int:
    """As seen from here, outside the namespace; `pid` itself when the kernel does not tell."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return int(file.read().split()[0])
    except (OSError, IndexError):
        return pid


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"
