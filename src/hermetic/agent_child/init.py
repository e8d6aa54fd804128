"""Init: the root of the tree, process 1 of its namespace.

It forks the agent, waits with it for a turn, enters the seal first, hands SIGTERM on, reaps orphans, and ends when the
agent has ended, which ends everyone else in the namespace. It holds neither the event stream nor the command stream. It
has no signal handlers: its signals are blocked and waited for, so that none can come at a wrong moment (a blocked signal
reaches even the init of a namespace).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from contextlib import suppress
from typing import NoReturn

from hermetic.agent_child import agent, channel, kernel, seal, stdio
from hermetic.agent_child.interrupts import AGAIN_S
from hermetic.agent_child.killing import kill_descendants
from hermetic.agent_child.seal import idmap
from hermetic.protocol import launch

_WAITED_FOR = {signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1}


def run(
    turns: socket.socket, policy: launch.Policy, name: str, interpreter: str | None, *, namespaced: bool
) -> NoReturn:
    """`turns`: to and from whoever answers for the tree. `name`: of its cgroups. `namespaced`: we are process 1."""
    try:
        Init(turns, policy, name, interpreter, namespaced=namespaced).run()
    except seal.SealError as error:
        with suppress(OSError):
            channel.send(turns, channel.REFUSED + str(error).encode())
        os._exit(0)
    except BaseException:  # noqa: BLE001  whatever it is, this process ends here
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(agent.BROKEN)


class Init:
    def __init__(
        self, turns: socket.socket, policy: launch.Policy, name: str, interpreter: str | None, *, namespaced: bool
    ) -> None:
        self._turns = turns
        self._policy = policy
        self._seal = seal.InitSeal(policy, name)
        self._interpreter = interpreter
        self._namespaced = namespaced
        self._agent_pid = 0

    def run(self) -> NoReturn:
        channel.close_all_but(self._turns.fileno(), *idmap.descriptors())
        os.setsid()  # so that a kill(0, …) inside the tree does not reach anyone else
        kernel.set_name(b"hermetic-init")
        signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
        # Without a namespace SIGKILL would leave the tree alive, so init gets a signal on which it can kill it first.
        kernel.signal_at_parents_death(signal.SIGKILL if self._namespaced else signal.SIGUSR1)
        if not self._namespaced:
            kernel.become_subreaper()
        self._seal.prepare()
        to_agent, from_init = channel.pair()
        self._agent_pid = os.fork()
        if self._agent_pid == 0:
            agent.wait_for_turn(from_init, self._turns, self._policy, self._interpreter)
        from_init.close()
        # Raises when the parent died before it could be seen to: it alone has the channel's other end.
        channel.send(self._turns, channel.FORKED)
        self._enter(to_agent)
        channel.send(self._turns, channel.STATUS + str(self._serve_until_the_agent_ends()).encode())
        if not self._namespaced:
            kill_descendants()
        os._exit(0)  # the kernel kills the rest of the namespace

    def _enter(self, to_agent: socket.socket) -> None:
        """Waits for the turn, and hands it on to the agent when the seal holds."""
        poll = select.poll()
        poll.register(self._turns, select.POLLIN)
        poll.register(to_agent, select.POLLIN)  # the agent says nothing, so this is its end
        if self._turns.fileno() not in {fd for fd, _ in poll.poll()}:
            os._exit(0)
        packet, fds = channel.receive(self._turns)
        if not packet:
            os._exit(0)
        turn = launch.decode(packet)
        assert isinstance(turn, launch.Spawn)
        stdio.print_to(fds[2])
        self._seal.enter(turn.workspace)
        listeners = self._seal.listeners
        channel.send(
            self._turns,
            channel.INIT_ENTERED + channel.encode_mechanisms(self._seal.held, self._seal.missing),
            listeners,
        )
        channel.send(to_agent, packet, fds)
        to_agent.close()
        for fd in (*fds, *listeners):
            os.close(fd)

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
