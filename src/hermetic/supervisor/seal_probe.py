"""What this host can do for a child, found by starting one: sysctls and version numbers lie."""

from __future__ import annotations

import trio

from hermetic.protocol.control import KILL, Spawned
from hermetic.protocol.errors import HostError
from hermetic.protocol.events import Seal
from hermetic.supervisor.child import open_child

PROBE_S = 20.0
"""A cold Python on a busy disk takes some seconds."""
NOT_YET = ["network_namespace", "landlock", "seccomp", "capabilities_dropped", "cgroup_limits"]
"""Walls of the levels 1 to 3 that no child has in this version; without them the level is 0."""


def seal_of(spawned: Spawned) -> Seal:
    """A keeper's report → what readers are told."""
    return Seal(level=0, mechanisms=list(spawned.mechanisms), missing=[*spawned.missing, *NOT_YET])


async def probe() -> Seal:
    """One full dry run: a keeper with its tree is started and killed. Never raises."""
    try:
        with trio.fail_after(PROBE_S):
            async with open_child({}) as child:
                report = await child.report()
                await child.order(KILL)
                if isinstance(report, Spawned):
                    return seal_of(report)
    except (HostError, trio.TooSlowError):
        pass
    return Seal(level=0, missing=["child_process", "pid_namespace", "mount_namespace", *NOT_YET])
