"""What turns of this server are sealed with: found out once at the start, by sealing a process, and the same for all.

Sysctls, version numbers and configuration files lie about what a host gives; a turn that was really sealed does not. So
the start forks one through a launcher with everything as a wish, looks at it from outside, and from then on what held is
a demand: a turn for which it cannot be had does not run.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import structlog
import trio
from msgspec.structs import replace

import hermetic
from hermetic.protocol import launch
from hermetic.protocol.control import KILL, Spawned
from hermetic.protocol.errors import HermeticError, HostError
from hermetic.protocol.events import Seal
from hermetic.supervisor import seal_check
from hermetic.supervisor.cgroups import Cgroups
from hermetic.supervisor.child import open_child
from hermetic.supervisor.config import DEMO, Agent, Config, Limits, Profile, limits_of
from hermetic.supervisor.egress.variables import ports
from hermetic.supervisor.launchers import Launch, Launchers
from hermetic.supervisor.meter import Meter
from hermetic.supervisor.seal_policy import policy_of, python_paths, seal_of, wanted

log = structlog.get_logger()

PROBE_S = 20.0
"""A cold Python on a busy disk takes some seconds."""
KEEPS_HOME = ("hermes",)
"""Adapters whose agents keep their memory in the profile's home."""


class Sealing:
    """From `open_sealing`. `seal`: as readers are told."""

    def __init__(self, cgroups: Cgroups, mechanisms: list[str], *, can_run: bool) -> None:
        self.root = os.geteuid() == 0
        self.cgroups = cgroups
        self.mechanisms = mechanisms
        self.seal = seal_of(mechanisms, root=self.root)
        self.can_run = can_run
        """A turn could be started at all."""

    @property
    def network(self) -> bool:
        """Turns have a network of their own, so that the way out is ours."""
        return "network_namespace" in self.mechanisms

    def seal_of(self, spawned: Spawned) -> Seal:
        return seal_of(spawned.mechanisms, root=self.root)

    def broken(self, spawned: Spawned, policy: launch.Policy) -> list[str]:
        """What was promised for this turn and does not hold, looked at from outside."""
        absent = [name for name in policy.mechanisms if name not in spawned.mechanisms]
        return absent + seal_check.look(spawned.pid, policy.mechanisms, policy.uid)

    def meter(self, spawned: Spawned) -> Meter:
        return Meter.of(spawned.pid, self.cgroups.parents)

    def policy(
        self, config: Config, agent: Agent, profile: Profile, *, home: Path, tenant_number: int
    ) -> launch.Policy:
        """Of an agent's turns for one tenant. Blocks on the file system."""
        return self._policy(
            agent,
            limits_of(config, agent),
            mechanisms=self.mechanisms if self.seal.level else [],
            optional=[] if self.seal.level else self.mechanisms,  # level 0 promises none of them
            uid=config.seal.uid_base + tenant_number,
            home=home,
            keeps_home=agent.adapter in KEEPS_HOME or profile.home is not None,
            has_listeners=True,
        )

    def _policy(
        self,
        agent: Agent,
        limits: Limits,
        *,
        mechanisms: list[str],
        optional: list[str] | None = None,
        uid: int,
        home: Path,
        keeps_home: bool,
        has_listeners: bool = False,
    ) -> launch.Policy:
        named = {*mechanisms, *(optional or [])}
        return policy_of(
            _resolved(agent),
            limits,
            mechanisms=mechanisms,
            optional=optional or [],
            uid=uid if "tenant_uid" in named else None,
            home=os.path.realpath(home),
            keeps_home=keeps_home,
            readable=readable(agent.interpreter or sys.executable),
            ports=ports(agent.model_api) if has_listeners else [],
            cgroups=self.cgroups.parents if "cgroup_memory" in named or "cgroup_pids" in named else [],
        )


@cache
def readable(interpreter: str) -> list[str]:
    """What every turn with this Python reads: the Python, ours for the launcher's part, and the package itself."""
    needed = [*python_paths(interpreter), *python_paths(sys.executable), str(Path(hermetic.__file__).parent)]
    return _outermost(path for path in map(os.path.realpath, needed) if os.path.exists(path))


