"""Many readers of one turn: CPU of the server process per delivered event, and how late an event is (targets 6 and 7)."""

from __future__ import annotations

from typing import NamedTuple

from bench import probe
from bench.report import Goal, Report, Row, Size, main, ratios, say
from bench.servers import NO_STARLETTE, Contestant, Host, Window, has_starlette

OURS, PEER, LIMIT, SEED = "hermetic", "sse-starlette", "raw trio (limit)", "seed's design"


class Sizes(NamedTuple):
    rounds: int
    window_s: float
    cases: tuple[tuple[int, float], ...]
    """Readers, and events per second of the one turn that they read."""


SIZES: dict[Size, Sizes] = {
    "tiny": Sizes(1, 0.5, ((5, 20),)),
    "quick": Sizes(2, 1.0, ((100, 50), (1000, 5))),
    "full": Sizes(5, 2.0, ((1, 50), (10, 50), (100, 50), (1000, 5))),
}


GOALS = {5: 6, 100: 6, 1000: 7}
"""Readers → the goal's number. One reader, or ten, cost what the loop costs on every server: no goal."""


def measure(size: Size) -> Report:
    sizes = SIZES[size]
    probe.raise_open_files(8192)
    rows: list[Row] = []
    goals: list[Goal] = []
    share = 0.0
    for readers, rate in sizes.cases:
        windows = _windows(readers, rate, sizes)
        share = max(share, *(w.load_share for ws in windows.values() for w in ws))
        case = f"{readers:,} readers × {rate:g}/s"
        cpu = {
            who: Row(f"{case}: CPU per delivery", who, "µs", [w.us_per_delivery for w in ws])
            for who, ws in windows.items()
        }
        p50 = {
            who: Row(f"{case}: delay, median", who, "ms", [w.mark.p50_ms for w in ws]) for who, ws in windows.items()
        }
        p99 = {who: Row(f"{case}: delay, p99", who, "ms", [w.mark.p99_ms for w in ws]) for who, ws in windows.items()}
        rows += [*cpu.values(), *p50.values(), *p99.values()]
        if readers not in GOALS:
            continue
        number = GOALS[readers]
        peer = ratios(cpu[OURS], cpu[PEER]) if PEER in cpu else None
        goals.append(Goal(number, f"{case}: CPU per delivery ≤ 0.25 × sse-starlette", 0.25, peer))
        if number == 6:
            goals.append(Goal(6, f"{case}: CPU per delivery ≤ 1.2 × raw trio", 1.2, ratios(cpu[OURS], cpu[LIMIT])))
        else:
            late = ratios(p99[OURS], p99[PEER]) if PEER in p99 else None
            goals.append(Goal(7, f"{case}: p99 of the delay ≤ 0.25 × sse-starlette", 0.25, late))
    notices = [f"The load client used at most {share:.0%} of one core."]
    if not has_starlette():
        notices.append(NO_STARLETTE)
    return Report("Fan-out: many readers of one turn", rows, goals, notices)


def _windows(readers: int, rate: float, sizes: Sizes) -> dict[str, list[Window]]:
    with Host() as host:
        ours = host.hermetic()
        ours.start_steady(1, rate)
        contestants: list[Contestant] = [ours]
        if has_starlette():
            contestants.append(host.peer("sse_starlette_app", PEER, rate=rate))
        contestants.append(host.peer("raw_trio", LIMIT, rate=rate))
        contestants.append(host.peer("seed", SEED, rate=rate))
        windows: dict[str, list[Window]] = {c.name: [] for c in contestants}
        for contestant in contestants:
            contestant.connect(readers)
        for n in range(sizes.rounds):
            for contestant in contestants[n % len(contestants) :] + contestants[: n % len(contestants)]:
                window = contestant.window(sizes.window_s)
                windows[contestant.name].append(window)
                say(f"fanout {readers} × {rate:g}/s, round {n + 1}: {contestant.name} {window.us_per_delivery:.1f} µs")
        for contestant in contestants:
            if (still := contestant.load.close()) != readers:
                raise RuntimeError(f"{contestant.name} has lost {readers - still} of {readers} readers")
        return windows


if __name__ == "__main__":
    main(measure, __doc__)
