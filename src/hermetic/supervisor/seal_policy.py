"""What holds a turn, decided: levels, and the policy that a launcher gets. Plain functions over values.

A level is a promise about a set of mechanisms (protocol/launch.py names them), so it is computed from what really
holds, never from what was asked for. SECURITY.md says in words what each level keeps from whom.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from hermetic.protocol.events import Seal
from hermetic.protocol.launch import Cgroup, Limits, Policy
from hermetic.supervisor import config

TREE: Final = ("pid_namespace", "mount_namespace", "ipc_namespace", "proc")
"""They let a turn's processes die together, and hide nothing but other processes: level 0 has them where it can."""
ROOMS: Final = (*TREE, "network_namespace", "private_root")
WALLS: Final = ("no_new_privs", "no_capabilities", "seccomp")
COUNTS: Final = ("cgroup_memory", "cgroup_pids")
EXTRAS: Final = ("uts_namespace", "cgroup_namespace", "rlimits")
"""Taken where they can be had; no level depends on them."""


def wanted(level_max: int, *, root: bool) -> list[str]:
    """The mechanisms to try for a level, best first of each kind."""
    own_user = ["tenant_uid"] if root else ["user_namespace"]
    match level_max:
        case 3:
            return [*own_user, *ROOMS, *WALLS, "landlock", *COUNTS, *EXTRAS]
        case 2:
            return [*own_user, *ROOMS, *WALLS, "landlock", *EXTRAS]
        case 1:
            return [*WALLS, "landlock", "rlimits", "subreaper"]
        case _:
            return [*TREE, *([] if root else ["user_namespace"])]


def level_of(held: Collection[str], *, root: bool) -> int:
    """The level that these mechanisms together are."""
    has = set(held)
    walls = has.issuperset(WALLS)
    identity = not root or "tenant_uid" in has
    if has.issuperset(ROOMS) and walls and identity:
        counted, landlocked = has.issuperset(COUNTS), "landlock" in has
        if counted and landlocked:
            return 3
        if landlocked or counted:
            return 2
    return 1 if walls and "landlock" in has else 0


def missing_of(held: Collection[str], *, root: bool) -> list[str]:
    """What level 3 would need beside these."""
    needed = ["tenant_uid"] if root else []
    return [name for name in (*ROOMS, *WALLS, "landlock", *COUNTS, *needed) if name not in held]


def seal_of(held: Collection[str], *, root: bool) -> Seal:
    """As readers are told."""
    once = list(dict.fromkeys(held))  # some hold both the turn's init and its agent
    return Seal(level=level_of(held, root=root), mechanisms=once, missing=missing_of(held, root=root))


def policy_of(
    agent: config.Agent,
    limits: config.Limits,
    *,
    mechanisms: Iterable[str],
    optional: Iterable[str] = (),
    uid: int | None,
    home: str,
    keeps_home: bool,
    readable: Iterable[str],
    ports: Iterable[int] = (),
    cgroups: Iterable[Cgroup] = (),
) -> Policy:
    """`readable`: what the agent's Python needs. `keeps_home`: the adapter's memory lives there, so it outlasts a turn.

    Paths are given as they are; the seal takes them resolved, so the caller resolves them (`real_paths`).
    """
    names = list(mechanisms)
    private_root = "private_root" in names or "private_root" in optional
    ruled = private_root or "landlock" in names or "landlock" in optional
    return Policy(
        mechanisms=names,
        optional=list(optional),
        uid=uid,
        gid=uid,
        readable=[*readable, *agent.python_path, *agent.readable] if ruled else [],
        writable=([home] if keeps_home else []) + agent.writable if ruled else [],
        home=None if keeps_home or not private_root else home,
        ports=list(ports) if "network_namespace" in names or "network_namespace" in optional else [],
        limits=Limits(
            memory_bytes=limits.memory_bytes_max,
            processes=limits.processes_max,
            cpu_share=limits.cpu_share,
            file_bytes=limits.file_bytes_max,
            open_files=limits.open_files_max,
            tmp_bytes=limits.tmp_bytes_max,
            shm_bytes=limits.shm_bytes_max,
        ),
        cgroups=list(cgroups),
    )


def python_paths(interpreter: str) -> list[str]:
    """What a Python of this path reads: its environment's folder, and that of the Python it was made from (PEP 405).

    Looks at `pyvenv.cfg` and links, nothing else. Blocks on the file system.
    """
    program = Path(interpreter)
    environment = program.parent.parent
    found = {str(environment), os.path.realpath(environment)}
    try:
        settings = (environment / "pyvenv.cfg").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        settings = ""
    for line in settings.splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "home" and value.strip():
            found.add(os.path.realpath(Path(value.strip()).parent))
    found.add(str(Path(os.path.realpath(program)).parent.parent))
    return sorted(found)
