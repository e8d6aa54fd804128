"""Launchers as a whole server has them: settings, messages to users, and nothing left of them."""

from __future__ import annotations

from pathlib import Path

import trio
from harness import check_whole, text


def descendants(pid: int) -> set[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                pass
    found, more = set(), {pid}
    while more := {child for child, parent in parents.items() if parent in more} - found:
        found |= more
    return found


def alive(pids: set[int]) -> set[int]:
    found = set()
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.add(pid)
        except OSError:
            pass
    return found


AGENT = '[agents.mine]\ntarget = "mine:agent"\npython_path = ["agents"]\n'


async def test_a_server_that_is_killed_leaves_no_launcher_no_standby_and_no_turn(serve):
    code = "import time\ndef agent(turn):\n    turn.token('on')\n    time.sleep(600)\n"
    server = await serve(AGENT + "standby = 2\n", agents={"mine": code})
    turns = [await server.turn("go", agent="mine") for _ in range(2)]
    for turn in turns:
        await server.wait_state(turn, "running")
    with trio.fail_after(20):
        while len(everyone := descendants(server.process.pid)) < 1 + 2 * (2 + 2):
            await trio.sleep(0.01)
    server.kill()
    with trio.fail_after(5):
        while alive(everyone):
            await trio.sleep(0.01)


async def test_another_value_in_the_env_file_is_for_the_next_turn(serve, tmp_path):
    env = tmp_path / "profile.env"
    env.write_text("VALUE=first\n")
    code = "import os\ndef agent(turn):\n    return os.environ['VALUE']\n"
    server = await serve(AGENT + f'[profiles.default]\nenv_file = "{env}"\n', agents={"mine": code})
    assert text(await server.run("go", agent="mine")) == "first"
    assert text(await server.run("go", agent="mine")) == "first"
    env.write_text("VALUE=second\n")
    assert text(await server.run("go", agent="mine")) == "second"


async def test_a_preload_that_fails_is_told_to_the_user_with_the_module(serve):
    server = await serve(AGENT + 'preload = ["mine"]\n', agents={"mine": "1 / 0"})
    end = check_whole(await server.run("go", agent="mine"))
    assert (end["state"], end["fault"]) == ("failed", "agent")
    assert end["message"] == 'preloading the module "mine" failed: ZeroDivisionError: division by zero'


async def test_a_cold_agent_runs_as_a_warm_one_does(serve):
    code = "import os\ndef agent(turn):\n    print('printed')\n    return f'{turn.message} {os.getpid()}'\n"
    server = await serve(AGENT + 'start = "cold"\n', agents={"mine": code})
    events = await server.run("go", agent="mine")
    assert check_whole(events)["state"] == "done"
    assert text(events) == "go 2"


async def test_a_turn_that_is_stopped_while_its_launcher_starts_ends_at_once(serve):
    server = await serve(AGENT + 'preload = ["mine"]\n', agents={"mine": "import time; time.sleep(600)"})
    turn = await server.turn("go", agent="mine")
    await server.wait_state(turn, "starting")
    await server.call("POST", f"/v1/turns/{turn}/cancel", status=202)
    with trio.fail_after(10):
        assert check_whole(await server.events(turn))["state"] == "cancelled"
