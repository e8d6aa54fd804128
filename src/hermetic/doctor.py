"""`hermetic doctor`: what this host can do for a child, and whether a turn could run at all."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from pathlib import Path

import apsw
from msgspec import Struct

from hermetic.protocol.errors import ConfigError
from hermetic.protocol.events import Seal
from hermetic.supervisor.cgroups import Cgroups
from hermetic.supervisor.config import Config, load_config
from hermetic.supervisor.sealing import probe

_NAMESPACES = (
    "Allow user namespaces: sysctl kernel.unprivileged_userns_clone=1 and user.max_user_namespaces; on Ubuntu also "
    "kernel.apparmor_restrict_unprivileged_userns=0; in a container, run it with them allowed. Or run the server as root."
)
_CGROUPS = (
    "Run the server as root, or as a systemd service with Delegate=yes, so that it may make control groups with the "
    "controllers memory and pids."
)
HOW_TO_GET = {
    "pid_namespace": _NAMESPACES,
    "mount_namespace": "Comes with pid_namespace.",
    "ipc_namespace": "Comes with pid_namespace.",
    "network_namespace": "Comes with pid_namespace.",
    "private_root": "Comes with mount_namespace; not where the host's root is an initramfs.",
    "proc": "A fresh /proc cannot be mounted where a container masks parts of its own: run it with /proc unmasked.",
    "no_new_privs": "Every kernel of the last ten years has it.",
    "no_capabilities": "Comes with pid_namespace.",
    "seccomp": "A kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64.",
    "landlock": "Linux 6.12 or newer with Landlock among its security modules (lsm=landlock,… on the kernel's command "
    "line).",
    "cgroup_memory": _CGROUPS,
    "cgroup_pids": _CGROUPS,
    "tenant_uid": "The capabilities SETUID and SETGID for a server that is root, and a file system for workspaces that "
    "can show owners as others (ext4, xfs, btrfs, tmpfs).",
}

LEVELS = (
    "nothing keeps an agent from the files of the server's user; --insecure, for agents that you trust",
    "an agent is kept from files, but sees the host's processes and network; for one tenant",
    "sealed, with limits for each process or tools that can signal their agent",
    "strict",
)


class Data(Struct, frozen=True, kw_only=True):
    path: str
    writable: bool
    problem: str = ""
    free_bytes: int = 0


class Configuration(Struct, frozen=True, kw_only=True):
    path: str | None
    ok: bool
    problem: str = ""
    hint: str = ""


class Report(Struct, frozen=True, kw_only=True):
    """`level` is the seal's, at the top because programs ask for it first."""

    level: int
    ok: bool
    """A turn could run here."""
    seal: Seal
    python: str
    sqlite: str
    kernel: str
    data: Data
    config: Configuration


async def examine(config_path: Path | None, data: Path | None) -> Report:
    """Looks, starts one child and kills it, and leaves nothing behind."""
    configuration = Configuration(path=None if config_path is None else str(config_path), ok=True)
    try:
        config = load_config(config_path, data=data)
    except ConfigError as error:
        configuration = Configuration(path=str(config_path), ok=False, problem=str(error), hint=error.hint)
        config = load_config(None, data=data) if data else Config()
    directory = examine_data(Path(config.server.data).expanduser())
    cgroups = Cgroups.open()
    try:
        sealing = await probe(3, cgroups)
    finally:
        cgroups.close()
    seal = sealing.seal
    return Report(
        level=seal.level,
        ok=configuration.ok and directory.writable and sealing.can_run,
        seal=seal,
        python=platform.python_version(),
        sqlite=apsw.sqlite_lib_version(),
        kernel=f"{platform.system()} {platform.release()}",
        data=directory,
        config=configuration,
    )


def examine_data(path: Path) -> Data:
    """Whether a file can be made there or, while the folder does not exist yet, in the nearest one that does."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"hermetic")
            file.flush()
            os.fsync(file.fileno())
        return Data(path=str(path), writable=True, free_bytes=shutil.disk_usage(existing).free)
    except OSError as error:
        return Data(path=str(path), writable=False, problem=f"{existing}: {error.strerror}")


def as_text(report: Report) -> str:
    """For people: one line per fact, what is missing with how to get it."""
    data, config = report.data, report.config
    facts = [
        (True, "Python", report.python),
        (True, "SQLite", report.sqlite),
        (True, "kernel", report.kernel),
        (config.ok, "configuration", config.problem or config.path or "defaults"),
        (data.writable, "data directory", f"{data.path}: {data.problem or f'{data.free_bytes / 2**30:.1f} GiB free'}"),
        (None, "seal level", f"{report.level} of 3: {LEVELS[report.level]}"),
    ]
    lines = [_row(ok, name, text) for ok, name, text in facts]
    if config.hint:
        lines.append(_row(None, "", config.hint))
    lines += ["", "What holds a child here:", *(_row(True, name, "") for name in report.seal.mechanisms)]
    if report.seal.missing:
        lines += ["", "What is missing, and how to get it:"]
        lines += [_row(False, name, HOW_TO_GET.get(name, "")) for name in report.seal.missing]
    lines += [
        "",
        "Turns can run here." if report.ok else "No turn can run here until what is marked ✗ above is mended.",
    ]
    return "\n".join(line.rstrip() for line in lines)


def _row(ok: bool | None, name: str, text: str) -> str:
    mark = " " if ok is None else "✓" if ok else "✗"
    return f"  {mark} {name:<20} {text}"
