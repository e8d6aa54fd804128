"""Every dependency is there for a reason that is written down."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGE = (REPOSITORY / "docs" / "dependencies.md").read_text(encoding="utf-8")


def documented(heading: str) -> list[str]:
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section is not None
    return re.findall(r"^\| `([^`]+)` \| .*\w.* \|$", section[1], re.MULTILINE)


def named(requirements: list[str]) -> list[str]:
    return [re.split(r"[<>=~!\[; ]", requirement, maxsplit=1)[0] for requirement in requirements]


def test_what_is_needed_to_run_has_its_reason() -> None:
    assert documented("To run") == named(PROJECT["dependencies"])


def test_what_is_needed_to_test_and_to_lint_has_its_reason() -> None:
    extras = PROJECT["optional-dependencies"]
    assert documented("To test") == named(extras["test"])
    assert documented("To lint") == named(extras["lint"])


def test_what_is_needed_of_javascript_has_its_reason() -> None:
    packages = {
        name
        for file in REPOSITORY.glob("tests/*/package.json")
        for name in json.loads(file.read_text(encoding="utf-8"))["dependencies"]
    }
    assert documented("JavaScript, in tests only") == sorted(packages)
