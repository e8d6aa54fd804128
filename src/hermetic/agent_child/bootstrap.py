"""First code in an agent's own Python, run as a script: makes `hermetic` importable there and becomes launcher or agent.

It may meet any Python from 3.6.2 on and an environment without msgspec, so it keeps to what all of them read, imports nothing of
ours before it has checked, and writes what says what is missing by hand.

    python -I bootstrap.py launcher PROTOCOL FD
    python -I bootstrap.py agent PROTOCOL EVENTS_FD COMMANDS_FD
"""

import importlib.util
import json
import os
import sys
from typing import NoReturn

OLDEST = (3, 11)


def fail_as_agent(events_fd: int, protocol: int, message: str, hint: str) -> NoReturn:
    """Says Ready, as every child must, and Failed."""
    ready = {"event": "ready", "protocol": protocol, "pid": os.getpid(), "python": sys.version.split()[0]}
    failed = {"event": "failed", "message": message, "type": "error", "hint": hint, "fault": "host"}
    for event in (ready, failed):
        os.write(events_fd, json.dumps(event).encode() + b"\n")
    os._exit(0)


def fail_as_launcher(fd: int, message: str, hint: str) -> NoReturn:
    """Takes Prepare, says CannotPrepare. Each read and write is one packet, whatever its length."""
    os.read(fd, 1)
    os.write(fd, json.dumps({"launch": "cannot_prepare", "message": message, "hint": hint, "fault": "host"}).encode())
    os._exit(0)


def make_importable(folder: str) -> None:
    """The package `hermetic` alone; one that the environment has itself may be another version's."""
    spec = importlib.util.spec_from_file_location(
        "hermetic", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["hermetic"] = module
    spec.loader.exec_module(module)


def main(role: str, protocol: int, *fds: int) -> None:
    for fd in fds:
        os.set_inheritable(fd, False)
    message, hint = "", ""
    if sys.version_info < OLDEST:
        message = "the agent's interpreter is Python " + sys.version.split()[0] + ", and Hermetic needs 3.11 or newer"
        hint = "Make the agent's virtual environment with a newer Python."
    else:
        try:
            import msgspec  # noqa: F401
        except ImportError as error:
            message = "the agent's environment has no msgspec that works: " + str(error).splitlines()[0]
            hint = (
                "Install it there: run `python -m pip install msgspec` with the interpreter that the agent's section "
                "names."
            )
    if message and role == "launcher":
        fail_as_launcher(fds[0], message, hint)
    if message:
        fail_as_agent(fds[0], protocol, message, hint)
    make_importable(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if role == "launcher":
        from hermetic.agent_child import launcher

        launcher.main([str(fds[0])])
    from hermetic.agent_child import agent, stdio

    stdio.by_lines()
    agent.run(*fds)


if __name__ == "__main__":  # an agent that uses multiprocessing's spawn imports this file once more
    main(sys.argv[1], *map(int, sys.argv[2:]))
