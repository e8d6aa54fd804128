"""What the server logs: one event a line, and no value of a variable in a traceback."""

from __future__ import annotations

import json

import pytest
import structlog

from hermetic.supervisor.config import Log
from hermetic.supervisor.logs import log_to_stderr


@pytest.fixture(autouse=True)
def restored():
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def fails() -> None:
    environment = {"API_KEY": "sk-in-a-local-variable"}
    raise RuntimeError(f"{len(environment)} is wrong")


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_traceback_names_the_place_and_shows_no_variable(format, capsys):
    log_to_stderr(Log(format=format))
    try:
        fails()
    except RuntimeError:
        structlog.get_logger().exception("broke", turn_id="t")
    said = capsys.readouterr().err
    assert "RuntimeError" in said
    assert "fails" in said
    assert "sk-in-a-local-variable" not in said


def test_json_is_one_object_a_line_with_its_level_and_its_time(capsys):
    log_to_stderr(Log(format="json", level="warning"))
    log = structlog.get_logger()
    log.info("not this")
    log.warning("this", text="two\nlines", value=1)
    [line] = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["event"], said["level"], said["text"], said["value"]) == ("this", "warning", "two\nlines", 1)
    assert said["timestamp"].endswith("Z")
