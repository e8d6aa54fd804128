"""The page in a real browser: every scenario of page.mjs, against the scripted server and against the real one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mock_server import Server

HERE = Path(__file__).parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCENARIO_S = 90

ANY_SERVER = [
    "a_turn_streams",
    "a_reload_in_the_middle_shows_the_same_text",
    "an_approval_is_answered_by_click",
    "an_approval_is_denied_by_keyboard_after_a_reload",
    "stop_keeps_what_was_said",
    "two_tabs_show_the_same_turn_live",
    "text_is_never_markup",
    "a_busy_session_shows_its_turn_and_keeps_what_was_typed",
    "sessions_are_renamed_archived_found_and_deleted",
    "an_unknown_session_says_so",
    "a_phone_has_no_sideways_scroll",
]
SCRIPTED = [
    "a_dropped_stream_goes_on_without_a_double",
    "a_crash_shows_why_also_after_a_reload",
    "a_question_is_answered",
    "steering_reaches_the_agent",
    "a_problem_is_shown_where_it_happened",
    "five_thousand_lines_do_not_freeze_the_page",
]

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or shutil.which("node") is None or not (HERE / "node_modules" / "playwright-core").is_dir(),
    reason="needs chromium, node, and `npm ci` in tests/page",
)


@pytest.fixture
def mock_url() -> Iterator[str]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.url
    server.shutdown()
    thread.join()
    server.server_close()


def serve(data: Path, bind: str = "127.0.0.1:0") -> tuple[subprocess.Popen[bytes], str]:
    """The real server as its users start it, and its URL once it says that it is ready."""
    command = [sys.executable, "-m", "hermetic", "serve", "--bind", bind, "--data", str(data)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(rb"ready: (http://[^/ ]+)", line):
            return process, found[1].decode()
    raise AssertionError(f"the server ended with {process.wait()} before it was ready")


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(30)
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture
def server_url(tmp_path: Path) -> Iterator[str]:
    process, url = serve(tmp_path)
    yield url
    end(process)


def play(url: str, scenario: str) -> None:
    command = ["node", str(HERE / "page.mjs"), url, scenario, str(CHROMIUM)]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SCENARIO_S)
    assert run.returncode == 0, run.stdout + run.stderr


@needs_browser
@pytest.mark.parametrize("scenario", ANY_SERVER + SCRIPTED)
def test_the_page_against_a_scripted_server(mock_url: str, scenario: str) -> None:
    play(mock_url, scenario)


@needs_browser
@pytest.mark.parametrize("scenario", ANY_SERVER)
def test_the_page_against_the_real_server(server_url: str, scenario: str) -> None:
    play(server_url, scenario)


@needs_browser
def test_the_page_after_a_kill_of_the_server_in_the_middle(tmp_path: Path) -> None:
    server, url = serve(tmp_path)
    command = ["node", str(HERE / "page.mjs"), url, "a_killed_server_loses_nothing", str(CHROMIUM)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as page:
        assert page.stdout is not None
        said = page.stdout.readline()
        server.kill()
        end(server)
        server, _ = serve(tmp_path, bind=url.removeprefix("http://"))
        said += page.communicate(timeout=SCENARIO_S)[0]
    end(server)
    assert page.returncode == 0, said.decode()


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_fold_of_events_without_a_browser() -> None:
    command = ["node", "--test", str(HERE / "fold.test.mjs")]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
