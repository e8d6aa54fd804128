"""The two commands say what is missing on a machine where they cannot work."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    return tmp_path


def make(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "PYTHON"))}
    return subprocess.run(
        ["make", *map(str, words)],
        check=False,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def made_before(folder: Path) -> None:
    """A virtual environment as far as the Makefile looks: a Python that is new enough and has pip."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    script(folder / ".venv" / "bin" / "python", "echo True")


@pytest.mark.parametrize("target", ["run", "test", "lint"])
def test_without_python_it_says_how_to_name_one(checkout: Path, target: str) -> None:
    done = make(checkout, target, "PYTHON=python-that-is-not-there")
    assert done.returncode != 0
    assert "there is no python-that-is-not-there on the PATH" in done.stderr
    assert f"make PYTHON=/path/to/python3.11 {target}" in done.stderr


def test_a_python_that_is_too_old_is_named_with_its_version(checkout: Path) -> None:
    old = script(checkout / "old", 'case "$1" in -V) echo Python 3.10.4;; *) exit 1;; esac')
    done = make(checkout, "run", f"PYTHON={old}")
    assert done.returncode != 0
    assert f"Hermetic needs Python 3.11 or newer; {old} is Python 3.10.4." in done.stderr


def test_a_python_without_ensurepip_gets_the_name_of_the_package(checkout: Path) -> None:
    bare = script(checkout / "bare", 'case "$2" in *ensurepip*) exit 1;; esac')
    done = make(checkout, "run", f"PYTHON={bare}")
    assert done.returncode != 0
    assert "apt-get install python3-venv" in done.stderr


def test_a_second_run_installs_nothing(checkout: Path) -> None:
    made_before(checkout)
    (checkout / ".venv" / "run.stamp").write_text(f"{checkout}\n")
    script(checkout / ".venv" / "bin" / "hermetic", 'echo "started: $*"')
    done = make(checkout, "run", "ARGS=--bind 127.0.0.1:0")
    assert done.stdout == "started: serve --data ./.hermetic --bind 127.0.0.1:0\n"


def test_an_environment_that_was_moved_is_made_again(checkout: Path) -> None:
    made_before(checkout)
    (checkout / ".venv" / "run.stamp").write_text("/another/folder\n")
    done = make(checkout, "--dry-run", "run")
    assert "-m venv --clear .venv" in done.stdout
    assert "install" in done.stdout


def test_an_environment_is_brought_up_to_date_when_the_dependencies_change(checkout: Path) -> None:
    made_before(checkout)
    stamp = checkout / ".venv" / "run.stamp"
    stamp.write_text(f"{checkout}\n")
    os.utime(stamp, (1, 1))
    done = make(checkout, "--dry-run", "run")
    assert "-m venv" not in done.stdout
    assert "install" in done.stdout
