"""Our own server with its journal in memory: what the journal on disk costs is the difference.

The command line is `hermetic`'s own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hermetic import cli
from hermetic.supervisor import supervisor
from hermetic.testing import MemoryStore


@asynccontextmanager
async def open_memory(_path: Path) -> AsyncIterator[MemoryStore]:
    yield MemoryStore()


if __name__ == "__main__":
    supervisor.open_sqlite = open_memory  # type: ignore[attr-defined, assignment]
    cli.main()
