"""`python -m bench`: all measurements, their figures into docs/performance.md and their plots into docs/plots.

--quick prints them and leaves the document alone, unless --write is given.
"""

from __future__ import annotations

import argparse
import time

from bench import ceiling, fanout, first_event, flat, hostile, idle, resume, start, tenants, turns
from bench.plot import svg
from bench.report import PAGE, add_sizes, as_markdown, document, goals_table, say, size_of, write_section

PLOTS = "plots"
"""The folder beside the page."""
ALL = (ceiling, start, first_event, fanout, turns, idle, resume, flat, hostile, tenants)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--write", action="store_true", help="write the document after a short run, too")
    given = parser.parse_args()
    size = size_of(given)
    begun = time.monotonic()
    reports = []
    for module in ALL:
        since = time.monotonic()
        reports.append(module.measure(size))
        say(f"--- {module.__name__}: {time.monotonic() - since:.0f} s")
        print(as_markdown(reports[-1]), end="\n\n", flush=True)
    print(goals_table(goal for report in reports for goal in report.goals))
    if size == "full" or given.write:
        plots = {}
        for module, report in zip(ALL, reports, strict=True):
            name = f"{PLOTS}/{module.__name__.rpartition('.')[2]}.svg"
            (PAGE.parent / PLOTS).mkdir(exist_ok=True)
            (PAGE.parent / name).write_text(svg(report), encoding="utf-8")
            plots[report.title] = name
        write_section(PAGE, document(reports, size, time.monotonic() - begun, plots))
        say(f"--- written: {PAGE}")


if __name__ == "__main__":
    main()
