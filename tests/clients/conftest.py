from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))

from harness import Server

TOML = """
[server]
drain_s = 0.2

[turns]
concurrent_max = 4
grace_s = 1

[stream]
heartbeat_s = 0.1
retry_ms = 20

[agents.plan]
adapter = "function"
target = "plan:agent"
python_path = ["agents"]
"""
"""A heartbeat every 0.1 s, so that an idle stream has many; `retry` of 20 ms, so that a reader is soon back."""

AGENT = '''
import json
import time


def agent(turn):
    """Does what its message says: a list of `["say", text]`, `["tool", text]`, `["flood", count, text]`,
    `["sleep", seconds]`, and `["wait"]` for a word of the user's."""
    for what, *args in json.loads(turn.message):
        if what == "say":
            turn.token(args[0])
        elif what == "tool":
            turn.tool(args[0], {"empty": ""}).complete("")
        elif what == "flood":
            for _ in range(args[0]):
                turn.token(args[1])
        elif what == "sleep":
            time.sleep(args[0])
        else:
            while not turn.steers():
                time.sleep(0.01)
'''


class Planned(Server):
    """A server whose agent does as it is told."""

    async def plan(self, *steps: list, **more) -> str:
        return await self.turn(json.dumps(steps), agent="plan", **more)

    async def say_word(self, turn: str) -> None:
        """The word that a `["wait"]` waits for."""
        await self.call("POST", f"/v1/turns/{turn}/messages", {"message": "go on"}, status=202)

    def events_url(self, turn: str) -> str:
        return f"{self.url}/v1/turns/{turn}/events"


def stop(server: Server) -> None:
    assert server.process
    if server.process.poll() is None:
        server.process.terminate()
        try:
            server.process.wait(60)
        except Exception:
            server.process.kill()
            raise


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One for all tests of a module: they share its processes, never its turns."""
    planned = Planned(tmp_path_factory.mktemp("server"), TOML)
    planned.write_agent("plan", AGENT)
    trio.run(planned.start)
    yield planned
    stop(planned)


@pytest.fixture
async def own_server(tmp_path):
    """One for a single test, which may stop it."""
    planned = Planned(tmp_path, TOML)
    planned.write_agent("plan", AGENT)
    await planned.start()
    yield planned
    stop(planned)
