from __future__ import annotations

import pytest
import trio
from planned import Planned


def stop(server: Planned) -> None:
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
    planned = Planned(tmp_path_factory.mktemp("server"))
    trio.run(planned.start)
    yield planned
    stop(planned)


@pytest.fixture
async def own_server(tmp_path):
    """One for a single test, which may stop it."""
    planned = Planned(tmp_path)
    await planned.start()
    yield planned
    stop(planned)
