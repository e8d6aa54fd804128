"""The seal: what holds a turn, applied from inside by its init and its agent.

The launcher forks an init into the namespaces (`clone_init`). The init prepares everything that does not depend on the
turn, while it may still do so, then forks the agent, which does the same for itself; both may wait there as a standby.
When the turn is known, init enters first (its workspace is mounted, everything else of the host is let go) and after it
the agent. From then on neither can go back, and only now may the agent read a byte of the tenant's.

    pid = clone_init(policy)                  in the launcher
    if pid == 0:
        init = InitSeal(policy, name)         in init
        init.prepare()
        if os.fork() == 0:
            agent = AgentSeal(policy)         in the agent
            agent.prepare()
            ...                               wait until init has entered
            agent.enter(workspace)
        ...                                   wait for the turn
        init.enter(workspace)
    ...
    os.waitpid(pid, 0); reap(policy, name)    in the launcher

A mechanism of the policy that cannot be had raises SealError, and the process must end. Nothing is undone.
"""

from __future__ import annotations

from collections.abc import Callable

from hermetic.agent_child.seal import namespaces, roots
from hermetic.agent_child.seal.errors import SealError
from hermetic.agent_child.seal.namespaces import clone_init
from hermetic.protocol.launch import Policy

__all__ = ["AgentSeal", "InitSeal", "SealError", "clone_init", "reap"]


class _Seal:
    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.held: list[str] = []
        """What holds, by the names of launch.MECHANISMS."""
        self.missing: list[str] = []
        """What was optional and could not be had."""

    def _wants(self, mechanism: str) -> bool:
        return mechanism in self._policy.mechanisms or mechanism in self._policy.optional

    def _apply(self, mechanism: str, action: Callable[[], object]) -> None:
        """Raises SealError when the mechanism is required."""
        if not self._wants(mechanism):
            return
        try:
            action()
        except (OSError, SealError) as error:
            self._lacks(mechanism, error)
        else:
            self.held.append(mechanism)

    def _lacks(self, mechanism: str, error: OSError | SealError) -> None:
        if mechanism in self._policy.mechanisms:
            raise error if isinstance(error, SealError) else SealError(mechanism, str(error)) from error
        self.missing.append(mechanism)


class InitSeal(_Seal):
    """`name`: the turn's folder in each of the policy's cgroups."""

    def __init__(self, policy: Policy, name: str) -> None:
        super().__init__(policy)
        self._name = name
        self.listeners: list[int] = []
        """Descriptors, one for each of the policy's ports, listening inside the turn's network."""

    def prepare(self) -> None:
        """All that needs no workspace."""
        made = namespaces.made
        if "user_namespace" in made:
            namespaces.map_ids()
        self.held += made
        self.missing += [name for name in namespaces.FLAGS if self._wants(name) and name not in made]
        if "mount_namespace" in made:
            roots.make_private()
            self._apply("proc", lambda: roots.mount_proc("/proc"))
        elif self._wants("proc"):
            self._lacks("proc", SealError("proc", "it needs a mount namespace"))

    def enter(self, workspace: str) -> None:
        """The workspace is mounted, the host let go, every privilege given up.

        The signal for the parent's death is kept. Whether the parent died meanwhile is for the caller to see.
        """


class AgentSeal(_Seal):
    def prepare(self) -> None:
        """All that needs no workspace. The caller has one thread, and still the privileges of init."""

    def enter(self, workspace: str) -> None:
        """The rest, after init has entered."""


def reap(policy: Policy, name: str) -> str | None:
    """In the launcher, when the init of `name` is reaped: the field of launch.Limits that the kernel enforced.

    Removes the turn's cgroups.
    """
    return None
