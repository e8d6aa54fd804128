"""Who imports whom: the contracts of pyproject.toml hold, and each of them bites."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

REPOSITORY = Path(__file__).parents[2]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONSAFEPATH": "1"},
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def a_copy(tmp_path: Path) -> Path:
    shutil.copytree(
        REPOSITORY / "src" / "hermetic",
        tmp_path / "src" / "hermetic",
        ignore=shutil.ignore_patterns("__pycache__", "static"),
    )
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(a_copy: Path) -> None:
    run = lint(a_copy)
    assert run.returncode == 0, run.stdout + run.stderr


FORBIDDEN = {
    "the supervisor imports the child": ("supervisor/hub.py", "import hermetic.agent_child.stdio"),
    "the supervisor imports the web": ("supervisor/hub.py", "import hermetic.web.problems"),
    "the child imports the supervisor": ("agent_child/stdio.py", "import hermetic.supervisor.config"),
    "the child imports an event loop": ("agent_child/stdio.py", "import trio"),
    "the protocol imports the supervisor": ("protocol/framing.py", "import hermetic.supervisor.config"),
    "the protocol opens sockets": ("protocol/framing.py", "import socket"),
    "a client imports the server": ("client.py", "import hermetic.web.problems"),
    "the state machine imports trio": ("supervisor/turn.py", "import trio"),
    "the fold imports, by way of another, trio": ("supervisor/summary.py", "import hermetic.supervisor.hub"),
    "the storage seam imports its engine": ("supervisor/store/interface.py", "import hermetic.supervisor.store.sqlite"),
    "a module without a place": ("stray.py", "import trio"),
}


@pytest.mark.parametrize(("module", "line"), FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_is_refused(a_copy: Path, module: str, line: str) -> None:
    with (a_copy / "src" / "hermetic" / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    run = lint(a_copy)
    assert run.returncode == 1
    assert "BROKEN" in run.stdout


@pytest.mark.parametrize("package", ["hermetic.protocol", "hermetic.agent_child"])
def test_only_msgspec_and_the_standard_library_are_needed_by(package: str) -> None:
    graph = grimp.build_graph("hermetic", include_external_packages=True, cache_dir=None)
    imported = {
        target
        for module in {package, *graph.find_descendants(package)}
        for target in graph.find_modules_directly_imported_by(module)
        if not target.startswith("hermetic")
    }
    assert imported - sys.stdlib_module_names <= {"msgspec"}
