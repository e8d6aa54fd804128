"""Memory of the server stays flat: readers that come and go, turns that start and end (target 12)."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from bench import probe
from bench.raw import first_token, glimpse
from bench.report import Goal, Report, Row, Size, main, say
from bench.servers import Hermetic, Host

REST_S = 1.0
"""Before memory is read: connections that were cut are noticed and closed."""
WARM = 0.1
"""Of the count, before memory is read for the first time."""
AT_A_TIME = 4


class Sizes(NamedTuple):
    connects: int
    turns: int


SIZES: dict[Size, Sizes] = {"tiny": Sizes(20, 3), "quick": Sizes(1000, 40), "full": Sizes(10_000, 1000)}


def measure(size: Size) -> Report:
    sizes = SIZES[size]
    with Host() as host:
        server = host.hermetic()
        server.start_steady(1, 50)
        connects = _grown(server, sizes.connects, _connect)
        turns = _grown(server, sizes.turns, _turn)
    rows, goals = [], []
    for what, (before, after, took) in (
        (f"{sizes.connects:,} connects and disconnects", connects),
        (f"{sizes.turns:,} turns", turns),
    ):
        rows += [
            Row(f"{what}: RSS after warm-up", "hermetic", "MiB", [before / 1024]),
            Row(f"{what}: RSS at the end", "hermetic", "MiB", [after / 1024]),
            Row(f"{what}: rate", "hermetic", "1/s", [took]),
        ]
        goals.append(Goal(12, f"{what}: memory ≤ 1.05 × after warm-up", 1.05, [after / before]))
    notices = [f"Warm-up is a tenth of the count. {AT_A_TIME} clients at a time; each turn in a session of its own."]
    return Report("Flat memory", rows, goals, notices)


def _connect(server: Hermetic) -> None:
    glimpse(server, server.turns[0])


def _turn(server: Hermetic) -> None:
    first_token(server, server.session("hello"))


def _grown(server: Hermetic, count: int, do: Callable[[Hermetic], None]) -> tuple[int, int, float]:
    """→ RSS in KiB after the warm-up and at the end, and how many a second."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(do, [server] * max(1, int(count * WARM))))
        time.sleep(REST_S)
        before, begun = probe.rss_kib(server.pid), time.monotonic()
        list(pool.map(do, [server] * count))
        taken = time.monotonic() - begun
    time.sleep(REST_S)
    after = probe.rss_kib(server.pid)
    say(f"flat, {do.__name__.strip('_')}: {before} → {after} KiB, {count / taken:.1f}/s")
    return before, after, count / taken


if __name__ == "__main__":
    main(measure, __doc__)