def _outermost(paths: Iterable[str]) -> list[str]:
    """Without what lies in another of them, and without the system's own, which every turn has."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(path == other or path.startswith(other.rstrip("/") + "/") for other in ("/usr", *kept)):
            kept.append(path)
    return kept


def _resolved(agent: Agent) -> Agent:
    """With the paths as the seal wants them: without links, and only what is there."""

    def real(paths: list[str]) -> list[str]:
        return [resolved for path in paths if os.path.exists(resolved := os.path.realpath(path))]

    return replace(
        agent, python_path=real(agent.python_path), readable=real(agent.readable), writable=real(agent.writable)
    )


@asynccontextmanager
async def open_sealing(config: Config, *, insecure: bool) -> AsyncIterator[Sealing]:
    """Finds out what this host gives, at most `seal.level_max`. On exit our cgroups are gone.

    Raises `HostError` when that is less than the configuration demands, or nothing and not `insecure`.
    """
    cgroups = await trio.to_thread.run_sync(Cgroups.open)
    try:
        sealing = await probe(config.seal.level_max, cgroups)
        check_level(sealing.seal, config, insecure=insecure)
        yield sealing
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(cgroups.close)


def check_level(seal: Seal, config: Config, *, insecure: bool) -> None:
    """Raises `HostError` when turns must not run with this seal."""
    if config.seal.strict and seal.level < 3:
        raise HostError(
            f"seal.strict demands level 3, and this host gives level {seal.level}: {', '.join(seal.missing)} missing",
            hint="`hermetic doctor` says how to get what is missing.",
        )
    if seal.level == 0 and not insecure:
        raise HostError(
            "nothing would keep an agent from the files of the server's user and from the network (seal level 0)",
            hint="`hermetic doctor` says how to get what is missing; say --insecure to run agents that you trust.",
        )
    if seal.level == 0:
        log.warning("insecure", level=0, meaning="agents can do whatever the server's user can")


async def probe(level_max: int, cgroups: Cgroups) -> Sealing:
    """Dry runs, from the best level downwards until one holds. Never raises but for a cancel."""
    root = os.geteuid() == 0
    for level in range(level_max, -1, -1):
        held = await _try(Sealing(cgroups, [], can_run=False), wanted(level, root=root))
        if held is not None:
            return Sealing(cgroups, held, can_run=True)
    return Sealing(cgroups, [], can_run=False)


async def _try(sealing: Sealing, wishes: list[str]) -> list[str] | None:
    """What of them held in one dry run; None: no turn came to be."""
    held: list[str] | None = None
    with tempfile.TemporaryDirectory(prefix="hermetic-probe-") as folder:
        workspace = Path(os.path.realpath(folder), "workspace")
        workspace.mkdir()
        policy = sealing._policy(
            DEMO,
            Limits(),
            mechanisms=[],
            optional=wishes,
            uid=PROBE_UID,
            home=Path(folder, "home"),
            keeps_home=False,
        )
        async with trio.open_nursery() as nursery:
            launchers = Launchers(nursery, ready_s=PROBE_S, turns_max=1, idle_max=0)
            try:
                with trio.fail_after(PROBE_S):
                    born_with = Launch(agent="(probe)", profile="", policy=policy)
                    turn = launch.Spawn(turn_id="probe", workspace=str(workspace))
                    async with open_child(launchers, born_with, turn) as child:
                        report = await child.report()
                        if isinstance(report, Spawned):
                            broken = seal_check.look(report.pid, report.mechanisms, policy.uid)
                            held = [name for name in dict.fromkeys(report.mechanisms) if name not in broken]
                        elif report is not None:
                            log.info("seal_refused", wishes=wishes, why=report.refused)
                        await child.order(KILL)
            except (HermeticError, trio.TooSlowError) as error:
                log.info("seal_refused", wishes=wishes, why=str(error))
            nursery.cancel_scope.cancel()
    return held


PROBE_UID = 2_000_000
"""Of the dry run; any that is nobody's will do."""
