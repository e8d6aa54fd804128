"""When a turn has ended, nothing of the turn's tree lives, whatever the tree did and whoever killed it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from child_driver import PATIENCE_S, Child, Run

import hermetic
from hermetic.protocol.events import Result

SIMPLE = """
import fcntl, os, signal, time

def daemon(path, write_fd, hops):
    "Forks twice into a session of its own, ignores what it can, holds a lock as long as it lives."
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(write_fd, b"x")
    while True:
        time.sleep(hops)
        if hops < 1 and os.fork():
            os._exit(0)  # on to the next process; the lock goes with the descriptor

def agent(turn):
    read_fd, write_fd = os.pipe()
    for number in range(turn.options["daemons"]):
        daemon(f"lock-{number}", write_fd, turn.options["hops"])
    up = b""
    while len(up) < turn.options["daemons"]:
        up += os.read(read_fd, 100)
    if turn.options["stay"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    turn.token("up")
    if turn.options["stay"]:
        while True:
            time.sleep(600)
"""
STILL, HOPPING = 600, 0.001


def alive(workspace: Path) -> list[str]:
    """Locks that a process still holds."""
    held = []
    for path in workspace.glob("lock-*"):
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(path.name)
    return held


def wait_none_alive(workspace: Path, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while held := alive(workspace):
        assert time.monotonic() < deadline, f"still alive: {held}"
        time.sleep(0.005)


def start(run: Run, namespaces: bool = True, daemons: int = 6, hops: float = STILL, stay: bool = True) -> Child:
    child = run(SIMPLE, namespaces=namespaces, options={"daemons": daemons, "hops": hops, "stay": stay})
    child.wait_text("up")
    return child


def none_in_process_table(child: Child) -> bool:
    """Neither running nor as a zombie."""
    return not any(os.path.exists(f"/proc/{pid}") for pid in (child.spawned.pid, child.spawned.init_pid))


HOLDS = pytest.mark.parametrize(
    ("namespaces", "hops"),
    [(True, STILL), (True, HOPPING), (False, STILL)],
    ids=["namespaces", "namespaces, fork-hopping", "walk"],
)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@HOLDS
def test_daemons_die_when_the_agent_has_ended(run: Run, workspace: Path, namespaces: bool, hops: float) -> None:
    child = start(run, namespaces, hops=hops, stay=False)
    assert child.finish() == Result()
    assert alive(workspace) == []
    assert none_in_process_table(child)


@HOLDS
def test_daemons_and_an_agent_that_ignores_sigterm_die_when_the_supervisor_says_kill(
    run: Run, workspace: Path, namespaces: bool, hops: float
) -> None:
    child = start(run, namespaces, hops=hops)
    assert len(alive(workspace)) == 6
    child.terminate()
    child.kill()
    assert child.wait_exited().signal == "SIGKILL"
    assert alive(workspace) == []
    assert none_in_process_table(child)


@HOLDS
def test_all_die_when_the_supervisors_end_of_the_control_socket_closes(
    run: Run, workspace: Path, namespaces: bool, hops: float
) -> None:
    child = start(run, namespaces, hops=hops)
    spawned = child.spawned
    child.control.close()
    assert child.process.wait(PATIENCE_S) == 0
    assert alive(workspace) == []
    assert not os.path.exists(f"/proc/{spawned.pid}")


@HOLDS
def test_all_die_when_the_launcher_is_killed(run: Run, workspace: Path, namespaces: bool, hops: float) -> None:
    child = start(run, namespaces, hops=hops)
    child.process.kill()
    child.process.wait()
    wait_none_alive(workspace, 2.0)


def test_all_die_when_init_is_killed_from_outside(run: Run, workspace: Path) -> None:
    child = start(run)
    os.kill(child.spawned.init_pid, signal.SIGKILL)
    assert child.wait_exited().signal == "SIGKILL"
    assert alive(workspace) == []


@pytest.mark.parametrize("namespaces", [True, False])
def test_a_supervisor_that_is_gone_at_once_leaves_nothing_behind(namespaces: bool) -> None:
    with Child(namespaces=namespaces) as child:
        child.control.close()
        assert child.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("namespaces", [True, False])
def test_a_kill_before_the_agent_exists_is_reported_as_one(namespaces: bool) -> None:
    with Child(namespaces=namespaces) as child:
        child.kill()
        assert child.wait_exited().signal == "SIGKILL"


def test_an_agent_cannot_kill_init_or_what_answers_for_it(run: Run) -> None:
    child = run("""
        import os, signal
        def agent(turn):
            os.kill(1, signal.SIGKILL)
            os.kill(1, signal.SIGSTOP)
            try:
                os.kill(-1, signal.SIGKILL)  # all but init and itself
            except ProcessLookupError:
                pass
            return "alone"
    """)
    assert child.finish() == Result()
    assert child.text == "alone"


def test_in_a_namespace_the_agent_sees_only_its_own_processes(run: Run) -> None:
    child = run("""
        import json, os
        def agent():
            return json.dumps(sorted(int(name) for name in os.listdir("/proc") if name.isdigit()))
    """)
    child.finish()
    assert json.loads(child.text) == [1, 2]


def test_orphans_are_reaped_while_the_agent_runs(run: Run) -> None:
    child = run("""
        import os, time
        def agent(turn):
            for _ in range(50):
                pid = os.fork()
                if pid == 0:
                    if os.fork() == 0:
                        os._exit(0)
                    os._exit(0)
                os.waitpid(pid, 0)
            deadline = time.monotonic() + 20
            while [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) > 2]:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            return "clean"
    """)
    assert child.finish() == Result()


def test_the_event_stream_ends_only_when_the_last_process_that_could_write_to_it_has(run: Run, workspace: Path) -> None:
    child = start(run, stay=False)
    stdout = child.stdout
    assert stdout
    child.wait_until(lambda _: stdout.fileno() not in child._files)
    wait_none_alive(workspace, 1.0)  # a dying process may close its pipe a moment before its lock
    child.finish()


def test_the_spawned_report_names_processes_as_seen_from_outside(run: Run) -> None:
    child = start(run, daemons=1)
    spawned = child.spawned
    assert Path(f"/proc/{spawned.pid}/comm").read_text() == "hermetic-agent\n"
    assert Path(f"/proc/{spawned.init_pid}/comm").read_text() == "hermetic-init\n"
    assert Path(f"/proc/{child.process.pid}/comm").read_text() == "hermetic-launch\n"
    status = Path(f"/proc/{spawned.pid}/status").read_text()
    assert f"PPid:\t{spawned.init_pid}\n" in status
    assert not spawned.missing
    for name, kind in {"pid": "pid_namespace", "mnt": "mount_namespace", "ipc": "ipc_namespace"}.items():
        assert os.readlink(f"/proc/{spawned.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
        assert kind in spawned.mechanisms


def test_the_walk_reports_that_it_is_only_a_walk(run: Run) -> None:
    child = run("def agent(): return 'x'", namespaces=False)
    assert child.finish() == Result()
    assert child.spawned.mechanisms == ["subreaper"]
    assert child.spawned.missing == [], "nothing else was asked for"


def test_mounts_of_the_tree_stay_in_the_tree(run: Run) -> None:
    before = Path("/proc/mounts").read_text()
    child = run("def agent(turn): turn.clarify('?')")
    child.spawned  # noqa: B018  waits
    assert Path("/proc/mounts").read_text() == before
    child.kill()
    child.wait_exited()


# --- without privileges -------------------------------------------------------------------------------------------

NOBODY = 65534


def python_for_nobody() -> str | None:
    """An interpreter of this version that a user without rights may run; ours may lie in a private home."""
    for path in (os.path.realpath(sys.executable), shutil.which(f"python3.{sys.version_info.minor}", path="/usr/bin")):
        if path and all(os.stat(part).st_mode & 0o001 for part in (Path(path), *Path(path).parents)):
            return path
    return None


@pytest.fixture
def unprivileged() -> dict[str, Any]:
    """How to start a child as a user without privileges; nothing when we are one."""
    if os.geteuid() != 0:
        return {}
    python = python_for_nobody()
    source, packages = str(Path(hermetic.__file__).parents[1]), sysconfig.get_path("platlib")
    if python is None or not all(os.stat(d).st_mode & 0o001 for p in (source, packages) for d in (p, *Path(p).parents)):
        pytest.skip("uid 65534 can run no Python of this version here: the unprivileged child was NOT tested")
    # Another interpreter does not know our packages, and -I takes no PYTHONPATH.
    program = (
        f"import runpy, sys; sys.path[:0] = {[source, packages]!r}; runpy.run_module('hermetic.agent_child.launcher', "
    )
    return {
        "python": (python, "-I", "-c", program + "run_name='__main__', alter_sys=True)"),
        "user": NOBODY,
        "group": NOBODY,
        "extra_groups": [],
    }


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that every user may enter; pytest's own are private."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("namespaces", [True, False], ids=["namespaces", "walk"])
@pytest.mark.parametrize("end", ["result", "kill", "hang up", "launcher killed"])
def test_the_same_holds_for_a_user_without_privileges(
    open_folder: Path, unprivileged: dict[str, Any], namespaces: bool, end: str
) -> None:
    workspace = open_folder / "workspace"
    workspace.mkdir()
    workspace.chmod(0o777)
    (open_folder / "given.py").write_text(SIMPLE)
    with Child(namespaces=namespaces, **unprivileged) as child:
        child.start(
            adapter="function",
            target="given:agent",
            python_path=[str(open_folder)],
            workspace=str(workspace),
            options={"daemons": 3, "hops": STILL, "stay": end != "result"},
        )
        child.wait_text("up")
        spawned = child.spawned
        if not namespaces:
            assert spawned.mechanisms == ["subreaper"]
        else:
            assert {"pid_namespace", "mount_namespace", "proc"} <= set(spawned.mechanisms)
            assert not unprivileged or "user_namespace" in spawned.mechanisms
        if unprivileged and end != "result":  # else the agent may be gone
            assert os.stat(f"/proc/{spawned.pid}").st_uid == NOBODY
        match end:
            case "result":
                assert child.finish() == Result()
            case "kill":
                child.kill()
                assert child.wait_exited().signal == "SIGKILL"
            case "hang up":
                child.control.close()
                assert child.process.wait(PATIENCE_S) == 0
            case _:
                child.process.kill()
                child.process.wait()
                wait_none_alive(workspace, 2.0)
        assert alive(workspace) == []
