"""Sealed turns for tests: who runs them, the policy they have by default, and what came of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hermetic

TENANT, USER = 23456, 12345
"""The tenant's user under a server that is root; and a server that is not."""
USERS = ["root", "user"] if os.getuid() == 0 else ["user"]
NAMESPACES = [f"{name}_namespace" for name in ("pid", "mount", "ipc", "uts", "network", "cgroup")]
FULL = [*NAMESPACES, "proc", "private_root", "no_capabilities", "no_new_privs", "seccomp", "landlock", "rlimits"]
WITHOUT_NAMESPACES = ["no_capabilities", "no_new_privs", "seccomp", "landlock", "rlimits"]
_DRIVER = Path(__file__).with_name("seal_driver.py")
PATIENCE_S = 120


@contextmanager
def folder() -> Iterator[Path]:
    """One that other users may pass through, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="hermetic-seal-") as path:
        os.chmod(path, 0o755)
        yield Path(path).resolve()


class Host:
    """`kind`: of USERS. Its `workspace` belongs to the server's user, as a server makes it."""

    def __init__(self, kind: str, path: Path) -> None:
        self.kind = kind
        self.path = path
        self.server_uid = 0 if kind == "root" else os.getuid() or USER
        self.turn_uid = TENANT if kind == "root" else self.server_uid
        self.workspace = self.make("workspace")

    def make(self, name: str, mode: int = 0o700) -> Path:
        made = self.path / name
        made.parent.mkdir(0o755, parents=True, exist_ok=True)
        made.mkdir()
        self.give(made, mode)
        return made

    def write(self, name: str, text: str = "text", mode: int = 0o600) -> Path:
        made = self.path / name
        made.write_text(text)
        self.give(made, mode)
        return made

    def give(self, path: Path, mode: int) -> None:
        path.chmod(mode)
        if os.getuid() == 0:
            os.chown(path, self.server_uid, self.server_uid)

    def policy(self, mechanisms: list[str] = FULL, without: str | None = None, **fields: Any) -> dict[str, Any]:
        """What a server of this kind asks for."""
        names = [name for name in mechanisms if name != without]
        policy: dict[str, Any] = {"mechanisms": names, "home": "/home/agent", "readable": []}
        if self.kind == "root":
            policy["mechanisms"] = [*names, "tenant_uid"] if without != "tenant_uid" else names
            policy |= {"uid": TENANT, "gid": TENANT}
        if without == "private_root" or "private_root" not in mechanisms:
            policy["home"] = None
        return policy | fields

    def run(self, script: str = "", policy: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        """The report of a turn that ran, with what its script said at the top."""
        result = self.try_to_run(script, policy, **fields)
        assert "said" in result, result.get("crashed") or result
        return result | result["said"]

    def try_to_run(self, script: str = "", policy: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        order: dict[str, Any] = {
            "policy": policy or self.policy(),
            "workspace": str(self.workspace),
            "uid": self.server_uid if os.getuid() == 0 else None,
            "script": textwrap.dedent(script),
        }
        if "before" in fields:
            fields["before"] = textwrap.dedent(fields["before"])
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(hermetic.__file__).parent.parent)}
        done = subprocess.run(
            [sys.executable, "-W", "error", str(_DRIVER)],
            check=False,
            input=json.dumps(order | fields),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=environment,
        )
        assert done.stdout, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result | {"stderr": done.stderr}
