"""What a measurement gives back, and how it is shown: rows of medians with their spread, and goals with a verdict."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Size = Literal["tiny", "quick", "full"]
"""tiny: for the smoke test, its figures mean nothing. quick: for the author of a change. full: for the document."""

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


@dataclass(frozen=True)
class Row:
    """One quantity of one contestant: a value per round, or only one where it was taken once."""

    what: str
    who: str
    unit: str
    values: Sequence[float]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"{self.what}, {self.who}: no values")

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Goal:
    """A target. `ratios`: one per round, to be at most `limit` in the median (`at_least`: at least). None: it could not
    be measured, `note` says why."""

    number: int
    text: str
    limit: float
    ratios: Sequence[float] | None
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        if not self.ratios:
            return "not measured"
        median = statistics.median(self.ratios)
        return "reached" if (median >= self.limit if self.at_least else median <= self.limit) else "**not reached**"


@dataclass(frozen=True)
class Report:
    """One module's measurement."""

    title: str
    rows: Sequence[Row]
    goals: Sequence[Goal] = ()
    notices: Sequence[str] = field(default_factory=list)
    """What was left out, or what a reader of the figures must know."""


def ratios(ours: Row, theirs: Row) -> list[float]:
    """Round by round: what disturbs the machine disturbs both halves of a round."""
    return [a / b for a, b in zip(ours.values, theirs.values, strict=True)]


def percentile(values: Iterable[float], share: float) -> float:
    """`share` from 0 to 1. The nearest rank: no value that did not occur."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# --- as text ------------------------------------------------------------------------------------------------------


def figure(value: float) -> str:
    """Three significant digits, which is more than two shared cores allow."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Median, and the least and the greatest of the rounds."""
    middle = figure(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({figure(min(values))} – {figure(max(values))})"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in rows)


def as_markdown(report: Report, plot: str | None = None) -> str:
    """`plot`: the address of its picture."""
    parts = [f"### {report.title}"]
    if plot is not None:
        parts.append(f"![{report.title}]({plot})")
    parts.append(
        _table(
            ("what", "who", "median (least – greatest)", "unit", "rounds"),
            [(row.what, row.who, spread(row.values), row.unit, str(len(row.values))) for row in report.rows],
        )
    )
    if report.goals:
        parts.append(goals_table(report.goals))
    parts += report.notices
    return "\n\n".join(parts)


def goals_table(goals: Iterable[Goal]) -> str:
    return _table(
        ("#", "goal", "measured", "verdict"),
        [
            (
                str(goal.number),
                goal.text,
                "; ".join(filter(None, (spread(goal.ratios) if goal.ratios else "", goal.note))) or "–",
                goal.verdict,
            )
            for goal in goals
        ],
    )


def host() -> str:
    cpus = len(os.sched_getaffinity(0))
    return (
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, {cpus} CPU{'s' if cpus != 1 else ''}, "
        f"Linux {platform.release()}, {platform.python_implementation()} {platform.python_version()}"
    )


def document(reports: Sequence[Report], size: Size, seconds: float, plots: Mapping[str, str]) -> str:
    """The generated part of docs/performance.md. `plots`: a report's title → its picture."""
    what = "Full run" if size == "full" else f"{size.capitalize()} run (too short to be quoted)"
    goals = sorted((goal for report in reports for goal in report.goals), key=lambda goal: goal.number)
    return "\n\n".join(
        [
            f"{what}, {host()}; it took {seconds:.0f} s.",
            "### Goals",
            goals_table(goals),
            *(as_markdown(report, plots.get(report.title)) for report in reports),
        ]
    )


def write_section(page: Path, text: str) -> None:
    """Replaces what stands between the two marks, and nothing else. Raises ValueError when a mark is missing."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no {BEGIN} … {END}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


# --- as a command -------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Progress, on stderr: stdout belongs to the tables."""
    print(text, file=sys.stderr, flush=True)


def size_of(arguments: argparse.Namespace) -> Size:
    return "tiny" if arguments.tiny else "quick" if arguments.quick else "full"


def add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="small counts, fewer rounds")
    parser.add_argument("--tiny", action="store_true", help="only to see that it runs")


def main(measure: Callable[[Size], Report], about: str | None) -> None:
    """`python -m bench.NAME [--quick]`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    print(as_markdown(measure(size_of(parser.parse_args()))))
