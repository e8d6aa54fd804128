"""The examples of docs/streams.md do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio
from readers import HERE, NODE, PATIENCE_S

pytestmark = pytest.mark.xdist_group("stream_wire")

DOCUMENT = Path(__file__).parents[2] / "docs" / "streams.md"


def example(language: str, number: int = 0, of: int = 1) -> str:
    codes = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert len(codes) == of
    return codes[number]


async def test_the_python_example_shows_the_text(server):
    turn = await server.plan(["say", "Hello, "], ["say", "wörld"])
    scope: dict = {}
    exec(example("python", 0, 2), scope)  # noqa: S102 - our own document
    shown: list[str] = []
    with trio.fail_after(PATIENCE_S):
        await scope["follow"](server.url, turn, shown.append, None)
    assert "".join(shown) == "Hello, wörld"


async def test_the_python_example_of_all_turns_shows_whose_text_it_is(server):
    scope: dict = {}
    exec(example("python", 1, 2), scope)  # noqa: S102 - our own document
    shown: list[str] = []
    session = await server.session(agent="plan")
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            begun, ended = trio.Event(), trio.Event()

            def show(session_id, turn_id, event):
                if session_id == session:
                    shown.append(getattr(event, "text", ""))
                    if type(event).__name__ == "StreamEnd":
                        ended.set()

            nursery.start_soon(scope["follow_all"], server.url, show, lambda turns: begun.set())
            await begun.wait()
            await server.plan(["say", "Hello, "], ["say", "wörld"], session=session)
            await ended.wait()
            nursery.cancel_scope.cancel()
    assert "".join(shown) == "Hello, wörld"


async def test_the_javascript_example_shows_the_text_and_ends(server, tmp_path):
    if NODE is None or not (HERE / "node_modules").is_dir():
        pytest.skip("needs node, and `npm ci` in tests/clients: the example was NOT tested")
    turn = await server.plan(["say", "Hello, "], ["say", "wörld"])
    library = (HERE / "node_modules" / "eventsource" / "dist" / "index.js").as_uri()
    script = tmp_path / "example.mjs"
    script.write_text(
        f'import {{ EventSource }} from "{library}";\n'
        f'const url = "{server.url}/v1/turns/{turn}/events";\n'
        "const show = (text) => process.stdout.write(text);\n" + example("js")
    )
    with trio.fail_after(PATIENCE_S):
        done = await trio.run_process([NODE, str(script)], capture_stdout=True, stdin=None)
    assert done.stdout.decode() == "Hello, wörld"


def test_the_shell_example_names_the_address():
    assert "/v1/turns/$TURN/events?after=12" in example("sh")
