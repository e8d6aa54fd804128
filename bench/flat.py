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

NOTICE_S = 1.0
"""For the server to notice that clients have hung up."""
WARM = 0.1
"""Of the count, before memory is read for the first time."""
AT_A_TIME = 4


class Sizes(NamedTuple):
    connects: int
    turns: int
    rest_s: float
    """At most, before memory is read: until the server has closed what its clients have closed. Longer than the 30 s
    after which it closes any connection without a request."""


SIZES: dict[Size, Sizes] = {
    "tiny": Sizes(20, 3, 0),
    "quick": Sizes(1000, 40, 0),
    "full": Sizes(10_000, 1000, 35),
}


def measure(size: Size) -> Report:
    sizes = SIZES[size]
    with Host() as host:
        server = host.hermetic()
        server.start_steady(1, 50)
        connects = _grown(server, sizes.connects, _connect, sizes.rest_s)
        turns = _grown(server, sizes.turns, _turn, sizes.rest_s)
    rows, goals = [], []
    for what, (before, after, took, held) in (
        (f"{sizes.connects:,} connects and disconnects", connects),
        (f"{sizes.turns:,} turns", turns),
    ):
        rows += [
            Row(f"{what}: RSS after warm-up", "hermetic", "MiB", [before / 1024]),
            Row(f"{what}: RSS at the end", "hermetic", "MiB", [after / 1024]),
            Row(f"{what}: rate", "hermetic", "1/s", [took]),
            Row(
                f"{what}: connections held {NOTICE_S:g} s after the client has closed them all",
                "hermetic",
                "count",
                [held],
            ),
        ]
        goals.append(Goal(12, f"{what}: memory ≤ 1.05 × after warm-up", 1.05, [after / before]))
    notices = [f"Warm-up is a tenth of the count. {AT_A_TIME} clients at a time; each turn in a session of its own."]
    if not sizes.rest_s:
        notices.append("A short run reads memory while connections that are closed are still held.")
    return Report("Flat memory", rows, goals, notices)


def _connect(server: Hermetic) -> None:
    glimpse(server, server.turns[0])


def _turn(server: Hermetic) -> None:
    first_token(server, server.session("hello"))


def _grown(server: Hermetic, count: int, do: Callable[[Hermetic], None], rest_s: float) -> tuple[int, int, float, int]:
    """→ RSS in KiB after the warm-up and at the end, how many a second, and connections that were held at the end."""
    quiet = probe.sockets(server.pid)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(do, [server] * max(1, int(count * WARM))))
        _rest(server, quiet, rest_s)
        before, begun = probe.rss_kib(server.pid), time.monotonic()
        list(pool.map(do, [server] * count))
        taken = time.monotonic() - begun
    held = _rest(server, quiet, rest_s)
    after = probe.rss_kib(server.pid)
    say(f"flat, {do.__name__.strip('_')}: {before} → {after} KiB, {count / taken:.1f}/s, {held} connections held")
    return before, after, count / taken, held


def _rest(server: Hermetic, quiet: int, rest_s: float) -> int:
    """Until the server holds no more sockets than before. → how many more it held at first."""
    time.sleep(NOTICE_S)
    held = max(0, probe.sockets(server.pid) - quiet)
    deadline = time.monotonic() + rest_s
    while probe.sockets(server.pid) > quiet and time.monotonic() < deadline:
        time.sleep(0.5)
    return held


if __name__ == "__main__":
    main(measure, __doc__)
