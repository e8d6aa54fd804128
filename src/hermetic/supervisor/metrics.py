"""What Prometheus asks for. Nothing runs until it asks: what changes often is looked at then, and at the end of a turn its
times go into histograms.

No label names a tenant, a session or a turn, so the number of series is fixed, whoever comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from hermetic.protocol.events import StateName
from hermetic.supervisor.store.interface import Writing

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""From a forked child to a cold one on a busy disk, and a turn that waited."""
LONG_SECONDS: Final = (1, 5, 15, 60, 300, 900, 3600, 14400)
"""Of a whole turn."""


class Load(NamedTuple):
    """What is looked at when somebody asks."""

    states: Mapping[StateName, int]
    """Turns that have not ended."""
    oldest_wait_s: float
    """Of the turns that wait."""
    readers: int
    readers_cut: int
    writing: Writing
    seal_level: int
    uptime_s: float


class Ended(Protocol):
    """What is looked at of a turn that has ended."""

    started_at: float | None
    ready_at: float | None
    first_event_at: float | None


class Metrics:
    """`look` is called for each answer, in the task that asks."""

    def __init__(self, look: Callable[[], Load]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Looking(look))
        self._ended = Counter("hermetic_turns_ended", "Turns that have ended.", ["state"], registry=self._registry)
        self._waited = self._histogram("hermetic_turn_queue_seconds", "From a turn's admission to its start.")
        self._spawn = self._histogram("hermetic_turn_spawn_seconds", "From a turn's start to its child's readiness.")
        self._first = self._histogram("hermetic_turn_first_event_seconds", "From a turn's start to its first event.")
        self._length = self._histogram("hermetic_turn_seconds", "From a turn's start to its end.", LONG_SECONDS)

    def _histogram(self, name: str, says: str, buckets: Iterable[float] = SECONDS) -> Histogram:
        return Histogram(name, says, buckets=tuple(buckets), registry=self._registry)

    def turn_ended(self, turn: Ended, state: StateName, created_at: float, now: float) -> None:
        self._ended.labels(state).inc()
        started = turn.started_at
        if started is None:
            return
        self._waited.observe(max(0.0, started - created_at))
        self._length.observe(max(0.0, now - started))
        if turn.ready_at is not None:
            self._spawn.observe(max(0.0, turn.ready_at - started))
        if turn.first_event_at is not None:
            self._first.observe(max(0.0, turn.first_event_at - started))

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Looking(Collector):
    def __init__(self, look: Callable[[], Load]) -> None:
        self._look = look

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        load = self._look()
        turns = GaugeMetricFamily("hermetic_turns", "Turns that have not ended.", labels=["state"])
        for state in ("queued", "starting", "running", "waiting", "ending", "cancelling"):
            turns.add_metric([state], load.states.get(state, 0))
        yield turns
        yield _gauge(
            "hermetic_queue_oldest_seconds", "How long the oldest turn in the queue waits.", load.oldest_wait_s
        )
        yield _gauge("hermetic_readers", "Event streams that are open on turns.", load.readers)
        yield _counter("hermetic_readers_cut", "Connections cut because their client did not read.", load.readers_cut)
        yield _gauge("hermetic_journal_waiting_writes", "Writes that wait for the next commit.", load.writing.waiting)
        yield _gauge(
            "hermetic_journal_lag_seconds", "How long the commit at hand has taken by now.", load.writing.lag_s
        )
        yield _counter("hermetic_journal_commits", "Transactions committed.", load.writing.commits)
        yield _counter("hermetic_journal_commit_seconds", "Time spent in commits.", load.writing.commit_s)
        yield _gauge("hermetic_seal_level", "What holds a turn on this host, 0 to 3.", load.seal_level)
        yield _gauge("hermetic_uptime_seconds", "Since the server's start.", load.uptime_s)


def _gauge(name: str, says: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, says, value=value)


def _counter(name: str, says: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, says, value=value)
