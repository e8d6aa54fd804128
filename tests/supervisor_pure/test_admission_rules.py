"""Who may start a turn and whose is next, without a process or a clock."""

from __future__ import annotations

import math
from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.protocol.errors import ClientError, QuotaExceeded
from hermetic.supervisor.admission import (
    NO_LIMIT,
    Tenancy,
    Waiting,
    admission,
    check_streams,
    checked_quotas,
    in_order,
    quotas_of,
    to_start,
)
from hermetic.supervisor.config import Quotas
from hermetic.supervisor.store.governance import DAY_S, Facts, Pace, Used

NOW = 100 * DAY_S + 3600.0


def turns(tenant: str, count: int, session: str | None = None) -> list[Waiting]:
    return [Waiting(f"{tenant}{n}", session or f"{tenant}-{n}", tenant) for n in range(count)]


def ids(waiting: list[Waiting]) -> list[str]:
    return [turn.turn_id for turn in waiting]


# --- the queue --------------------------------------------------------------------------------------------------------


def test_a_tenant_with_a_thousand_turns_does_not_delay_anothers_first():
    queue = turns("many", 1000) + turns("one", 1)
    assert ids(in_order(queue, {}))[:3] == ["many0", "one0", "many1"]
    assert ids(to_start(queue, {"many": Tenancy(running=15)}, set(), 1)) == ["one0"]
    assert ids(to_start(queue, {"many": Tenancy(served=7)}, set(), 1)) == ["one0"], "with one place for all, too"


def test_tenants_take_turns():
    queue = turns("a", 3) + turns("b", 3) + turns("c", 1)
    assert ids(in_order(queue, {})) == ["a0", "b0", "c0", "a1", "b1", "a2", "b2"]


def test_a_weight_is_a_share():
    queue = turns("a", 6) + turns("b", 3)
    started = ids(to_start(queue, {"a": Tenancy(weight=2.0), "b": Tenancy()}, set(), 6))
    assert Counter(turn[0] for turn in started) == {"a": 4, "b": 2}


def test_a_tenant_at_its_limit_waits_and_others_pass():
    queue = turns("a", 3) + turns("b", 1)
    assert ids(to_start(queue, {"a": Tenancy(running=1, at_once=2)}, set(), 9)) == ["b0", "a0"]


def test_a_session_runs_one_turn_at_a_time_in_the_order_of_arrival():
    queue = turns("a", 3, "s") + turns("b", 1)
    assert ids(to_start(queue, {}, set(), 9)) == ["a0", "b0"]
    assert ids(to_start(queue, {}, {"s"}, 9)) == ["b0"]
    assert to_start(queue, {}, set(), 0) == []


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=30),
    st.integers(1, 5),
    st.lists(st.integers(0, 4), max_size=200),
)
def test_nobody_starves_and_no_place_is_wasted(arrivals, places, ends):
    queue = [Waiting(f"t{n}", f"{tenant}{session}", tenant) for n, (tenant, session) in enumerate(arrivals)]
    running: deque[Waiting] = deque()
    served: dict[str, int] = {}
    clock = 0
    while queue or running:
        tenants = {
            name: Tenancy(running=sum(turn.tenant == name for turn in running), served=served.get(name, 0))
            for name in "abc"
        }
        busy = {turn.session_id for turn in running}
        started = to_start(queue, tenants, busy, places - len(running))
        for turn in started:
            clock += 1
            served[turn.tenant] = clock
            queue.remove(turn)
            running.append(turn)
        assert len(running) <= places
        assert len({turn.session_id for turn in running}) == len(running)
        could = {turn.session_id for turn in queue} - {turn.session_id for turn in running}
        assert len(running) == places or not could, "a place is free and a turn could have had it"
        running.rotate(ends.pop() if ends else 0)
        if running:
            running.popleft()


def test_short_turns_of_one_tenant_do_not_starve_long_ones_of_another():
    queue = turns("short", 50) + turns("long", 2)
    started = []
    served = {"short": 0, "long": 0}
    running: list[Waiting] = []
    for clock in range(1, 10):
        running = [turn for turn in running if turn.tenant == "long"]  # the short ones have ended
        tenants = {
            name: Tenancy(running=sum(t.tenant == name for t in running), served=served[name]) for name in served
        }
        for turn in to_start(queue, tenants, set(), 3 - len(running)):
            served[turn.tenant] = clock
            queue.remove(turn)
            running.append(turn)
            started.append(turn.turn_id)
    assert {"long0", "long1"} < set(started[:7])


