"""What this host can do for a child, found by starting one: sysctls and version numbers lie."""

from __future__ import annotations

import trio

from hermetic.protocol import launch
from hermetic.protocol.control import KILL, Spawned
from hermetic.protocol.errors import HermeticError
from hermetic.protocol.events import Seal
from hermetic.supervisor.child import open_child
from hermetic.supervisor.launchers import Launch, Launchers
from hermetic.supervisor.seal_policy import TREE

PROBE_S = 20.0
"""A cold Python on a busy disk takes some seconds."""
NOT_YET = ["network_namespace", "landlock", "seccomp", "capabilities_dropped", "cgroup_limits"]
"""Walls of the levels 1 to 3 that no child has in this version; without them the level is 0."""


PROBED = Launch(agent="(probe)", profile="", policy=launch.Policy(optional=list(TREE)))


def seal_of(spawned: Spawned) -> Seal:
    """A launcher's report → what readers are told."""
    return Seal(level=0, mechanisms=list(spawned.mechanisms), missing=[*spawned.missing, *NOT_YET])


async def probe() -> Seal:
    """One full dry run: a launcher with one turn is started and killed. Never raises."""
    found = Seal(level=0, missing=["child_process", "pid_namespace", "mount_namespace", *NOT_YET])
    async with trio.open_nursery() as nursery:
        launchers = Launchers(nursery, ready_s=PROBE_S, turns_max=1, idle_max=0)
        try:
            with trio.fail_after(PROBE_S):
                async with open_child(launchers, PROBED, launch.Spawn(turn_id="probe", workspace="/")) as child:
                    report = await child.report()
                    await child.order(KILL)
                    if isinstance(report, Spawned):
                        found = seal_of(report)
        except (HermeticError, trio.TooSlowError):
            pass
        nursery.cancel_scope.cancel()
    return found
