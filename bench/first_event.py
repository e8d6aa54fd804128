"""From the POST of a turn, on a new connection, to its first event at a reader (target 5)."""

from __future__ import annotations

from typing import NamedTuple

from bench.raw import Begun, first_token, post_to_first
from bench.report import Goal, Report, Row, Size, main, percentile, say
from bench.servers import Host

OURS, COLD, SEED = "hermetic", 'hermetic, start = "cold"', "seed's design (a thread)"


class Sizes(NamedTuple):
    rounds: int
    turns: int


SIZES: dict[Size, Sizes] = {"tiny": Sizes(1, 2), "quick": Sizes(3, 10), "full": Sizes(5, 40)}


def measure(size: Size) -> Report:
    sizes = SIZES[size]
    taken: dict[str, list[list[Begun]]] = {OURS: [], COLD: [], SEED: []}
    with Host() as host:
        ours = host.hermetic()
        seed = host.peer("seed", SEED)
        for _ in range(2):
            ours.run("hello")  # its launcher, pages of Python and of the modules into memory
            ours.run("hello_cold")
        for n in range(sizes.rounds):
            sessions = [ours.session("hello") for _ in range(sizes.turns)]
            taken[OURS].append([first_token(ours, session) for session in sessions])
            cold = [ours.session("hello_cold") for _ in range(max(sizes.turns // 4, 1))]
            taken[COLD].append([first_token(ours, session) for session in cold])
            taken[SEED].append([post_to_first(seed, "/turns", "/{}/events", {}) for _ in range(sizes.turns)])
            say(f"first_event, round {n + 1}: {percentile((b.first_ms for b in taken[OURS][-1]), 0.5):.1f} ms")
    rows = []
    for label, member in ("POST → first event", "first_ms"), ("POST → first token", "token_ms"):
        for share, name in (0.5, "median"), (0.99, "p99"):
            for who, rounds in taken.items():
                values = [percentile((getattr(b, member) for b in each), share) for each in rounds]
                rows.append(Row(f"{label}, {name}", who, "ms", values))
    flat = [percentile((b.first_ms for b in r), 0.99) / percentile((b.first_ms for b in r), 0.5) for r in taken[OURS]]
    medians = {who: [percentile((b.first_ms for b in each), 0.5) for each in taken[who]] for who in (OURS, COLD)}
    goals = [
        Goal(5, "POST → first event ≤ 0.12 × cold", 0.12,
             [ours / cold for ours, cold in zip(medians[OURS], medians[COLD], strict=True)]),
        Goal(5, "POST → first event: p99 ≤ 2.5 × median", 2.5, flat),
    ]  # fmt: skip
    notice = (
        "One turn at a time. Our first event is `started`, said when the child is Ready; the seed has no such event, so "
        "its first one is its first token."
    )
    return Report("From a request to its first event", rows, goals, [notice])


if __name__ == "__main__":
    main(measure, __doc__)
