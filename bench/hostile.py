"""One turn that floods beside twenty quiet ones: what the others feel (target 13; there are no tenants yet)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from bench import probe
from bench.gate import Gate
from bench.raw import first_token
from bench.report import Goal, Report, Row, Size, main, percentile, ratios, say
from bench.servers import Hermetic, Host


class Sizes(NamedTuple):
    rounds: int
    quiet: int
    starts: int
    window_s: float


SIZES: dict[Size, Sizes] = {"tiny": Sizes(1, 2, 1, 0.5), "quick": Sizes(2, 10, 5, 1.0), "full": Sizes(5, 20, 10, 2.0)}


def measure(size: Size) -> Report:
    sizes = SIZES[size]
    starts: dict[str, list[float]] = {"quiet": [], "flood": []}
    delays: dict[str, list[float]] = {"quiet": [], "flood": []}
    flood_rate: list[float] = []
    with Host() as host:
        server = host.hermetic()
        server.start_steady(sizes.quiet, 1 if size == "full" else 5)
        server.connect(sizes.quiet)
        valve = Gate(Path(server.gate.path).with_name("valve"))
        host.callback(valve.remove)
        flood = server.turn("steady", {"gate": str(valve.path), "rate": 0})
        server.wait(flood, lambda view: int(view["last_seq"]) >= 2)
        server.run("hello")
        for n in range(sizes.rounds):
            starts["quiet"].append(_start_ms(server, sizes))
            delays["quiet"].append(server.window(sizes.window_s).mark.p99_ms)
            said = _last_seq(server, flood)
            begun = probe.cpu_s(server.pid)
            with valve.opened():
                starts["flood"].append(_start_ms(server, sizes))
                delays["flood"].append(server.window(sizes.window_s).mark.p99_ms)
            flood_rate.append((probe.cpu_s(server.pid) - begun) / (_last_seq(server, flood) - said) * 1e6)
            say(
                f"hostile, round {n + 1}: first event {starts['quiet'][-1]:.0f} ms, beside {starts['flood'][-1]:.0f} ms"
            )
    first = {k: Row("POST → first event, median", k, "ms", v) for k, v in _named(starts).items()}
    late = {k: Row(f"{sizes.quiet} quiet turns: p99 of the delay", k, "ms", v) for k, v in _named(delays).items()}
    rows = [
        *first.values(),
        *late.values(),
        Row("the flood: CPU of the server per event", "beside the flood", "µs", flood_rate),
    ]
    goals = [
        Goal(
            13, "first event of others beside a turn that floods ≤ 1.5 × quiet", 1.5, ratios(*reversed(first.values()))
        ),
        Goal(13, "delay of quiet turns, p99, beside it ≤ 1.5 × quiet", 1.5, ratios(*reversed(late.values()))),
    ]
    notices = ["There are no tenants and no share per turn yet: this is one flooding turn, not a tenant of 50."]
    return Report("One that floods", rows, goals, notices)


def _start_ms(server: Hermetic, sizes: Sizes) -> float:
    sessions = [server.session("hello") for _ in range(sizes.starts)]
    return percentile((first_token(server, session).first_ms for session in sessions), 0.5)


def _last_seq(server: Hermetic, turn: str) -> int:
    return int(server.call("GET", f"/v1/turns/{turn}")["last_seq"])


def _named(values: dict[str, list[float]]) -> dict[str, list[float]]:
    return {"alone": values["quiet"], "beside the flood": values["flood"]}


if __name__ == "__main__":
    main(measure, __doc__)
