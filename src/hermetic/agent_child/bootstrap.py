"""First code in an agent's own Python, run as a script: makes `hermetic` importable there and becomes the agent.

It may meet any Python from 3.6.2 on and an environment without msgspec, so it keeps to what all of them read, imports nothing of
ours before it has checked, and writes the two frames that say what is missing by hand.
"""

import importlib.util
import json
import os
import sys
from typing import NoReturn

OLDEST = (3, 11)


def fail(events_fd: int, protocol: int, message: str, hint: str) -> NoReturn:
    """Says Ready, as every child must, and Failed."""
    ready = {"event": "ready", "protocol": protocol, "pid": os.getpid(), "python": sys.version.split()[0]}
    failed = {"event": "failed", "message": message, "type": "error", "hint": hint, "fault": "host"}
    for event in (ready, failed):
        os.write(events_fd, json.dumps(event).encode() + b"\n")
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


def main(events_fd: int, commands_fd: int, protocol: int) -> None:
    for fd in (events_fd, commands_fd):
        os.set_inheritable(fd, False)
    if sys.version_info < OLDEST:
        fail(
            events_fd,
            protocol,
            "the agent's interpreter is Python " + sys.version.split()[0] + ", and Hermetic needs 3.11 or newer",
            "Make the agent's virtual environment with a newer Python.",
        )
    for stream in (sys.stdout, sys.stderr):  # as stdio.claim() does
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    try:
        import msgspec  # noqa: F401
    except ImportError as error:
        fail(
            events_fd,
            protocol,
            "the agent's environment has no msgspec that works: " + str(error).splitlines()[0],
            "Install it there: run `python -m pip install msgspec` with the interpreter that the agent's section names.",
        )
    make_importable(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from hermetic.agent_child import init

    init.run_agent(events_fd, commands_fd)


if __name__ == "__main__":  # an agent that uses multiprocessing's spawn imports this file once more
    main(*map(int, sys.argv[1:]))
