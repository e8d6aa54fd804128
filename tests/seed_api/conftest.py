from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

sys.path[:0] = [str(Path(__file__).parents[1] / "end_to_end"), str(Path(__file__).parent)]

from stepwise import Stepwise


def _end(server: Stepwise) -> None:
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
    """One for all tests of a module: they share its process, never its sessions."""
    made = Stepwise(tmp_path_factory.mktemp("server"))
    trio.run(made.start)
    yield made
    _end(made)


@pytest.fixture
async def own(tmp_path):
    """One for a single test, which may stop it; not started yet."""
    made = Stepwise(tmp_path)
    yield made
    if made.process:
        _end(made)
