"""The server inside somebody else's trio program, which may cancel it at any time."""

from __future__ import annotations

import trio
from harness import processes_with

from hermetic.client import Client
from hermetic.protocol.api import NewSession
from hermetic.supervisor.config import load_config
from hermetic.web.server import serve_task

TOML = """
[turns]
grace_s = 2
[server]
drain_s = 0.1
bind = "127.0.0.1:0"
[agents.mine]
adapter = "function"
target = "mine:agent"
python_path = ["."]
"""
AGENT = """
import subprocess, sys, time
def agent(turn):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", turn.message])
    turn.token("said")
    time.sleep(600)
"""


async def test_a_cancelled_server_ends_its_turns_as_it_would_on_sigterm(tmp_path):
    (tmp_path / "hermetic.toml").write_text(TOML)
    (tmp_path / "mine.py").write_text(AGENT)
    config = load_config(tmp_path / "hermetic.toml", data=tmp_path / "data")
    marker = f"embedded-{tmp_path.name}"
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(lambda task_status: serve_task(config, task_status=task_status))
            async with Client(url) as client:
                session = await client.create_session(NewSession(agent="mine"))
                turn = await client.start_turn(session.session_id, marker)
                while not processes_with(marker):
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
        assert processes_with(marker) == []
        async with trio.open_nursery() as nursery:
            url = await nursery.start(lambda task_status: serve_task(config, task_status=task_status))
            async with Client(url) as client:
                assert (await client.get_turn(turn.turn_id)).state == "cancelled"
                last = (await client.get_session(session.session_id)).messages[-1]
                assert (last["content"], last["partial"]) == ("said", True)
            nursery.cancel_scope.cancel()
