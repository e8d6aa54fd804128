"""The agent's process, from its fork to the session: waits for its turn, claims its streams, seals itself.

Of the code that runs here before the seal holds, none is the tenant's and none has seen a byte of the tenant's.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from typing import NoReturn

from hermetic.agent_child import channel, kernel, seal, session, stdio
from hermetic.agent_child.interpreter import exec_interpreter
from hermetic.agent_child.seal import privileges, tools
from hermetic.protocol import launch

BROKEN = 70
"""Exit code of a process of ours that failed by a bug (sysexits' EX_SOFTWARE)."""
_BLOCKED = {signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1}
"""By init, before the agent was forked."""


def wait_for_turn(
    turns: socket.socket, reports: socket.socket, policy: launch.Policy, interpreter: str | None
) -> NoReturn:
    """`turns`: from init. `reports`: to whoever answers for the tree. `interpreter`: the Python to exec, if any."""
    try:
        try:
            os.setsid()
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            channel.close_all_but(turns.fileno(), reports.fileno())
            walls = seal.AgentSeal(policy)
            walls.prepare()
            # Whatever can be done now is not in the way of the first event.
            _be_nobodys_twin()
            _be_the_agent()
            ready = session.ready()
            packet, fds = channel.receive(turns)
            if not packet:
                os._exit(0)
            turn = launch.decode(packet)
            assert isinstance(turn, launch.Spawn)
            events_fd, commands_fd = stdio.claim(*fds)
            os.environ.update(turn.environment)
            walls.enter(turn.workspace)
        except seal.SealError as error:
            channel.send(reports, channel.REFUSED + str(error).encode())
            os._exit(0)
        if interpreter is None:
            os.write(events_fd, ready)
        channel.send(reports, channel.ENTERED + channel.encode_mechanisms(walls.held, walls.missing))
        channel.close_all_but(events_fd, commands_fd)
        if interpreter is not None:
            exec_interpreter(interpreter, events_fd, commands_fd)
        _run_session(events_fd, commands_fd)
    except BaseException:  # noqa: BLE001  whatever it is, this process ends here
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(BROKEN)


def run(events_fd: int, commands_fd: int) -> NoReturn:
    """In an interpreter that was started for the turn. Never returns."""
    try:
        _be_the_agent()
        os.write(events_fd, session.ready())
        _run_session(events_fd, commands_fd)
    except BaseException:  # noqa: BLE001  whatever it is, this process ends here
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(BROKEN)


def _run_session(events_fd: int, commands_fd: int) -> NoReturn:
    if privileges.gains_nothing_by_exec():  # sealed: so are its tools, each from the moment of its fork
        tools.guard((events_fd, commands_fd))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)
    session.run(events_fd, commands_fd)


def _be_the_agent() -> None:
    """The name, and what a signal does before Start, when there is nothing to end but ourselves."""
    kernel.set_name(b"hermetic-agent")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))


def _be_nobodys_twin() -> None:
    """All turns of a launcher begin as copies of one process. Python gives `random` a new seed at a fork, numpy not."""
    gc.enable()
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()
