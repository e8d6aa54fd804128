from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from internet import Internet, WayOut


@pytest.fixture
async def internet(nursery: trio.Nursery) -> Internet:
    return Internet(nursery)


@pytest.fixture
async def way_out() -> AsyncIterator[WayOut]:
    out = WayOut()
    yield out
    out.scope.cancel()
