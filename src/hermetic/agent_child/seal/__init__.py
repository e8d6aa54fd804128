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
            ...                               close every descriptor that is not the agent's
            agent = AgentSeal(policy)         in the agent
            agent.prepare()
            ...                               wait until init has entered
            agent.enter(workspace)
            ...                               in the interpreter that runs the agent: tools.guard(…)
        ...                                   wait for the turn
        init.enter(workspace)
    ...
    os.waitpid(pid, 0); reap(policy, name)    in the launcher

Nine tenths of the work are in the two `prepare`. Of what is left, half is the mount of the workspace and a quarter each
the letting go of the host (the kernel waits for its readers) and of the privileges; the agent's part is a tenth of it.

A mechanism of the policy that cannot be had raises SealError, and the process must end. Nothing is undone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from hermetic.agent_child.seal import (
    cgroups,
    host_descriptors,
    idmap,
    landlock,
    namespaces,
    network,
    privileges,
    roots,
    seccomp,
)
from hermetic.agent_child.seal.errors import SealError
from hermetic.protocol.launch import Policy

__all__ = ["AgentSeal", "InitSeal", "SealError", "clone_init", "reap"]

_NOT_OURS = ("subreaper",)
"""What the launcher and its init see to."""
_of_init: list[str] = []
"""In an agent, forked from its init: what init holds."""


def clone_init(policy: Policy) -> int:
    """Like os.fork: 0 in the init, its process id in the caller. Raises SealError, in the caller alone."""
    if policy.uid is not None and os.geteuid() == 0:
        with suppress(OSError):  # the likely owner of workspaces, so that all inits inherit the map; else made then
            idmap.namespace((0, 0), (policy.uid, policy.uid if policy.gid is None else policy.gid))
    with suppress(OSError):  # refused where it is installed; here only kept for all that are forked
        seccomp.program("own")
    return namespaces.clone_init(policy)


class _Seal:
    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.held: list[str] = []
        """What holds, by the names of launch.MECHANISMS."""
        self.missing: list[str] = []
        """What was optional and could not be had."""

    def _wants(self, mechanism: str) -> bool:
        return mechanism in self._policy.mechanisms or mechanism in self._policy.optional

    def _apply(self, mechanism: str, action: Callable[[], object]) -> bool:
        """Whether it holds. Raises SealError when it is required and does not."""
        if not self._wants(mechanism):
            return False
        try:
            action()
        except (OSError, ValueError, SealError) as error:
            if mechanism in self._policy.mechanisms:
                raise error if isinstance(error, SealError) else SealError(mechanism, str(error)) from error
            self.missing.append(mechanism)
            return False
        self.held.append(mechanism)
        return True

    def _give_up_privileges(self) -> None:
        self._apply("tenant_uid", lambda: privileges.become(*self._ids()))
        self._apply("no_capabilities", privileges.drop_capabilities)
        if self._apply("no_new_privs", privileges.gain_nothing_by_exec):
            privileges.set_dumpable(False)

    def _ids(self) -> tuple[int, int]:
        """User and group that the turn has in the end."""
        uid, gid = self._policy.uid, self._policy.gid
        if uid is None or not self._wants("tenant_uid"):
            return os.getuid(), os.getgid()
        return uid, uid if gid is None else gid


class InitSeal(_Seal):
    """`name`: the turn's folder in each of the policy's cgroups."""

    def __init__(self, policy: Policy, name: str) -> None:
        super().__init__(policy)
        self._name = name
        self._root: roots.PrivateRoot | None = None
        self.listeners: list[int] = []
        """Descriptors, one for each of the policy's ports, listening inside the turn's network; none without one."""

    def prepare(self) -> None:
        """All that needs no workspace."""
        made = namespaces.made
        if "user_namespace" in made:
            privileges.set_dumpable(True)  # else the files of the maps are root's
            with _failing_as("user_namespace"):
                namespaces.map_ids()
        self.held += made
        self.missing += [name for name in namespaces.FLAGS if self._wants(name) and name not in made]
        self._join_cgroups()
        self._apply("cgroup_namespace", namespaces.enter_cgroup_namespace)
        if "uts_namespace" in made:
            socket.sethostname("hermetic")
        if "network_namespace" in made:
            with _failing_as("network_namespace"):
                network.bring_loopback_up()
                self.listeners = [network.listen(port) for port in self._policy.ports]
        self._mount()
        if self._wants("no_capabilities"):
            with suppress(OSError):  # unprivileged and without a user namespace: there is nothing to lose
                privileges.empty_bounding_set()
        _of_init[:] = self.held

    def enter(self, workspace: str) -> None:
        """The workspace is mounted, the host let go, every privilege given up.

        The signal for the parent's death is kept. Whether the parent died meanwhile is for the caller to see.
        """
        with _failing_as("private_root", workspace):
            if self._root is not None:
                self._root.enter(workspace)
            elif self._wants("tenant_uid") and os.stat(workspace).st_uid != (uid := self._ids()[0]):
                raise SealError("tenant_uid", f"without a private root {workspace} must belong to user {uid}")
        self._give_up_privileges()

    def _join_cgroups(self) -> None:
        errors: dict[str, SealError] = {}
        found = set()
        for cgroup in self._policy.cgroups:
            mechanisms = {cgroups.MECHANISMS[one] for one in cgroup.controllers if one in cgroups.MECHANISMS}
            try:
                cgroups.join(cgroup, self._name, self._policy.limits)
                found |= mechanisms
            except OSError as error:
                errors |= {one: SealError(one, str(error)) for one in mechanisms}
        for mechanism in cgroups.MECHANISMS.values():
            self._apply(mechanism, partial(_demand, mechanism in found, errors.get(mechanism), mechanism))

    def _mount(self) -> None:
        if "mount_namespace" in namespaces.made:
            roots.make_slave()
            root = roots.PrivateRoot(
                self._policy,
                self._ids(),
                unprivileged="user_namespace" in namespaces.made,
                sealed_network="network_namespace" in namespaces.made,
            )
            if self._apply("private_root", root.pivot):
                self._root = root
                with _failing_as("private_root"):
                    root.fill()  # there is no way back from here, so this is never optional
        else:
            self._apply("private_root", partial(_demand, False, None, "private_root"))
        if self._apply("proc", self._mount_proc) and self._root is not None:
            self._root.has_proc = True

    def _mount_proc(self) -> None:
        if "mount_namespace" not in namespaces.made or "pid_namespace" not in namespaces.made:
            raise SealError("proc", "it needs a mount and a PID namespace")
        roots.mount_proc()


