"""What the peers have in common: their options, their events, and how they tell their port.

A peer serves `GET /K/events`, K the number of a turn. It has a ticker for each turn that says an event to all of the
turn's readers, `--rate` times a second while the gate is open. Its events have the shape and size of ours.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from typing import NamedTuple

WORDS = " and a few words, as a model says them"
GATE_S = 0.05
"""Between two looks at a gate that is closed."""


class Options(NamedTuple):
    turns: int
    rate: float
    gate: int
    """A descriptor of the gate's file."""


def options() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--gate", required=True)
    given = parser.parse_args()
    return Options(given.turns, given.rate, os.open(given.gate, os.O_RDONLY))


def announce(port: int) -> None:
    print(port, flush=True)


def data() -> str:
    """One event's JSON, said now."""
    return f'{{"event":"token","text":"{time.monotonic_ns()}{WORDS}"}}'


def frame(turn: int, seq: int) -> bytes:
    return f"id: {turn:016x}:{seq}\nevent: token\ndata: {data()}\n\n".encode()


def first_due(rate: float) -> float:
    return time.monotonic() + random.random() / rate
