"""Who imports whom: the contracts of pyproject.toml hold, and each of them bites."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import grimp
import pytest

REPOSITORY = Path(__file__).parents[2]


def lint(folder: Path, added: Iterable[tuple[str, str]] = ()) -> tuple[int, str]:
    """→ exit code and output of the linter for a copy of the package, with a line added to some of its modules."""
    package = folder / "src" / "hermetic"
    shutil.copytree(REPOSITORY / "src" / "hermetic", package, ignore=shutil.ignore_patterns("__pycache__", "static"))
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    for module, line in added:
        with (package / module).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"],
        cwd=folder,
        # Wide enough to wrap no line.
        env={**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONSAFEPATH": "1", "COLUMNS": "1000"},
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_contracts_hold(tmp_path: Path) -> None:
    code, said = lint(tmp_path)
    assert code == 0, said


FORBIDDEN = {
    "the supervisor imports the child": ("supervisor/hub.py", "hermetic.agent_child.stdio"),
    "the supervisor imports the web": ("supervisor/hub.py", "hermetic.web.problems"),
    "the child imports the supervisor": ("agent_child/stdio.py", "hermetic.supervisor.config"),
    "the child imports an event loop": ("agent_child/stdio.py", "trio"),
    "the protocol imports the supervisor": ("protocol/framing.py", "hermetic.supervisor.config"),
    "the protocol opens sockets": ("protocol/framing.py", "socket"),
    "a client imports the server": ("client.py", "hermetic.web.problems"),
    "the state machine imports trio": ("supervisor/turn.py", "trio"),
    "the fold imports trio by way of another module": ("supervisor/summary.py", "hermetic.supervisor.hub"),
    "the storage seam imports its engine": ("supervisor/store/interface.py", "hermetic.supervisor.store.sqlite"),
    "the web imports the engine": ("web/problems.py", "apsw"),
}


def lint_forbidden(folder: Path) -> None:
    code, said = lint(folder, [(module, f"import {target}") for module, target in FORBIDDEN.values()])
    assert code == 1
    (folder / "said").write_text(said, encoding="utf-8")


@pytest.fixture
def said_of_forbidden(once_per_run: Callable[[str, Callable[[Path], None]], Path]) -> str:
    return (once_per_run("forbidden", lint_forbidden) / "said").read_text(encoding="utf-8")


@pytest.mark.parametrize(("module", "target"), FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_is_refused(said_of_forbidden: str, module: str, target: str) -> None:
    importer = "hermetic." + module.removesuffix(".py").replace("/", ".")
    assert re.search(rf"{re.escape(importer)} -> {re.escape(target)} \(l\.\d+\)", said_of_forbidden)


def test_every_contract_bites(said_of_forbidden: str) -> None:
    assert "0 kept" in said_of_forbidden


def test_a_module_at_the_top_needs_a_place(tmp_path: Path) -> None:
    code, said = lint(tmp_path, [("stray.py", "import trio")])
    assert code == 1
    assert "- hermetic.stray" in said


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
