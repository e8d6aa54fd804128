"""The launcher: one warm process per agent and profile, from which each turn is forked.

It is born with the environment of its agent and profile, so that not even /proc/PID/environ of a turn has more; it
imports what turns need, and then only waits, forks and reaps. It runs no turn's code, has no thread but one (a user
namespace and a fork demand that), and knows of a turn nothing but its workspace's path and a few variables.

Turns are forked in advance where that is asked for. A standby is a whole tree, init and agent, sealed as far as that
goes without a workspace; it is used once. New ones are forked when nothing else has happened for a moment, so that the
fork is on nobody's way.

    python -I -m hermetic.agent_child.launcher FD        FD: SOCK_SEQPACKET, protocol/launch.py
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import NoReturn

from hermetic.agent_child import agent, channel, kernel, seal, stdio
from hermetic.agent_child.keeper import DIED, Kept, Tree, Watch, on_sigterm, refuse
from hermetic.agent_child.preload import CannotPreload, preload
from hermetic.protocol import launch

IDLE_MS = 2
"""Without anything to do for so long, a standby is forked: longer than from one step of a turn's start to the next."""


def main(arguments: list[str]) -> NoReturn:
    try:
        fd = int(arguments[0])
        os.set_inheritable(fd, False)
        with suppress(PermissionError):  # already the leader of a session
            os.setsid()  # Ctrl-C on the server's terminal is the server's
        kernel.set_name(b"hermetic-launch")
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        stdio.by_lines()
        Launcher(socket.socket(fileno=fd)).run()
    except BaseException:  # noqa: BLE001  whatever it is, this process ends here
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(agent.BROKEN)


class Launcher:
    def __init__(self, supervisor: socket.socket) -> None:
        self._supervisor = supervisor
        self._watch = Watch()
        self._standbys: list[Tree | Kept] = []
        self._running: set[Tree | Kept] = set()
        """With standbys that are being killed."""
        self._forked = 0
        self._retired = False
        self._standby = 0
        self._may_fork_ahead = True

    def run(self) -> NoReturn:
        packet, _ = channel.receive(self._supervisor)
        if not packet:
            os._exit(0)
        prepare = launch.decode(packet)
        assert isinstance(prepare, launch.Prepare)
        self._policy = prepare.policy
        self._interpreter = prepare.interpreter
        try:
            answer: launch.Message = self._prepared(prepare)
        except CannotPreload as error:
            answer = launch.CannotPrepare(message=error.message[:4000], hint=error.hint, fault=error.fault)
        except seal.SealError as error:
            answer = launch.CannotPrepare(
                message=f"the seal cannot be made: {error}", hint="`hermetic doctor` says what this host can do."
            )
        channel.send(self._supervisor, launch.encode(answer))
        if isinstance(answer, launch.CannotPrepare):
            os._exit(0)
        self._standby = prepare.standby
        self._watch.add(self._supervisor.fileno(), self._hear)
        on_sigterm(self._terminate)
        self._serve()

    def _prepared(self, prepare: launch.Prepare) -> launch.Prepared:
        sys.path[:0] = prepare.python_path
        files = preload(prepare.preload)
        stdio.flush()
        self._namespaced = gives_pid_namespace(prepare.policy)
        gc.collect()
        gc.disable()  # a collection would write to every object, and so copy every page that turns share
        gc.freeze()
        return launch.Prepared(pid=os.getpid(), python=sys.version.split()[0], files=files)

    # --- turns ----------------------------------------------------------------------------------------------------

    def _serve(self) -> NoReturn:
        while not self._retired or self._running:
            wants = self._may_fork_ahead and len(self._standbys) < self._standby
            if not self._watch.once(IDLE_MS if wants else None):
                self._fork_ahead()
        os._exit(0)

    def _fork_ahead(self) -> None:
        try:
            tree = self._fork()
        except (seal.SealError, OSError) as error:
            self._no_more_ahead(str(error))
            return
        tree.in_advance = True
        self._standbys.append(tree)

    def _no_more_ahead(self, why: str) -> None:
        """Until the next turn: what kept one from living may keep the next from it."""
        self._may_fork_ahead = False
        sys.stderr.write(f"hermetic: no standby: {why}\n")

    def _fork(self) -> Tree | Kept:
        self._forked += 1
        name = f"{os.getpid()}-{self._forked}"
        if self._namespaced:
            return Tree(self._watch, self._policy, name, self._interpreter, namespaced=True, on_end=self._ended)
        return Kept(self._watch, self._policy, name, self._interpreter, on_end=self._ended)

    def _hear(self) -> None:
        """What the supervisor says."""
        packet, fds = channel.receive(self._supervisor)
        if not packet:
            self._retire()
            for tree in self._running:
                tree.kill()
            return
        message = launch.decode(packet)
        if isinstance(message, launch.Retire):
            self._retire()
        elif isinstance(message, launch.Spawn) and len(fds) == 4:
            *streams, control_fd = fds
            self._begin(packet, streams, socket.socket(fileno=control_fd))
        else:  # out of descriptors; the supervisor sees the end of the control socket
            sys.stderr.write(f"hermetic: a packet with {len(fds)} descriptors was dropped\n")
            for fd in fds:
                os.close(fd)

    def _begin(self, packet: bytes, streams: list[int], control_socket: socket.socket) -> None:
        self._may_fork_ahead = True
        while self._standbys:
            tree = self._standbys.pop(0)
            self._running.add(tree)
            if tree.give(packet, streams, control_socket):
                return
        self._begin_new(packet, streams, control_socket)

    def _begin_new(self, packet: bytes, streams: list[int], control_socket: socket.socket) -> None:
        try:
            tree = self._fork()
            self._running.add(tree)
            if tree.give(packet, streams, control_socket):
                return
            why = tree.refused or DIED
        except (seal.SealError, OSError) as error:
            why = str(error)
        for fd in streams:
            os.close(fd)
        refuse(control_socket, why)

    def _ended(self, tree: Tree | Kept) -> None:
        if tree in self._standbys:
            self._standbys.remove(tree)
            self._no_more_ahead("it died before its turn")
        elif isinstance(tree, Tree) and tree.may_begin_again:
            self._begin_new(*tree.take_turn())
        tree.report_end()
        self._running.discard(tree)

    def _terminate(self) -> None:
        for tree in list(self._running):
            tree.terminate()

    def _retire(self) -> None:
        self._retired = True
        self._standby = 0
        self._watch.remove(self._supervisor.fileno())
        for tree in self._standbys:
            self._running.add(tree)
            tree.kill()
        self._standbys = []


def gives_pid_namespace(policy: launch.Policy) -> bool:
    """Found by trying: sysctls lie. Raises SealError when the policy requires one that cannot be had."""
    if "pid_namespace" not in policy.mechanisms and "pid_namespace" not in policy.optional:
        return False
    pid = seal.clone_init(policy)
    if pid == 0:
        os._exit(0 if os.getpid() == 1 else 1)
    return os.waitpid(pid, 0)[1] == 0


if __name__ == "__main__":  # an agent that uses multiprocessing's spawn imports this module once more
    main(sys.argv[1:])
