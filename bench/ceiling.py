"""What the load client itself can take: deliveries per second from a server that does nothing but write."""

from __future__ import annotations

import socket
import threading
import time
from typing import NamedTuple

from bench.load import Load
from bench.peers import common
from bench.report import Report, Row, Size, main, say


class Sizes(NamedTuple):
    rounds: int
    streams: int
    window_s: float


SIZES: dict[Size, Sizes] = {"tiny": Sizes(1, 2, 0.2), "quick": Sizes(3, 50, 0.5), "full": Sizes(5, 100, 1.0)}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def measure(size: Size) -> Report:
    """One event per write, as a live stream has them, and 100 per write, as a resume has them."""
    sizes = SIZES[size]
    rows = []
    for each in 1, 100:
        rates, costs = [], []
        for n in range(sizes.rounds):
            rate, cost = _blast(sizes, each)
            rates.append(rate)
            costs.append(cost)
            say(f"ceiling, {each} per write, round {n + 1}: {rate:,.0f}/s, {cost:.2f} µs")
        case = f"{sizes.streams} streams, {each} event{'s' if each > 1 else ''} per write"
        rows += [
            Row(f"{case}: deliveries", "load client", "1/s", rates),
            Row(f"{case}: CPU per delivery", "load client", "µs", costs),
        ]
    return Report("The load client's ceiling", rows)


def _blast(sizes: Sizes, each: int) -> tuple[float, float]:
    """→ deliveries per second, and the client's CPU µs for each."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    accepted: list[socket.socket] = []

    def accept() -> None:
        for _ in range(sizes.streams):
            made, _ = listener.accept()
            made.recv(4096)
            made.sendall(HEAD)
            made.setblocking(False)
            accepted.append(made)

    accepting = threading.Thread(target=accept)
    accepting.start()
    with Load() as load, listener:
        load.connect(listener.getsockname()[1], ["/"] * sizes.streams)
        accepting.join()
        load.mark()
        begun = time.monotonic()
        data = common.frame(1, 1) * each
        full = 0
        while (now := time.monotonic()) < begun + sizes.window_s:
            for made in accepted:
                try:
                    made.send(data)
                except BlockingIOError:
                    full += 1
            if full:
                time.sleep(0.001)
                full = 0
        mark, wall = load.mark(), now - begun
        for made in accepted:
            made.close()
    return mark.delivered / wall, mark.cpu_s / mark.delivered * 1e6


if __name__ == "__main__":
    main(measure, __doc__)
