"""Readers of a turn that says nothing: memory of each, and what keeps the server awake (target 10)."""

from __future__ import annotations

import time
from typing import NamedTuple

from bench import probe
from bench.report import Goal, Report, Row, Size, main, ratios, say
from bench.servers import NO_STARLETTE, Contestant, Host, has_starlette

OURS, PEER, LIMIT = "hermetic", "sse-starlette", "raw trio (limit)"


class Sizes(NamedTuple):
    windows: int
    readers: int
    watch_s: float
    """A heartbeat's period where heartbeats shall be seen: each window then has one of every reader."""


SIZES: dict[Size, Sizes] = {"tiny": Sizes(1, 20, 0.3), "quick": Sizes(1, 500, 10), "full": Sizes(5, 5000, 10)}


def measure(size: Size) -> Report:
    sizes = SIZES[size]
    files = probe.raise_open_files(sizes.readers + 1000)
    if files < sizes.readers + 100:
        raise RuntimeError(f"{files} open files are not enough for {sizes.readers} readers; raise `ulimit -Hn`")
    with Host() as host:
        ours = host.hermetic()
        ours.start_steady(1, 1)
        contestants: list[Contestant] = [ours]
        if has_starlette():
            contestants.append(host.peer("sse_starlette_app", PEER))
        contestants.append(host.peer("raw_trio", LIMIT))
        before = {c.name: _warm(c) for c in contestants}
        for contestant in contestants:
            contestant.connect(sizes.readers)
        cpu: dict[str, list[float]] = {c.name: [] for c in contestants}
        wakes: dict[str, list[float]] = {c.name: [] for c in contestants}
        for n in range(sizes.windows):
            for name, (ms, woken) in _watched(contestants, sizes.watch_s).items():
                cpu[name].append(ms)
                wakes[name].append(woken)
                say(f"idle, window {n + 1}: {name} {ms:.0f} ms/s, {woken:.0f} wake-ups/s")
        memory = {c.name: [(probe.rss_kib(c.pid) - before[c.name]) / sizes.readers] for c in contestants}
        for contestant in contestants:
            if (still := contestant.load.close()) != sizes.readers:
                raise RuntimeError(f"{contestant.name} has lost {sizes.readers - still} of its idle readers")
    case = f"{sizes.readers:,} idle readers"
    kib = {who: Row(f"{case}: memory of one (RSS)", who, "KiB", values) for who, values in memory.items()}
    used = {who: Row(f"{case}: CPU", who, "ms/s", values) for who, values in cpu.items()}
    woken_rows = [Row(f"{case}: wake-ups", who, "1/s", values) for who, values in wakes.items()]
    goals = [
        Goal(10, f"{case}: ≤ 32 KiB each", 32, kib[OURS].values),
        Goal(10, f"{case}: memory below sse-starlette's", 1, ratios(kib[OURS], kib[PEER]) if PEER in kib else None),
        Goal(10, f"{case}: CPU ≤ sse-starlette's", 1, ratios(used[OURS], used[PEER]) if PEER in used else None),
    ]
    notices = [
        (
            "Ours and sse-starlette send a heartbeat every 10 s, raw trio none; the peers look at their gate 20 times a "
            "second. Timers that fall due together share a wake-up, so that CPU says more than wake-ups do."
        )
    ]
    if not has_starlette():
        notices.append(NO_STARLETTE)
    return Report("Idle readers", [*kib.values(), *used.values(), *woken_rows], goals, notices)


def _watched(contestants: list[Contestant], seconds: float) -> dict[str, tuple[float, float]]:
    """All at once, for they do nothing. → CPU in ms and wake-ups, each per second."""
    before = {c.name: (probe.cpu_s(c.pid), probe.wakeups(c.pid)) for c in contestants}
    begun = time.monotonic()
    time.sleep(seconds)
    wall = time.monotonic() - begun
    return {
        c.name: (
            (probe.cpu_s(c.pid) - before[c.name][0]) / wall * 1e3,
            (probe.wakeups(c.pid) - before[c.name][1]) / wall,
        )
        for c in contestants
    }


def _warm(contestant: Contestant) -> int:
    """RSS in KiB once everything that a first request loads is there."""
    for _ in range(3):
        contestant.connect(20)
        contestant.load.close()
    time.sleep(0.3)
    return probe.rss_kib(contestant.pid)


if __name__ == "__main__":
    main(measure, __doc__)
