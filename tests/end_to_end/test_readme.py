"""The README says only what works: its agent is run as it stands there, with the configuration that stands there."""

from __future__ import annotations

import re
from pathlib import Path

import trio
from harness import check_whole, names, text

README = (Path(__file__).parents[2] / "README.md").read_text()


def block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    [found] = [b for b in blocks if containing in b]
    return found


async def test_the_readmes_agent_runs_with_the_readmes_configuration(serve):
    toml = block("toml", "[agents.greeter]").replace("/srv/agents", "agents")
    server = await serve(toml, agents={"greeter": block("python", "async def agent")})
    turn = await server.turn("hi", agent="greeter")
    view = await server.wait_state(turn, "waiting")
    [ask] = view["pending"]
    await server.call("POST", f"/v1/turns/{turn}/approvals/{ask['approval_id']}", {"choice": "once"})
    with trio.fail_after(60):
        events = await server.events(turn)
    assert check_whole(events)["state"] == "done"
    assert text(events) == "You said: hi "
    assert {"reasoning", "tool", "tool_complete"} <= set(names(events))


def test_every_file_that_the_readme_points_to_exists():
    root = Path(__file__).parents[2]
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (root / link).is_file(), link


def test_every_command_that_the_readme_shows_exists():
    from hermetic.cli import app

    shown = {line.split()[1] for line in README.splitlines() if line.startswith("hermetic ")}
    assert shown <= set(app), shown - set(app)
