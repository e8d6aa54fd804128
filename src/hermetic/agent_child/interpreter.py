"""The agent in a Python of its own, started anew for the turn: `start = "cold"`.

The forked process execs it, so init, seal and the promise to kill stay as they are. Only the package `hermetic` comes
along, by its path (bootstrap.py): the server's other packages must not shadow the agent's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from hermetic.agent_child import bootstrap
from hermetic.protocol import PROTOCOL_VERSION


def exec_interpreter(interpreter: str, events_fd: int, commands_fd: int) -> NoReturn:
    """Never returns. The blocked signals stay blocked over the exec, so that a cancel waits for its handler."""
    for fd in (events_fd, commands_fd):
        os.set_inheritable(fd, True)
    script = Path(bootstrap.__file__).as_posix()
    try:
        # The path as it was given: a virtual environment is found by where its link lies, not by where it leads.
        os.execv(
            interpreter,
            [interpreter, "-I", script, "agent", str(PROTOCOL_VERSION), str(events_fd), str(commands_fd)],
        )
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        bootstrap.fail_as_agent(
            events_fd,
            PROTOCOL_VERSION,
            "the agent's interpreter cannot be started: " + why,
            "Set `interpreter` in the agent's section of the configuration to the python of a virtual environment, "
            "for example /srv/agent/.venv/bin/python.",
        )
