"""Nothing of a turn lives after it, however it tries to hide and however it ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from world import World, alive, run_as_user_works, wait_until

HIDER = """
import ctypes, os, signal, subprocess, sys, time

DAEMON = '''
import os, signal, sys, time
for number in (1, 2, 3, 13, 15):
    signal.signal(number, signal.SIG_IGN)
ctypes = __import__("ctypes"); ctypes.CDLL(None).prctl(15, b"hides-" + sys.argv[1].encode()[-8:], 0, 0, 0)
while True:
    time.sleep(0.05)
    if os.fork():  # never the same process for long
        os._exit(0)
    os.setsid()
'''

def run(turn):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(6):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv(sys.executable, [sys.executable, "-I", "-c", DAEMON, turn.message])
            os._exit(0)
    time.sleep(0.5)
    open("up", "w").close()
    turn.token("up")
    if turn.message.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if turn.message.startswith("done"):
        return "done"
    while True:
        time.sleep(1)
"""


def hiding(mark: str) -> list[int]:
    """Processes of the host with the daemons' name."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "comm").read_text().strip() == f"hides-{mark[-8:]}"[:15]:
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


@pytest.fixture(params=[(3, "root"), (2, "root"), (2, "user")], ids=["root-3", "root-2", "user-2"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    level, user = request.param
    if user == "user" and not run_as_user_works():
        pytest.skip("needs root and user namespaces, to be an ordinary user")
    world = World(level, user, more="[agents.hider]\nadapter = 'function'\ntarget = 'hider:run'\npython_path = ['agents']"
                                    "\n[turns]\ngrace_s = 0.3\nexit_s = 0.3")  # fmt: skip
    world.server.write_agent("hider", HIDER)
    world.start()
    yield world
    world.close()


def begin(world: World, message: str) -> str:
    session = world.new_session("hider")
    turn = world.begin(session, message)
    if not message.startswith(("done", "crash")):
        wait_until(lambda: (Path(world._workspace(session)) / "up").exists())
        wait_until(lambda: hiding(message))
    return turn


def test_a_cancel_a_crash_and_a_result_leave_nothing(world: World) -> None:
    cancelled = begin(world, "cancel-1")
    begin(world, "crash-22")
    begin(world, "done-333")
    assert world.http.post(f"/v1/turns/{cancelled}/cancel").status_code == 202
    for session_turn, mark in ((cancelled, "cancel-1"),):
        assert world.events(session_turn)[-1]["event"] == "stream_end"
        assert hiding(mark) == []
    for mark in ("crash-22", "done-333"):
        wait_until(lambda mark=mark: not hiding(mark))


def test_the_death_of_the_server_leaves_nothing(world: World) -> None:
    begin(world, "orphaned")
    pids = [world.neighbours_pid, *hiding("orphaned")]
    world.server.process.send_signal(signal.SIGKILL)
    world.server.process.wait()
    wait_until(lambda: not hiding("orphaned") and not any(map(alive, pids)))
    for base in Path("/sys/fs/cgroup").rglob(f"hermetic-{world.server.process.pid}-*"):
        # Folders stay until the next server; nobody lives in them.
        assert not any(file.read_text().strip() for file in base.rglob("cgroup.procs"))
    world.http.close()


def test_the_next_server_sweeps_what_a_dead_one_left(world: World) -> None:
    begin(world, "to-sweep")
    dead = world.server.process.pid
    world.server.process.send_signal(signal.SIGKILL)
    world.server.process.wait()
    world.http.close()
    import trio

    trio.run(world.server.start)
    assert not list(Path("/sys/fs/cgroup").rglob(f"hermetic-{dead}-*"))
