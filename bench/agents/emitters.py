"""Agents that emit at a fixed rate, for the adapter `function`. What they shall do stands in the message, as JSON.

A token's text begins with the time at which it was said (CLOCK_MONOTONIC in ns, one clock for all processes of a host),
so that a reader can tell how long it took.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import random
import time
from collections.abc import Iterator

from hermetic.agent_child.turn import Turn

WORDS = " and a few words, as a model says them"


def steady(turn: Turn) -> None:
    """`{"gate": path, "rate": per second}` while the gate is open; rate 0: as fast as it goes."""
    asked = json.loads(turn.message)
    rate = asked["rate"]
    gate = os.open(asked["gate"], os.O_RDONLY)
    turn.reasoning("here")  # a stream that has said something is one that has begun
    due = time.monotonic()
    while True:
        try:
            fcntl.flock(gate, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(gate, fcntl.LOCK_SH)
            due = time.monotonic() + (random.random() / rate if rate else 0)
        fcntl.flock(gate, fcntl.LOCK_UN)
        if rate:
            due += 1 / rate
            time.sleep(max(0.0, due - time.monotonic()))
        turn.token(f"{time.monotonic_ns()}{WORDS}")


def counted(turn: Turn) -> None:
    """`{"events": n}`, each as long as a model's token, as fast as it goes; then the end."""
    for number in range(json.loads(turn.message)["events"]):
        turn.token(f"{number % 1000} ")


def hello(message: str) -> Iterator[str]:
    """One token and the end."""
    yield f"{time.monotonic_ns()}{WORDS}"


FORKS_MAX = 200
"""Where nothing limits its processes, it stops by itself: the host is also somebody's."""


def forks(turn: Turn) -> None:
    """Forks until it may not, and again as soon as it may."""
    turn.token("forking")
    for _ in range(FORKS_MAX):
        try:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
        except OSError:
            time.sleep(0.05)
    time.sleep(60)


def rest(turn: Turn) -> None:
    """Says that it is there, after a collection, and waits to be killed."""
    gc.collect()
    turn.token("resting")
    while True:
        time.sleep(3600)