class AgentSeal(_Seal):
    _rules: landlock.Ruleset | None = None

    def prepare(self) -> None:
        """All that needs no workspace, seccomp's filter included: what is still to come passes it.

        The caller has one thread, the privileges of init and no descriptor that is not the agent's; it must not close
        the one that is opened here.
        """
        host_descriptors.close_all()
        with suppress(OSError):  # no /proc
            privileges.prefer_to_be_killed()
        self._apply("rlimits", self._set_rlimits)
        self._apply("landlock", self._make_rules)
        self._give_up_privileges()
        self._apply("seccomp", lambda: seccomp.install(self._network()))
        for name in self._policy.mechanisms:
            if name not in (*self.held, *_of_init, *_NOT_OURS):
                raise SealError(name, "the seal does not know it, or cannot have it here")

    def enter(self, workspace: str) -> None:
        """The rest, after init has entered."""
        if self._rules is not None:
            with _failing_as("landlock", workspace):
                self._rules.allow(workspace, landlock.WRITE)
                self._rules.enter()

    def _network(self) -> str:
        if "network_namespace" in _of_init:
            return "own"
        return "ruled" if self._wants("network_namespace") else "host"

    def _set_rlimits(self) -> None:
        # A count of processes is kept for each user in each user namespace. As the tenant's user it is shared with the
        # tenant's other turns: better than none. The host's root is not bound by it at all.
        own_count = "user_namespace" in _of_init or (self._wants("tenant_uid") and bool(self._policy.uid))
        privileges.set_rlimits(
            self._policy.limits,
            memory="cgroup_memory" not in _of_init,
            processes="cgroup_pids" not in _of_init and own_count,
        )

    def _make_rules(self) -> None:
        policy = self._policy
        private = "private_root" in _of_init
        rules = landlock.Ruleset(policy.ports if self._network() == "ruled" else None)
        if private:
            rules.allow("/", landlock.LIST)
        for path in (*roots.SYSTEM, *(["/etc"] if private else roots.ETC_OUTSIDE), "/proc"):
            rules.allow(path, landlock.READ, may_be_missing=True)
        for path in (*(f"/dev/{name}" for name in roots.DEVICES), "/dev/pts"):
            rules.allow(path, landlock.DEVICE, may_be_missing=True)
        for path in policy.readable:
            rules.allow(path, landlock.READ)
        for path in (*policy.writable, *(["/tmp", "/dev/shm"] if private else [])):
            rules.allow(path, landlock.WRITE)
        if policy.home is not None:
            rules.allow(policy.home, landlock.WRITE, may_be_missing=not private)
        self._rules = rules
        if rules.abi < landlock.ABI_FOR_SCOPES:  # then it is laid on, but promised to nobody
            raise SealError("landlock", f"this kernel's has no scopes (version {rules.abi}, Linux 6.12 has 6)")


def reap(policy: Policy, name: str) -> str | None:
    """In the launcher, when the init of `name` is reaped: the field of launch.Limits that the kernel enforced.

    Removes the turn's cgroups.
    """
    limits = [cgroups.enforced(cgroup, name) for cgroup in policy.cgroups]
    for cgroup in policy.cgroups:
        cgroups.remove(cgroup, name)
    return next((one for one in ("memory_bytes", "processes") if one in limits), None)


@contextmanager
def _failing_as(mechanism: str, about: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SealError(mechanism, f"{about}: {error}" if about else str(error)) from error


def _demand(there: bool, error: SealError | None, mechanism: str) -> None:
    if not there:
        raise error or SealError(mechanism, "the host gives none to this server")
