"""An agent with a Python of its own: the same turn, the same promises, and words where something is missing."""

from __future__ import annotations

import os
import site
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from child_driver import Child

from hermetic.protocol.control import Exited
from hermetic.protocol.events import Failed, Ready, Result

Run = Callable[..., Child]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A virtual environment with nothing in it; its packages' folder is next to it."""
    venv.create(tmp_path / "own", with_pip=False, symlinks=True)
    return tmp_path / "own" / "bin" / "python"


@pytest.fixture
def own(bare: Path) -> Path:
    """One with msgspec alone."""
    (packages(bare) / "msgspec").symlink_to(Path(msgspec.__file__).parent)
    return bare


def packages(python: Path) -> Path:
    return next((python.parent.parent / "lib").glob("python*")) / "site-packages"


AGENT = """
    import sys
    def agent(turn):
        print("not an event")
        turn.token(sys.prefix)
"""


def test_the_agent_runs_in_its_own_environment(run: Run, own: Path) -> None:
    child = run(AGENT, interpreter=str(own))
    assert child.finish() == Result()
    assert child.text == str(own.parent.parent)
    assert child.events[0] == Ready(protocol=1, pid=child.events[0].pid, python=sys.version.split()[0])
    assert "not an event" in child.stderr


def test_of_the_servers_packages_it_sees_hermetic_alone(run: Run, own: Path) -> None:
    child = run(
        """
        import importlib.util, sys
        def agent(turn):
            import hermetic.agent_child.turn
            found = [name for name in ("trio", "apsw", "quart") if importlib.util.find_spec(name)]
            return repr((found, [p for p in sys.path if "site-packages" in p]))
        """,
        interpreter=str(own),
    )
    assert child.finish() == Result()
    assert child.text == repr(([], [str(packages(own))]))
    assert not any(site_folder in child.text for site_folder in site.getsitepackages())


def test_it_holds_no_descriptor_that_the_same_python_would_not_hold(run: Run, own: Path) -> None:
    agent = """
        import os, subprocess
        def agent(turn):
            return subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, close_fds=False).stdout
    """
    here, there = run(agent), run(agent, interpreter=str(own))
    assert here.finish() == there.finish() == Result()
    assert here.text == there.text


def test_a_cancel_reaches_it(run: Run, own: Path) -> None:
    child = run("import time\ndef agent(turn):\n    turn.token('x')\n    time.sleep(60)", interpreter=str(own))
    child.wait_text("x")
    child.terminate()
    assert child.finish() == Result(interrupted=True)


def test_a_cancel_before_it_is_up_ends_it(own: Path) -> None:
    with Child(interpreter=str(own)) as child:
        child.terminate()
        assert child.wait_exited() == Exited(exit_code=0)


def test_what_it_leaves_behind_is_killed(run: Run, own: Path) -> None:
    child = run(
        """
        import subprocess
        def agent(turn):
            subprocess.Popen(["setsid", "sleep", "61"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            return "done"
        """,
        interpreter=str(own),
    )
    assert child.finish() == Result()
    assert not os.path.exists(f"/proc/{child.spawned.init_pid}")


def failure(interpreter: str) -> Failed:
    with Child(interpreter=interpreter) as child:
        child.wait_event(Ready)
        last: Any = child.finish()
    assert isinstance(last, Failed)
    assert last.fault == "host"
    return last


def test_without_msgspec_it_says_what_to_install(bare: Path) -> None:
    failed = failure(str(bare))
    assert failed.message.startswith("the agent's environment has no msgspec that works")
    assert "python -m pip install msgspec" in failed.hint


@pytest.mark.parametrize("path", ["/there/is/no/python", "/etc/passwd", "/"])
def test_an_interpreter_that_is_none_is_an_error_that_names_the_setting(path: str) -> None:
    failed = failure(path)
    assert failed.message.startswith("the agent's interpreter cannot be started: ")
    assert "`interpreter`" in failed.hint


def test_a_program_that_is_no_python_ends_the_child(tmp_path: Path) -> None:
    with Child(interpreter="/bin/true") as child:
        child.wait_exited()
        assert child.events == []
