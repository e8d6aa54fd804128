"""Fifty turns, a reader each, 50 events per second: what a delivery costs with the journal (target 8), and what the
journal costs (target 9).

The journal's own price is taken with and without readers: with them it hides behind what they cost.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from bench import probe
from bench.report import Goal, Report, Row, Size, main, ratios, say
from bench.servers import NO_STARLETTE, SETTLE_S, Contestant, Hermetic, Host, Window, has_starlette

OURS, MEMORY = "hermetic", "hermetic, journal in memory"
PEER, LIMIT = "sse-starlette, no journal", "raw trio, no journal (limit)"


class Sizes(NamedTuple):
    rounds: int
    window_s: float
    turns: int
    rate: float


SIZES: dict[Size, Sizes] = {
    "tiny": Sizes(1, 0.5, 2, 20),
    "quick": Sizes(2, 1.0, 20, 50),
    "full": Sizes(5, 2.0, 50, 50),
}
MANY: dict[Size, Sizes] = {
    "tiny": Sizes(1, 0.5, 3, 10),
    "quick": Sizes(2, 1.0, 60, 12.5),
    "full": Sizes(5, 2.0, 200, 12.5),
}
"""The same number of events per second from four times as many turns. Not for a goal."""


def measure(size: Size) -> Report:
    sizes = SIZES[size]
    with Host() as host:
        ours = host.hermetic(OURS, turns_max=sizes.turns)
        memory = host.hermetic(MEMORY, journal=False, turns_max=sizes.turns)
        for server in ours, memory:
            server.start_steady(sizes.turns, sizes.rate)
        alone: dict[str, list[float]] = {OURS: [], MEMORY: []}
        for n in range(sizes.rounds):
            for server in (ours, memory) if n % 2 == 0 else (memory, ours):
                alone[server.name].append(_unread(server, sizes))
                say(f"turns, nobody reads, round {n + 1}: {server.name} {alone[server.name][-1]:.1f} µs")
        contestants: list[Contestant] = [ours, memory]
        if has_starlette():
            contestants.append(host.peer("sse_starlette_app", PEER, turns=sizes.turns, rate=sizes.rate))
        contestants.append(host.peer("raw_trio", LIMIT, turns=sizes.turns, rate=sizes.rate))
        windows: dict[str, list[Window]] = {c.name: [] for c in contestants}
        for contestant in contestants:
            contestant.connect(sizes.turns)
        for n in range(sizes.rounds):
            for contestant in _turned(contestants, n):
                window = contestant.window(sizes.window_s)
                windows[contestant.name].append(window)
                say(f"turns, round {n + 1}: {contestant.name} {window.us_per_delivery:.1f} µs")

    many = _many(MANY[size])

    case = f"{sizes.turns} turns × 1 reader × {sizes.rate:g}/s"
    cpu = {
        who: Row(f"{case}: CPU per event", who, "µs", [w.us_per_delivery for w in ws]) for who, ws in windows.items()
    }
    p50 = {who: Row(f"{case}: delay, median", who, "ms", [w.mark.p50_ms for w in ws]) for who, ws in windows.items()}
    p99 = {who: Row(f"{case}: delay, p99", who, "ms", [w.mark.p99_ms for w in ws]) for who, ws in windows.items()}
    bare = {who: Row("the same, nobody reads: CPU per event", who, "µs", values) for who, values in alone.items()}
    text = f"{sizes.turns * sizes.rate:,.0f} events/s: CPU with the journal ≤ 1.15 × without"
    goals = [
        Goal(8, f"{case}: CPU per event, journal on, ≤ 0.75 × sse-starlette without a journal", 0.75,
             ratios(cpu[OURS], cpu[PEER]) if PEER in cpu else None),
        Goal(8, f"{case}: p99 of the delay ≤ sse-starlette's", 1.0, ratios(p99[OURS], p99[PEER]) if PEER in p99 else None),
        Goal(9, text, 1.15, ratios(cpu[OURS], cpu[MEMORY])),
        Goal(9, f"{text}, nobody reads", 1.15, ratios(bare[OURS], bare[MEMORY])),
    ]  # fmt: skip
    rows = [*cpu.values(), *p50.values(), *p99.values(), *bare.values(), *many]
    share = max(w.load_share for ws in windows.values() for w in ws)
    notices = [
        f"The load client used at most {share:.0%} of one core.",
        (
            "sse-starlette and raw trio say their events in the server process itself; ours come from a child each, "
            "through a pipe, are decoded, checked and journaled."
        ),
    ]
    if not has_starlette():
        notices.append(NO_STARLETTE)
    return Report("Many turns, one reader each", rows, goals, notices)


def _many(sizes: Sizes) -> list[Row]:
    with Host() as host:
        ours = host.hermetic(OURS, turns_max=sizes.turns)
        ours.start_steady(sizes.turns, sizes.rate)
        contestants: list[Contestant] = [ours]
        if has_starlette():
            contestants.append(host.peer("sse_starlette_app", PEER, turns=sizes.turns, rate=sizes.rate))
        contestants.append(host.peer("raw_trio", LIMIT, turns=sizes.turns, rate=sizes.rate))
        windows: dict[str, list[Window]] = {c.name: [] for c in contestants}
        for contestant in contestants:
            contestant.connect(sizes.turns)
        for n in range(sizes.rounds):
            for contestant in _turned(contestants, n):
                windows[contestant.name].append(contestant.window(sizes.window_s))
                cost = windows[contestant.name][-1].us_per_delivery
                say(f"{sizes.turns} turns, round {n + 1}: {contestant.name} {cost:.1f} µs")
    case = f"{sizes.turns} turns × 1 reader × {sizes.rate:g}/s"
    made = [Row(f"{case}: CPU per event", who, "µs", [w.us_per_delivery for w in ws]) for who, ws in windows.items()]
    return made + [Row(f"{case}: delay, p99", who, "ms", [w.mark.p99_ms for w in ws]) for who, ws in windows.items()]


def _turned(contestants: list[Contestant], n: int) -> list[Contestant]:
    """Nobody is always first."""
    n %= len(contestants)
    return contestants[n:] + contestants[:n]


def _unread(server: Hermetic, sizes: Sizes) -> float:
    """CPU µs per event that nobody reads, with as many events as were really journaled."""
    said = _last_seqs(server)
    before = probe.cpu_s(server.pid)
    with server.gate.opened():
        time.sleep(SETTLE_S + sizes.window_s)
    time.sleep(SETTLE_S)  # what is on its way arrives
    used = probe.cpu_s(server.pid) - before
    return used / (_last_seqs(server) - said) * 1e6


def _last_seqs(server: Hermetic) -> int:
    """Of all its turns together; the gate is closed, so they stand still."""
    return sum(int(server.call("GET", path.removesuffix("/events"))["last_seq"]) for path in server.turns)


if __name__ == "__main__":
    main(measure, __doc__)
