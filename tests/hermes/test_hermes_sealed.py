"""The real hermes-agent inside the seal: level 3, no network, the model's API by the server's proxy, its memory kept."""

from __future__ import annotations

import os

import pytest
from harness import check_whole, text

pytestmark = pytest.mark.timeout(300)

KEY = "sk-real-7f3a9c"


def sealed(provider) -> str:
    return f"""
[seal]
level_max = 3
[agents.hermes.model_api]
url = "{provider.url}"
key_env = "HERMES_TEST_KEY"
"""


async def begin(hermes, provider, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HERMES_TEST_KEY", KEY)
    return await hermes(sealed(provider), url="${OPENAI_BASE_URL}", key="${OPENAI_API_KEY}")


async def test_a_turn_with_a_tool_is_sealed_and_the_key_stays_outside(hermes, provider, monkeypatch) -> None:
    agent = await begin(hermes, provider, monkeypatch)
    session = await agent.server.session()
    script = 'say A look.\ncall terminal {"command": "id -u; env; cat $HERMES_HOME/config.yaml"}\n---\nsay It is done.'
    events = await agent.run(script, session=session)
    check_whole(events)
    assert text(events).split() == ["A", "look.", "It", "is", "done."]
    started = next(data for _, name, data in events if name == "started")
    if os.getuid() == 0:
        assert started["seal"]["level"] == 3
    assert started["seal"]["level"] >= 2
    assert [request["authorization"] for request in provider.wait_requests(2)] == [f"Bearer {KEY}"] * 2
    view = await agent.server.call("GET", f"/v1/sessions/{session}")
    assert KEY not in str(view) and "${OPENAI_BASE_URL}" in str(view)


async def test_the_agents_memory_outlasts_a_turn(hermes, provider, monkeypatch) -> None:
    agent = await begin(hermes, provider, monkeypatch)
    session = await agent.server.session()
    keep = 'call terminal {"command": "echo kept > $HERMES_HOME/note; cat $HERMES_HOME/note"}\n---\nsay Noted.'
    check_whole(await agent.run(keep, session=session))
    assert (agent.home() / "note").read_text() == "kept\n"
    check_whole(await agent.run('call terminal {"command": "cat $HERMES_HOME/note"}\n---\nsay Read.', session=session))
    view = await agent.server.call("GET", f"/v1/sessions/{session}")
    assert "kept" in str(view["messages"][-2:])


async def test_a_command_of_the_agents_reaches_nothing_outside(hermes, provider, monkeypatch) -> None:
    agent = await begin(hermes, provider, monkeypatch)
    session = await agent.server.session()
    outside = agent.folder / "outside.txt"
    outside.write_text("NOT-FOR-AGENTS")
    command = f"cat {outside}; echo x > {agent.folder}/left; curl -sS --max-time 5 {agent.server.url}/v1/health"
    check_whole(await agent.run(f'call terminal {{"command": "{command}"}}\n---\nsay Tried.', session=session))
    view = await agent.server.call("GET", f"/v1/sessions/{session}")
    assert "NOT-FOR-AGENTS" not in str(view) and '"level"' not in str(view["messages"])
    assert not (agent.folder / "left").exists()
