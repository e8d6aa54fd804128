from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

sys.path[:0] = [str(Path(__file__).parents[1] / "end_to_end"), str(Path(__file__).parent)]

from stepwise import Stepwise


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One for all tests of a module: they share its process, never its sessions."""
    made = Stepwise(tmp_path_factory.mktemp("server"))
    trio.run(made.start)
    yield made
    made.end()


@pytest.fixture
async def own(tmp_path):
    """One for a single test, which may stop it; not started yet."""
    made = Stepwise(tmp_path)
    yield made
    made.end()
