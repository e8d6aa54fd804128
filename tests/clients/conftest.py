from __future__ import annotations

import pytest
import trio
from planned import Planned

WAYS = ["direct", "plain"]
"""How events reach a reader (`stream.direct`): written by the task that has news, or by the reader's own."""


@pytest.fixture(scope="module", params=WAYS)
def server(request, tmp_path_factory):
    """One for all tests of a module: they share its processes, never its turns."""
    planned = Planned(tmp_path_factory.mktemp("server"), request.param)
    trio.run(planned.start)
    yield planned
    planned.end()


@pytest.fixture(params=WAYS)
async def own_server(request, tmp_path):
    """One for a single test, which may stop it."""
    planned = Planned(tmp_path, request.param)
    await planned.start()
    yield planned
    planned.end()
