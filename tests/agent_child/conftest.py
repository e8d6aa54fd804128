from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from child_driver import Child, Run


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts a child with this source as its agent (`agent` in a module of its own) and returns it, started."""
    with ExitStack() as stack:

        def start(
            source: str,
            *,
            namespaces: bool = True,
            interpreter: str | None = None,
            env: dict[str, str] | None = None,
            **fields: Any,
        ) -> Child:
            number = len(list(tmp_path.glob("given_*.py")))
            (tmp_path / f"given_{number}.py").write_text(textwrap.dedent(source))
            workspace = tmp_path / "workspace"
            workspace.mkdir(exist_ok=True)
            child = stack.enter_context(Child(namespaces=namespaces, interpreter=interpreter, env=env))
            base = {
                "adapter": "function",
                "target": f"given_{number}:agent",
                "python_path": [str(tmp_path)],
                "workspace": str(workspace),
            }
            child.start(**(base | fields))
            return child

        yield start
