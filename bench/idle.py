"""Readers of a turn that says nothing: memory of each, and what keeps the server awake (target 10)."""

from __future__ import annotations

import time
from typing import NamedTuple

from bench import probe
from bench.report import Goal, Report, Row, Size, main, ratios, say
from bench.servers import NO_STARLETTE, Contestant, Host, has_starlette

OURS, PEER, LIMIT = "hermetic", "sse-starlette", "raw trio (limit)"


class Sizes(NamedTuple):
    rounds: int
    readers: int
    watch_s: float
    """More than a heartbeat (10 s) where heartbeats shall be seen."""


SIZES: dict[Size, Sizes] = {"tiny": Sizes(1, 20, 0.3), "quick": Sizes(1, 500, 3), "full": Sizes(2, 4000, 12)}


def measure(size: Size) -> Report:
    sizes = SIZES[size]
    files = probe.raise_open_files(sizes.readers + 1000)
    if files < sizes.readers + 100:
        raise RuntimeError(f"{files} open files are not enough for {sizes.readers} readers; raise `ulimit -Hn`")
    memory: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    wakes: dict[str, list[float]] = {}
    for n in range(sizes.rounds):
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
            watched = {c.name: (probe.cpu_s(c.pid), probe.wakeups(c.pid)) for c in contestants}
            begun = time.monotonic()
            time.sleep(sizes.watch_s)
            wall = time.monotonic() - begun
            for c in contestants:
                used, woken = probe.cpu_s(c.pid) - watched[c.name][0], probe.wakeups(c.pid) - watched[c.name][1]
                cpu.setdefault(c.name, []).append(used / wall * 1e3)
                wakes.setdefault(c.name, []).append(woken / wall)
                memory.setdefault(c.name, []).append((probe.rss_kib(c.pid) - before[c.name]) / sizes.readers)
                say(f"idle, round {n + 1}: {c.name} {memory[c.name][-1]:.1f} KiB, {woken / wall:.0f} wake-ups/s")
            for c in contestants:
                if (still := c.load.close()) != sizes.readers:
                    raise RuntimeError(f"{c.name} has lost {sizes.readers - still} of {sizes.readers} idle readers")
    case = f"{sizes.readers:,} idle readers"
    kib = {who: Row(f"{case}: memory of one (RSS)", who, "KiB", values) for who, values in memory.items()}
    rows = [*kib.values()]
    rows += [Row(f"{case}: CPU", who, "ms/s", values) for who, values in cpu.items()]
    rows += [Row(f"{case}: wake-ups", who, "1/s", values) for who, values in wakes.items()]
    goals = [
        Goal(10, f"{case}: ≤ 32 KiB each", 32, kib[OURS].values),
        Goal(10, f"{case}: memory below sse-starlette's", 1, ratios(kib[OURS], kib[PEER]) if PEER in kib else None),
        Goal(10, "no wake-ups but one heartbeat timer for all (≤ 2/s)", 2, wakes[OURS]),
    ]
    notices = [
        (
            f"Each watch lasts {sizes.watch_s:g} s. Ours sends a heartbeat every 10 s, sse-starlette every 15 s, raw trio "
            "none; the peers look at their gate 20 times a second, which is in their wake-ups."
        )
    ]
    if not has_starlette():
        notices.append(NO_STARLETTE)
    return Report("Idle readers", rows, goals, notices)


def _warm(contestant: Contestant) -> int:
    """RSS in KiB once everything that a first request loads is there."""
    for _ in range(3):
        contestant.connect(20)
        contestant.load.close()
    time.sleep(0.3)
    return probe.rss_kib(contestant.pid)


if __name__ == "__main__":
    main(measure, __doc__)
