"""Admission under a crowd: the limits hold to the unit, and the row agrees with the calls in flight."""

from __future__ import annotations

import threading
from functools import partial
from uuid import uuid4

import pytest
from django.db import connection, transaction

from cacheplane.access import rate_limits
from cacheplane.access.models import CallInFlight, RateState
from cacheplane.errors import LimitExceeded

pytestmark = pytest.mark.usefixtures("committed_rows")

WIDE = {
    "concurrency": 1_000,
    "requests_per_minute": 1_000_000,
    "tokens_per_minute": 10**9,
    "tokens_per_day": None,
}
CROWD = 200


def _state(caller) -> RateState:
    return RateState.objects.get(organization_id=caller.organization_id)


def _admission(caller, gateway_id, *, tokens=1):
    return partial(rate_limits.admit_call, caller, call_id=uuid4(), gateway_id=gateway_id, tokens=tokens)


def _refusals(outcomes) -> list[LimitExceeded]:
    return [outcome.error for outcome in outcomes if outcome.error is not None]


def test_of_two_hundred_calls_at_once_exactly_the_concurrency_is_admitted(make_caller, gateway_id, at_once):
    caller = make_caller(**WIDE | {"concurrency": 50})
    refusals = _refusals(at_once([_admission(caller, gateway_id) for _ in range(CROWD)]))
    assert len(refusals) == CROWD - 50
    assert all("max concurrency: 50" in str(refusal) for refusal in refusals)
    assert CallInFlight.objects.count() == _state(caller).in_flight == 50


# Twenty seconds pass before a fourth fits.
def test_requests_per_minute_hold_to_the_unit(make_caller, gateway_id, at_once):
    caller = make_caller(**WIDE | {"requests_per_minute": 3})
    refusals = _refusals(at_once([_admission(caller, gateway_id) for _ in range(60)]))
    assert len(refusals) == 57
    assert all("max request: 3" in str(refusal) for refusal in refusals)


# The bucket leaks what one more would need in twelve seconds: the crowd is through long before.
def test_tokens_per_minute_hold_to_the_token(make_caller, gateway_id, at_once):
    caller = make_caller(**WIDE | {"tokens_per_minute": 1_000})
    refusals = _refusals(at_once([_admission(caller, gateway_id, tokens=300) for _ in range(60)]))
    assert len(refusals) == 57
    assert all("TPM rate limit, current:" in str(refusal) for refusal in refusals)


def test_tokens_per_day_hold_to_the_token(make_caller, gateway_id, at_once):
    caller = make_caller(**WIDE | {"tokens_per_day": 1_000})
    refusals = _refusals(at_once([_admission(caller, gateway_id, tokens=7) for _ in range(CROWD)]))
    assert len(refusals) == CROWD - 1_000 // 7
    assert _state(caller).day_tokens == 7 * (1_000 // 7)


def test_a_thousand_calls_come_and_go_and_nothing_is_left_over(make_caller, gateway_id, at_once):
    caller = make_caller(**WIDE | {"concurrency": 10})

    def come_and_go():
        call_id = uuid4()
        rate_limits.admit_call(caller, call_id=call_id, gateway_id=gateway_id, tokens=100)
        assert rate_limits.finish_call(call_id=call_id, tokens_used=40)

    outcomes = at_once([come_and_go] * 1_000)
    admitted = len(outcomes) - len(_refusals(outcomes))
    state = _state(caller)
    assert admitted > 0
    assert (state.in_flight, state.day_tokens) == (0, 40 * admitted)
    assert CallInFlight.objects.count() == 0


def test_the_reaper_and_the_calls_own_end_never_count_twice(make_caller, gateway_id, at_once):
    caller = make_caller("tier5")
    call_ids = [uuid4() for _ in range(100)]
    for call_id in call_ids:
        rate_limits.admit_call(caller, call_id=call_id, gateway_id=gateway_id, tokens=10)
    ends = [partial(rate_limits.finish_call, call_id=call_id, tokens_used=10) for call_id in call_ids]
    reapers = [partial(rate_limits.reap, dead_after_seconds=0)] * 20
    works = [work for pair in zip(ends[::5], reapers, strict=True) for work in pair] + ends
    outcomes = at_once(works)
    assert not _refusals(outcomes)
    finished = sum(outcome.value is True for outcome in outcomes)
    reaped = sum(len(outcome.value) for outcome in outcomes if isinstance(outcome.value, list))
    assert finished + reaped == 100
    assert (_state(caller).in_flight, CallInFlight.objects.count()) == (0, 0)


def test_the_reaper_does_not_wait_for_a_call_that_is_ending_by_itself(make_caller, gateway_id):
    caller, call_id = make_caller("tier5"), uuid4()
    rate_limits.admit_call(caller, call_id=call_id, gateway_id=gateway_id, tokens=10)
    ended, may_commit = threading.Event(), threading.Event()

    def end_slowly():
        try:
            with transaction.atomic():
                rate_limits.finish_call(call_id=call_id, tokens_used=10)
                ended.set()
                may_commit.wait(timeout=20)
        finally:
            connection.close()

    thread = threading.Thread(target=end_slowly)
    thread.start()
    try:
        assert ended.wait(timeout=20)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '2s'")
            assert rate_limits.reap(dead_after_seconds=0) == []
    finally:
        may_commit.set()
        thread.join()
    assert _state(caller).in_flight == 0


def test_the_first_calls_of_an_organization_without_a_row_make_one_together(make_caller, gateway_id, at_once):
    caller = make_caller(**WIDE)
    RateState.objects.filter(organization_id=caller.organization_id).delete()
    assert not _refusals(at_once([_admission(caller, gateway_id) for _ in range(32)]))
    assert _state(caller).in_flight == 32