# --- quotas -----------------------------------------------------------------------------------------------------------


def refusal(quotas: Quotas, facts: Facts, now: float = NOW, **more) -> dict:
    with pytest.raises(QuotaExceeded) as caught:
        admission(quotas, now, **more)(facts)
    assert caught.value.status == 429
    assert caught.value.extra["quota"] in caught.value.message
    return caught.value.extra


def test_each_quota_refuses_by_its_name_with_its_limit_and_a_time_to_come_back():
    none, used = Used(), Used(1, 900, 100, 2.0)
    for quota, limit, facts, retry in (
        ("turns_queued", 3, Facts(3, None, none), 5),
        ("tokens_per_day", 1000, Facts(0, None, used), 23 * 3600),
        ("cost_per_day", 2.0, Facts(0, None, used), 23 * 3600),
        ("turns_per_minute", 6, Facts(0, Pace(0.5, NOW), none), 5),
    ):
        extra = refusal(quotas_of(NO_LIMIT, {quota: limit}), facts)
        assert (extra["quota"], extra["limit"], extra["retry_after_s"]) == (quota, limit, retry)
        admission(quotas_of(NO_LIMIT, {quota: limit * 2}), NOW + retry)(facts)
    extra = refusal(quotas_of(NO_LIMIT, {"disk_bytes": 10}), Facts(0, None, none), disk_used=10)
    assert extra["quota"] == "disk_bytes"
    with pytest.raises(QuotaExceeded, match="streams"):
        check_streams(quotas_of(NO_LIMIT, {"streams": 2}), 2)
    check_streams(quotas_of(NO_LIMIT, {"streams": 2}), 1)


def test_without_a_limit_nothing_is_refused():
    admission(NO_LIMIT, NOW, disk_used=1 << 50)(Facts(10**6, Pace(0.0, NOW), Used(10**6, 1 << 50, 1 << 50, 1e9)))
    check_streams(NO_LIMIT, 10**9)


@given(st.integers(1, 100), st.lists(st.floats(0, 30), max_size=300))
def test_no_minute_has_more_than_twice_its_turns_and_an_even_pace_is_never_refused(per_minute, gaps):
    decide = lambda now, pace: admission(quotas_of(NO_LIMIT, {"turns_per_minute": per_minute}), now)(
        Facts(0, pace, Used())
    )
    now, pace, taken = NOW, None, []
    for gap in gaps:
        now += gap
        try:
            pace = decide(now, pace)
            taken.append(now)
        except QuotaExceeded as refused:
            later = now + refused.extra["retry_after_s"]
            assert decide(later, pace), "after Retry-After it is granted"
    assert all(sum(start <= at < start + 60 for at in taken) <= 2 * per_minute for start in taken)
    even = Pace(1.0, NOW)
    for n in range(1, 50):
        even = decide(NOW + n * 60 / per_minute * 1.000001, even)


def test_a_clock_that_was_set_back_neither_fills_the_bucket_nor_empties_it():
    quotas = quotas_of(NO_LIMIT, {"turns_per_minute": 60})
    assert admission(quotas, NOW - 1000)(Facts(0, Pace(5.0, NOW), Used())).level == 4.0


def test_a_lower_limit_counts_at_once():
    quotas = quotas_of(NO_LIMIT, {"turns_per_minute": 2})
    assert admission(quotas, NOW)(Facts(0, Pace(60.0, NOW), Used())).level == 1.0


def test_a_tenants_own_quotas_override_the_defaults_and_none_lifts_one():
    own = quotas_of(Quotas(turns_at_once=4, streams=9), {"turns_at_once": None, "tokens_per_day": 7})
    assert (own.turns_at_once, own.streams, own.tokens_per_day) == (None, 9, 7)


def test_a_tenants_record_may_have_the_quotas_that_there_are_within_their_ranges():
    own = checked_quotas({"turns_at_once": 2.0, "cost_per_day": 2.0, "disk_bytes": None})
    assert own == {"turns_at_once": 2, "cost_per_day": 2.0, "disk_bytes": None}
    for wrong in (
        {"turns": 1.0},
        {"streams": 0.0},
        {"streams": 1.5},
        {"cost_per_day": float("inf")},
        {"streams": math.nan},
    ):
        with pytest.raises(ClientError, match="quotas"):
            checked_quotas(wrong)
