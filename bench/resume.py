"""Resuming a long turn: first byte against that of a short one, and what live readers feel meanwhile (target 11)."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple, Self

from bench.raw import first_byte_ms, read_whole
from bench.report import Goal, Report, Row, Size, main, percentile, ratios, say
from bench.servers import Hermetic, Host

SHORT = 100


class Sizes(NamedTuple):
    rounds: int
    long: int
    """Events of the long turn."""
    tries: int
    window_s: float
    readers: int
    """Live ones, of a turn of 50 events per second."""


SIZES: dict[Size, Sizes] = {
    "tiny": Sizes(1, 1000, 2, 0.5, 2),
    "quick": Sizes(3, 20_000, 10, 1.0, 20),
    "full": Sizes(5, 100_000, 30, 3.0, 20),
}


def measure(size: Size) -> Report:
    sizes = SIZES[size]
    with Host() as host:
        server = host.hermetic()
        server.start_steady(1, 50)
        server.connect(sizes.readers)
        short, long = (server.run("counted", {"events": n}) for n in (SHORT, sizes.long))
        say(f"resume: {long['last_seq']:,} events in {long['ended_at'] - long['started_at']:.1f} s")
        starts = {
            f"{SHORT}-event turn, from its start": (short, 0),
            f"{sizes.long:,}-event turn, from its start": (long, 0),
            f"{sizes.long:,}-event turn, from its middle": (long, sizes.long // 2),
            f"{sizes.long:,}-event turn, its last 50": (long, sizes.long - 50),
        }
        bytes_: dict[str, list[float]] = {what: [] for what in starts}
        quiet: list[float] = []
        busy: list[float] = []
        whole: list[float] = []
        for n in range(sizes.rounds):
            for what, (view, after) in starts.items():
                path = f"{view['events_url']}?after={after}"
                tries = [first_byte_ms(server, path) for _ in range(sizes.tries)]
                bytes_[what].append(percentile(tries, 0.5))
            quiet.append(server.window(sizes.window_s).mark.p99_ms)
            with Resuming(server, f"{long['events_url']}?after=0") as resuming:
                busy.append(server.window(sizes.window_s).mark.p99_ms)
            whole.append(resuming.seconds_each)
            say(f"resume, round {n + 1}: live p99 {quiet[-1]:.1f} ms, meanwhile {busy[-1]:.1f} ms")
    rows = [Row(f"first byte: {what}", "hermetic", "ms", values) for what, values in bytes_.items()]
    rows += [
        Row(f"live readers ({sizes.readers} × 50/s): p99 of the delay, nobody resumes", "hermetic", "ms", quiet),
        Row(
            f"live readers ({sizes.readers} × 50/s): p99 of the delay, one resumes all the time", "hermetic", "ms", busy
        ),
        Row(f"all of the {sizes.long:,}-event turn to one reader", "hermetic", "s", whole),
    ]
    first = rows[0]
    goals = [
        Goal(11, f"first byte of {row.what.removeprefix('first byte: ')} ≤ 5 × that of a {SHORT}-event turn", 5, ratios(row, first))
        for row in rows[1:4]
    ]  # fmt: skip
    goals.append(
        Goal(11, "live readers' p99 meanwhile ≤ 2 × quiet", 2, [b / q for b, q in zip(busy, quiet, strict=True)])
    )
    return Report("Resume of a long turn", rows, goals)


class Resuming:
    """A reader in a thread that reads the whole turn again and again."""

    def __init__(self, server: Hermetic, path: str) -> None:
        self._server = server
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.seconds_each = 0.0

    def _run(self) -> None:
        taken: list[float] = []
        while not taken or not self._stop.is_set():
            begun = time.monotonic()
            read_whole(self._server, self._path)
            taken.append(time.monotonic() - begun)
        self.seconds_each = percentile(taken, 0.5)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


if __name__ == "__main__":
    main(measure, __doc__)
