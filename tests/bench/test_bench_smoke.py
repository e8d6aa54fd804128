"""Each measurement runs with tiny counts and gives rows that could be true. Their figures are not looked at."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # `bench` is not installed: it runs from the repository, as `python -m bench` does

from bench import report
from bench.__main__ import ALL
from bench.plot import svg

MODULES = [module.__name__ for module in ALL]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize("name", MODULES)
def test_a_measurement_runs_and_its_rows_are_sane(name: str) -> None:
    # In a fresh process: some run trio, and all leave the test's own descriptors and limits alone.
    code = (
        "import json, sys; from importlib import import_module; from dataclasses import asdict;"
        f"print(json.dumps(asdict(import_module({name!r}).measure('tiny'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["rows"]
    for row in result["rows"]:
        assert row["values"], row
        assert all(math.isfinite(value) and value >= 0 for value in row["values"]), row
        if row["unit"] not in (
            "ms/s",
            "1/s",
            "KiB",
            "count",
        ):  # an idle server may be so idle that there is nothing to see
            assert statistics.median(row["values"]) > 0, row
    shown = [(row["what"], row["who"]) for row in result["rows"]]
    assert len(set(shown)) == len(shown), "no row twice"
    for goal in result["goals"]:
        assert goal["ratios"] or goal["note"] or "sse-starlette" in goal["text"], goal


def test_every_goal_from_1_to_13_has_its_measurement() -> None:
    sources = "\n".join(Path(str(import_module(name).__file__)).read_text() for name in MODULES)
    for number in range(1, 14):
        assert f"Goal({number}," in sources or f"number = {number} " in sources or f"else {number}" in sources, number


@pytest.mark.parametrize("name", MODULES)
def test_every_measurement_knows_every_size(name: str) -> None:
    sizes = import_module(name).SIZES
    assert set(sizes) == set(get_args(report.Size))
    assert getattr(sizes["full"], "rounds", 5) >= 5


def test_a_plot_has_a_bar_for_each_contestant_and_escapes_their_names() -> None:
    rows = [
        report.Row("delay", "hermetic", "ms", [1.0, 3.0, 2.0]),
        report.Row("delay", "<other>", "ms", [4.0]),
        report.Row("alone", "hermetic", "ms", [1.0]),
    ]
    tree = ElementTree.fromstring(svg(report.Report("x", rows)))
    texts = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["delay, ms", "hermetic", "2 (1 – 3)", "<other>", "4"]


# --- the report ---------------------------------------------------------------------------------------------------


def test_a_goal_is_judged_by_the_median_of_its_rounds() -> None:
    assert report.Goal(1, "x", 1.0, [0.5, 0.9, 7.0]).verdict == "reached"
    assert report.Goal(1, "x", 1.0, [0.5, 1.1, 7.0]).verdict == "**not reached**"
    assert report.Goal(1, "x", 1.0, [0.5, 1.1, 7.0], at_least=True).verdict == "reached"
    assert report.Goal(1, "x", 1.0, None, note="no compiler").verdict == "not measured"


def test_a_row_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        report.Row("x", "y", "ms", [])


def test_rounds_are_compared_one_by_one() -> None:
    ours, theirs = report.Row("x", "a", "ms", [1.0, 9.0]), report.Row("x", "b", "ms", [2.0, 3.0])
    assert report.ratios(ours, theirs) == [0.5, 3.0]


def test_only_what_stands_between_the_marks_is_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_section(page, "new")
    assert page.read_text() == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"


def test_a_page_without_the_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing to replace")
    with pytest.raises(ValueError, match="has no"):
        report.write_section(page, "new")
    assert page.read_text() == "nothing to replace"


def test_the_document_has_room_for_the_figures() -> None:
    page = report.PAGE.read_text(encoding="utf-8")
    assert page.count(report.BEGIN) == page.count(report.END) == 1
    assert page.index(report.BEGIN) < page.index(report.END)


def test_a_spread_shows_the_median_and_both_ends() -> None:
    assert report.spread([3.0, 1.0, 2.0]) == "2 (1 – 3)"
    assert report.spread([1234.5]) == "1,234"
