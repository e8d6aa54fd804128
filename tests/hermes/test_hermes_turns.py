"""The real hermes-agent under the real server, with a scripted provider: what a person at a page would see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import check_whole, names, processes_with, text, wait_gone

pytestmark = pytest.mark.timeout(300)


async def test_a_plain_turn(hermes) -> None:
    agent = await hermes()
    session = await agent.server.session()
    events = await agent.run("think I should greet.\nsay Hello there, friend.", session=session)
    done = check_whole(events)
    assert text(events) == "Hello there, friend."
    assert "".join(d["text"] for _, name, d in events if name == "reasoning") == "I should greet."
    assert done["usage"]["input_tokens"] == 11
    assert done["usage"]["output_tokens"] == 7
    assert done["usage"]["context_length"] == 128000
    assert done["usage"]["last_prompt_tokens"] == 11
    assert 0 < done["usage"]["threshold_tokens"] < 128000
    [request] = agent.provider.wait_requests(1)
    view = await agent.server.call("GET", f"/v1/sessions/{session}")
    assert [m["role"] for m in view["messages"]] == ["user", "assistant"]
    assert view["messages"][1]["content"] == "Hello there, friend."
