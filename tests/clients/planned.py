"""The server that all tests of this folder talk to, and its agent that does as it is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

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
direct = {direct}

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
    def __init__(self, folder: Path, way: str = "direct"):
        super().__init__(folder, TOML.format(direct=json.dumps(way == "direct")))
        self.write_agent("plan", AGENT)

    async def plan(self, *steps: list, **more) -> str:
        return await self.turn(json.dumps(steps), agent="plan", **more)

    async def say_word(self, turn: str) -> None:
        """The word that a `["wait"]` waits for."""
        await self.call("POST", f"/v1/turns/{turn}/messages", {"message": "go on"}, status=202)
