"""The real hermes-agent through the model proxy: it has a placeholder, the provider gets the key."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parents[1] / "egress"))

from harness import check_whole, text
from internet import WayOut

from hermetic.supervisor.egress.model import open_upstream
from hermetic.supervisor.egress.model_rules import DEFAULT_REQUESTS, PLACEHOLDER, Key, parse_provider

pytestmark = pytest.mark.timeout(300)

KEY = "sk-real-7f3a9c"


async def test_a_turn_with_a_tool_streams_through_the_model_proxy(hermes, provider, nursery: trio.Nursery) -> None:
    way_out = WayOut()
    async with open_upstream() as transport:
        await way_out.open(
            nursery, [], provider=parse_provider(provider.url, DEFAULT_REQUESTS, key=Key(KEY)), transport=transport
        )
        agent = await hermes(
            f'[agents.hermes.env]\nOPENAI_BASE_URL = "{way_out.model_url}/v1"\n',
            url="${OPENAI_BASE_URL}",
            key="${OPENAI_API_KEY}",
            env=f"OPENAI_API_KEY={PLACEHOLDER}",
        )
        script = 'say A look.\ncall terminal {"command": "env; cat $HERMES_HOME/config.yaml"}\n---\nsay It is done.'
        session = await agent.server.session()
        events = await agent.run(script, session=session)
        check_whole(events)
        assert text(events).split() == ["A", "look.", "It", "is", "done."]
        view = await agent.server.call("GET", f"/v1/sessions/{session}")
        assert KEY not in str(view), "what its tools can see has no key"
        assert [request["authorization"] for request in provider.wait_requests(2)] == [f"Bearer {KEY}"] * 2
        # It asks a server on loopback what kind it is; each question is told once.
        assert {event.reason for event in way_out.denied} <= {"path_not_allowed"}
        assert len({(event.method, event.path) for event in way_out.denied}) <= 10
        way_out.scope.cancel()
