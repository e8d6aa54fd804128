from __future__ import annotations

import pytest

from hermetic.supervisor.config import Agent
from hermetic.supervisor.environment import turn_options


@pytest.mark.parametrize(
    ("options", "asked", "given"),
    [
        ({}, ["web", "file"], ["web", "file"]),
        ({}, [], None),
        ({}, None, None),
        ({}, "web", None),
        ({}, [1, {}, "web"], ["web"]),
        ({"toolsets": ["file", "todo"]}, ["terminal", "file"], ["file"]),
        ({"toolsets": ["file", "todo"]}, ["terminal"], ["file", "todo"]),
        ({"toolsets": ["file", "todo"]}, [], ["file", "todo"]),
    ],
)
def test_a_turn_gets_the_toolsets_that_it_asks_for_of_those_that_the_host_allows(options, asked, given):
    agent = Agent(adapter="hermes", options={**options, "max_iterations": 3})
    found = turn_options(agent, {"toolsets": asked})
    assert (found.get("toolsets"), found["max_iterations"]) == (given, 3)
    assert agent.options == {**options, "max_iterations": 3}, "the next turn's are as configured"


def test_other_agents_have_no_toolsets():
    agent = Agent(adapter="function", target="m:f", options={"a": 1})
    assert turn_options(agent, {"toolsets": ["web"]}) == {"a": 1}
