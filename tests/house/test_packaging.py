"""What is committed builds, whole, in each of the three ways to install it, and works from where it was installed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[2]
LINKS = ("agent_child", "protocol", "supervisor", "web")
TOP_MODULES = {"__init__", "__main__", "chat", "cli", "client", "doctor", "listing", "tenants", "terminal", "testing"}
"""Besides the four folders; the import contracts give each its place."""

pytestmark = pytest.mark.skipif(
    not (REPOSITORY / ".git").exists(), reason="needs the repository: builds what is committed"
)


def run(*command: str | Path, cwd: Path) -> str:
    """→ stdout. The repository's own source is nowhere on the path of what runs."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST", "COV"))}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**env, "HYPOTHESIS_PROFILE": "quick"},
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Build(NamedTuple):
    clone: Path
    tracked: set[str]
    sdist: Path
    wheel: Path
    unpacked: Path
    """The sdist's own tree; the wheel was built from it."""


def build(folder: Path) -> None:
    run("git", "clone", "--quiet", REPOSITORY, folder / "clone", cwd=folder)
    # Without --sdist or --wheel: the sdist first, then the wheel from the sdist.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "clone", cwd=folder)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")


@pytest.fixture(scope="module")
def built(once_per_run: Callable[[str, Callable[[Path], None]], Path]) -> Build:
    folder = once_per_run("build", build)
    clone = folder / "clone"
    tracked = set(run("git", "ls-files", "-z", cwd=clone).rstrip("\0").split("\0"))
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    (unpacked,) = (folder / "unpacked").iterdir()
    return Build(clone, tracked, sdist, wheel, unpacked)


def environment(folder: Path) -> Path:
    """→ the Python of a new virtual environment that has this one's dependencies, but not this one's hermetic.

    A line in a .pth adds a folder to the path without reading the .pth files in that folder, and an editable hermetic
    is one of those.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    paths = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in paths))
    return python


def install(python: Path, *what: str | Path) -> None:
    run(
        *(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"),
        *("--no-build-isolation", "--ignore-installed", *what),
        cwd=python.parent,
    )


def test_the_wheel_holds_the_packages_committed_files_and_no_others(built: Build) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == {name.removeprefix("src/") for name in built.tracked if name.startswith("src/")}
    assert "hermetic/py.typed" in packed


def test_the_sdist_holds_all_committed_files_but_the_links(built: Build) -> None:
    with tarfile.open(built.sdist) as archive:
        members = {member.name.split("/", 1)[1]: member for member in archive.getmembers() if not member.isdir()}
    assert members.keys() - {"PKG-INFO"} == built.tracked - set(LINKS)
    assert not any(member.issym() or member.islnk() for member in members.values())


def test_the_wheel_says_what_it_needs_and_what_it_starts(built: Build) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        needs = archive.read(metadata).decode()
        starts = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert "\nRequires-Python: >=3.11\n" in needs
    assert "hermetic = hermetic.cli:main" in starts


def test_the_tests_pass_against_the_installed_wheel(built: Build, tmp_path: Path) -> None:
    python = environment(tmp_path / "env")
    install(python, built.wheel)
    where = run(python, "-c", "import hermetic; print(hermetic.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(tmp_path / "env")
    script = (
        "import sys, hermetic, pytest\n"
        f"assert hermetic.__file__ == {where!r}\n"
        "code = pytest.main(['-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', 'tests/protocol'])\n"
        "assert all(module.__file__.startswith(sys.prefix)\n"
        "           for name, module in sys.modules.items()\n"
        "           if name.split('.')[0] == 'hermetic'), 'a module came from elsewhere'\n"
        "sys.exit(code)\n"
    )
    assert " passed" in run(python, "-c", script, cwd=built.unpacked)


def test_every_module_of_the_installed_wheel_can_be_imported(built: Build, tmp_path: Path) -> None:
    python = environment(tmp_path / "env")
    install(python, built.wheel)
    script = (
        "import importlib, json, pkgutil, hermetic\n"
        "names = [module.name for module in pkgutil.walk_packages(hermetic.__path__, 'hermetic.')\n"
        "         if not module.name.endswith('.__main__')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(json.dumps(names))\n"
    )
    names = json.loads(run(python, "-W", "error", "-c", script, cwd=tmp_path))
    assert {"hermetic.protocol.events", "hermetic.supervisor", "hermetic.web", "hermetic.agent_child"} <= set(names)


def test_an_editable_install_is_the_clone_itself(built: Build, tmp_path: Path) -> None:
    python = environment(tmp_path / "env")
    install(python, "--editable", built.clone)
    where = run(python, "-c", "import hermetic; print(hermetic.__file__)", cwd=tmp_path).strip()
    assert Path(where) == built.clone / "src" / "hermetic" / "__init__.py"


@pytest.mark.parametrize("name", LINKS)
def test_a_link_at_the_top_is_relative_and_leads_to_its_folder(built: Build, name: str) -> None:
    link = built.clone / name
    assert stat.S_ISLNK(link.lstat().st_mode)
    assert os.readlink(link) == f"src/hermetic/{name}"
    assert (link / "__init__.py").is_file()


def test_the_source_holds_the_planned_folders_and_no_others(built: Build) -> None:
    top = {name.split("/")[2] for name in built.tracked if name.startswith("src/")}
    assert all(name.startswith("src/hermetic/") for name in built.tracked if name.startswith("src/"))
    modules = {name.removesuffix(".py") for name in top if name.endswith(".py")}
    assert modules <= TOP_MODULES
    assert top - {f"{module}.py" for module in modules} == {*LINKS, "py.typed"}


def test_no_lock_file_names_a_registrys_host(built: Build) -> None:
    locks = [name for name in built.tracked if name.endswith("package-lock.json")]
    assert locks
    for name in locks:
        packages = json.loads((built.clone / name).read_text())["packages"]
        assert [path for path, package in packages.items() if "resolved" in package] == []
        assert all("integrity" in package for path, package in packages.items() if path)


def test_ci_can_be_run(built: Build) -> None:
    assert os.access(built.clone / ".ci" / "run", os.X_OK)
    run("bash", "-n", ".ci/run", cwd=built.clone)
