"""The page in a real browser against the real server: every scenario of page.mjs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import hermetic.web
from hermetic.protocol import events

HERE = Path(__file__).parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCENARIO_S = 120
"""A bound for a machine that runs other tests on every core."""
SCREENSHOTS = os.environ.get("HERMETIC_SCREENSHOTS")
"""Where the pictures go; `make screenshots` sets docs/screenshots."""

SCENARIOS = re.findall(r"^  async (\w+)\(", (HERE / "page.mjs").read_text(encoding="utf-8"), re.MULTILINE)
WITH_RESTARTS = {"a_killed_server_loses_nothing", "a_drained_server_says_so_and_comes_back"}
DEMO = {
    "a_turn_streams",
    "an_approval_is_answered_by_click",
    "stop_keeps_what_was_said",
    "files_are_attached_by_choosing_dropping_and_pasting",
}
"""These also run with the agent that a new user meets: the demo."""

CONFIG = f"""
default_agent = "scripted"
[server]
upload_bytes_max = 100000
[turns]
concurrent_max = 4
[limits]
message_bytes_max = 4000
[agents.scripted]
adapter = "function"
target = "scripted_model:agent"
python_path = ["{HERE}"]
description = "A model that says what it is asked to say."
[agents.demo]
adapter = "demo"
description = "Works on files without a model, and asks before it runs a command."
"""

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or shutil.which("node") is None or not (HERE / "node_modules" / "playwright-core").is_dir(),
    reason="needs chromium, node, and `npm ci` in tests/page",
)


class Server:
    """The real server as its users start it."""

    def __init__(self, folder: Path, toml: str) -> None:
        self.folder = folder
        (folder / "hermetic.toml").write_text(toml)
        self.url = ""
        self.start()

    def start(self) -> None:
        """Returns when it is ready; a second time on the same port."""
        bind = self.url.removeprefix("http://") or "127.0.0.1:0"
        command = [sys.executable, "-m", "hermetic", "serve", "--bind", bind, "--data", str(self.folder / "data")]
        self.process = subprocess.Popen(
            [*command, "--config", str(self.folder / "hermetic.toml")],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(rb"ready: (http://[^/ ]+)", line):
                self.url = found[1].decode()
                return
        raise AssertionError(f"the server ended with {self.process.wait()} before it was ready")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, CONFIG)
    yield server
    server.close()


@pytest.fixture
def serve_demo(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, "")
    yield server
    server.close()


def play(url: str, scenario: str, pictures: Path) -> None:
    command = ["node", str(HERE / "page.mjs"), url, scenario, str(CHROMIUM), str(pictures)]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SCENARIO_S)
    assert run.returncode == 0, run.stdout + run.stderr


@needs_browser
@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name not in WITH_RESTARTS])
def test_the_page(serve: Server, scenario: str, tmp_path: Path) -> None:
    play(serve.url, scenario, Path(SCREENSHOTS or tmp_path))


@needs_browser
@pytest.mark.parametrize("scenario", sorted(DEMO))
def test_the_page_with_the_demo_agent(serve_demo: Server, scenario: str, tmp_path: Path) -> None:
    play(serve_demo.url, scenario, tmp_path)


@needs_browser
@pytest.mark.parametrize("scenario", sorted(WITH_RESTARTS))
def test_the_page_when_the_server_goes_away(serve: Server, scenario: str, tmp_path: Path) -> None:
    command = ["node", str(HERE / "page.mjs"), serve.url, scenario, str(CHROMIUM), str(tmp_path)]
    said = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as page:
        assert page.stdout is not None
        for line in page.stdout:
            said += line
            if line == "kill the server\n":
                serve.process.kill()
                serve.close()
            if line == "wait for the end of the server\n":
                serve.close()
            if line == "start the server\n":
                serve.start()
    assert page.returncode == 0, said


def test_no_scenario_is_forgotten() -> None:
    assert set(SCENARIOS) > DEMO | WITH_RESTARTS


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_page_knows_every_event_that_a_reader_can_meet() -> None:
    fold = Path(hermetic.web.__file__).parent / "static" / "turn.js"
    script = f"import {{ EVENT_NAMES }} from {str(fold)!r}; console.log(EVENT_NAMES.join(' '))"
    run = subprocess.run(["node", "--input-type=module", "-e", script], check=True, capture_output=True, text=True)
    known = {str(event.__struct_config__.tag) for event in get_args(events.ReaderEvent)}
    assert set(run.stdout.split()) == known


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("file", ["fold.test.mjs", "markdown.test.mjs"])
def test_what_needs_no_browser(file: str) -> None:
    command = ["node", "--test", str(HERE / file)]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
