"""Fifty tenants, one of them hostile: what its neighbours feel (target 13).

The hostile one has a full queue, turns that flood and turns that fork until they may not, and readers that do not read.
All that holds it are its quotas and limits, as a host would set them.
"""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench.gate import Gate
from bench.raw import first_token
from bench.report import Goal, Report, Row, Size, main, percentile, ratios, say
from bench.servers import Hermetic, Host

HOSTILE = "hostile"
AT_ONCE = 2
"""Turns of one tenant: below the places by far, so that none can take them all."""


class Sizes(NamedTuple):
    rounds: int
    tenants: int
    starts: int
    queued: int
    stalled: int


SIZES: dict[Size, Sizes] = {
    "tiny": Sizes(1, 3, 2, 4, 2),
    "quick": Sizes(2, 20, 10, 50, 10),
    "full": Sizes(5, 50, 20, 100, 50),
}


def measure(size: Size) -> Report:
    sizes = SIZES[size]
    starts: dict[str, list[float]] = {"alone": [], "beside the hostile one": []}
    with Host() as host:
        server = host.hermetic()
        operator = server.note_key()
        neighbours = [server.add_tenant(f"tenant-{n}", operator, AT_ONCE) for n in range(sizes.tenants - 1)]
        hostile = server.add_tenant(HOSTILE, operator, AT_ONCE)
        valve = Gate(Path(server.gate.path).with_name("valve"))
        host.callback(valve.remove)
        for key in neighbours:
            server.key = key
            server.run("hello")  # its launcher is warm, as of a tenant that has been here today
        for n in range(sizes.rounds):
            starts["alone"].append(_start_ms(server, neighbours, sizes.starts))
            with ExitStack() as attack:
                _begin(server, hostile, operator, valve, sizes, attack)
                starts["beside the hostile one"].append(_start_ms(server, neighbours, sizes.starts))
            say(f"tenants, round {n + 1}: first event " + ", ".join(f"{v[-1]:.0f} ms {k}" for k, v in starts.items()))
    first = [Row("POST → first event of a neighbour, median", name, "ms", values) for name, values in starts.items()]
    goal = Goal(13, f"first event of {sizes.tenants - 1} neighbours ≤ 1.5 × quiet", 1.5, ratios(*reversed(first)))
    return Report("Tenants, one of them hostile", first, [goal], [])


def _start_ms(server: Hermetic, keys: list[str], starts: int) -> float:
    measured = []
    for n in range(starts):
        server.key = keys[n % len(keys)]
        measured.append(first_token(server, server.session("hello")).first_ms)
    return percentile(measured, 0.5)


def _begin(server: Hermetic, hostile: str, operator: str, valve: Gate, sizes: Sizes, attack: ExitStack) -> None:
    """The attack, until `attack` closes; then the hostile tenant is suspended for a moment, which cancels its turns."""
    server.key = hostile
    turns = [server.turn("steady", {"gate": str(valve.path), "rate": 0}), server.turn("forks")]
    turns += [server.turn("forks") for _ in range(sizes.queued - 2)]
    attack.callback(_end, server, operator, turns)
    server.wait(turns[0], lambda view: int(view["last_seq"]) >= 2)
    server.wait(turns[1], lambda view: int(view["last_seq"]) >= 2)
    for _ in range(sizes.stalled):
        attack.enter_context(_stalled(server, turns[0]))
    attack.enter_context(valve.opened())


def _stalled(server: Hermetic, turn: str) -> socket.socket:
    """A reader that asks for a stream and does not read it."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(("127.0.0.1", server.port))
    made.sendall(
        f"GET /v1/turns/{turn}/events HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{server.authorization()}\r\n".encode()
    )
    return made


def _end(server: Hermetic, operator: str, turns: list[str]) -> None:
    for suspended in (True, False):
        server.key = operator
        server.call("PATCH", f"/v1/admin/tenants/{HOSTILE}", {"suspended": suspended})
    time.sleep(1)  # its children are gone by then: grace_s is 0.2


if __name__ == "__main__":
    main(measure, __doc__)
