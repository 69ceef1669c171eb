"""Admission: concurrency, requests and tokens a minute, tokens a day; what is given back; what is reaped."""

from __future__ import annotations

import re
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cacheplane.access import rate_limits
from cacheplane.access.models import CallInFlight, Gateway, RateState
from cacheplane.errors import LimitExceeded

pytestmark = pytest.mark.django_db

WIDE = {
    "concurrency": 1_000,
    "requests_per_minute": 100_000,
    "tokens_per_minute": 10**9,
    "tokens_per_day": None,
}


def _state(caller) -> RateState:
    return RateState.objects.get(organization_id=caller.organization_id)


def _admit(caller, gateway_id, *, tokens=10):
    call_id = uuid4()
    rate_limits.admit_call(caller, call_id=call_id, gateway_id=gateway_id, tokens=tokens)
    return call_id


def _refusal(caller, gateway_id, *, tokens=10) -> LimitExceeded:
    with pytest.raises(LimitExceeded) as refusal:
        _admit(caller, gateway_id, tokens=tokens)
    return refusal.value


def _let_pass(seconds: float) -> None:
    """Move everything the database remembers into the past: the clock that counts is the database's."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE access_ratestate SET levels_at = levels_at - make_interval(secs => %s)", [seconds]
        )
        cursor.execute(
            "UPDATE access_callinflight SET started_at = started_at - make_interval(secs => %s)", [seconds]
        )
        cursor.execute(
            "UPDATE access_gateway SET heartbeat_at = heartbeat_at - make_interval(secs => %s)", [seconds]
        )


def _yesterday() -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE access_ratestate SET day = day - 1")
        cursor.execute("UPDATE access_callinflight SET started_at = started_at - interval '1 day'")


def test_an_admitted_call_holds_a_place_and_its_tokens(make_caller, gateway_id):
    caller = make_caller("tier1")
    call_id = _admit(caller, gateway_id, tokens=1_000)
    call, state = CallInFlight.objects.get(id=call_id), _state(caller)
    assert (call.organization_id, call.gateway_id, call.tokens_reserved) == (
        caller.organization_id,
        gateway_id,
        1_000,
    )
    assert (state.in_flight, state.day_tokens) == (1, 1_000)
    assert state.requests_level == pytest.approx(1)
    assert state.tokens_level == pytest.approx(1_000)


def test_admission_and_end_are_one_statement_each(make_caller, gateway_id):
    caller = make_caller("tier1")
    rate_limits.open_state(organization_id=caller.organization_id)
    call_id = uuid4()
    with CaptureQueriesContext(connection) as queries:
        rate_limits.admit_call(caller, call_id=call_id, gateway_id=gateway_id, tokens=10)
        rate_limits.finish_call(call_id=call_id, tokens_used=10)
        rate_limits.admit_tokens(caller, tokens=10)
    assert len(queries) == 3


def test_concurrency(make_caller, gateway_id):
    caller = make_caller(**WIDE | {"concurrency": 2})
    first, _ = _admit(caller, gateway_id), _admit(caller, gateway_id)
    refusal = _refusal(caller, gateway_id)
    assert str(refusal) == (
        f"Your account {caller.organization_id}<{caller.api_key_id}> request reached max concurrency: 2, "
        "please try again after 1 seconds"
    )
    assert refusal.retry_after_seconds == 1
    assert rate_limits.finish_call(call_id=first, tokens_used=10)
    _admit(caller, gateway_id)


def test_requests_per_minute_on_tier0(make_caller, gateway_id):
    caller = make_caller("tier0", concurrency=10)
    for _ in range(3):
        _admit(caller, gateway_id)
    refusal = _refusal(caller, gateway_id)
    assert f"{caller.account_label} request reached max request: 3, please try again after 20 seconds" in str(
        refusal
    )
    assert refusal.retry_after_seconds == 20
    _let_pass(19)
    assert _refusal(caller, gateway_id).retry_after_seconds == 1
    _let_pass(1)
    _admit(caller, gateway_id)
    assert _refusal(caller, gateway_id).retry_after_seconds == 20


def test_an_idle_minute_fills_no_more_than_one_minute(make_caller, gateway_id):
    caller = make_caller("tier0", concurrency=10)
    _admit(caller, gateway_id)
    _let_pass(86_400)
    for _ in range(3):
        _admit(caller, gateway_id)
    _refusal(caller, gateway_id)


def test_tokens_per_minute(make_caller, gateway_id):
    caller = make_caller(**WIDE | {"tokens_per_minute": 60_000})
    _admit(caller, gateway_id, tokens=50_000)
    refusal = _refusal(caller, gateway_id, tokens=20_000)
    found = re.search(r"request reached TPM rate limit, current:(\d+), limit:60000", str(refusal))
    assert 49_900 <= int(found[1]) <= 50_000
    assert refusal.retry_after_seconds == 10
    _admit(caller, gateway_id, tokens=10_000)
    _let_pass(20)
    _admit(caller, gateway_id, tokens=20_000)


def test_a_call_above_the_whole_minute_is_told_that_a_retry_cannot_help(make_caller, gateway_id):
    caller = make_caller("tier0")
    refusal = _refusal(caller, gateway_id, tokens=32_001)
    assert "request reached TPM rate limit, current:32001, limit:32000; this request alone" in str(refusal)
    assert "lower max_tokens" in str(refusal)
    assert refusal.retry_after_seconds is None
    _admit(caller, gateway_id, tokens=32_000)


def test_tokens_per_day(make_caller, gateway_id):
    caller = make_caller(**WIDE | {"tokens_per_day": 1_000})
    _admit(caller, gateway_id, tokens=600)
    refusal = _refusal(caller, gateway_id, tokens=401)
    assert "request reached TPD rate limit, current:600, limit:1000" in str(refusal)
    assert 0 < refusal.retry_after_seconds <= 86_400
    _admit(caller, gateway_id, tokens=400)
    _yesterday()
    _admit(caller, gateway_id, tokens=1_000)
    assert _state(caller).day_tokens == 1_000


def test_the_day_ends_at_midnight_in_beijing(make_caller, gateway_id):
    caller = make_caller(**WIDE | {"tokens_per_day": 10})
    _admit(caller, gateway_id, tokens=10)
    retry_after_seconds = _refusal(caller, gateway_id, tokens=1).retry_after_seconds
    with connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())::bigint + 8 * 3600")
        seconds_into_day = cursor.fetchone()[0] % 86_400
    assert retry_after_seconds == pytest.approx(86_400 - seconds_into_day, abs=2)


def test_a_refused_call_leaves_no_trace(make_caller, gateway_id):
    caller = make_caller(**WIDE | {"tokens_per_minute": 100})
    _admit(caller, gateway_id, tokens=90)
    before = RateState.objects.filter(organization_id=caller.organization_id).values().get()
    _refusal(caller, gateway_id, tokens=50)
    assert RateState.objects.filter(organization_id=caller.organization_id).values().get() == before
    assert CallInFlight.objects.count() == 1


def test_unused_tokens_are_given_back(make_caller, gateway_id):
    caller = make_caller(**WIDE | {"tokens_per_minute": 1_000, "tokens_per_day": 1_000})
    call_id = _admit(caller, gateway_id, tokens=1_000)
    _refusal(caller, gateway_id, tokens=500)
    assert rate_limits.finish_call(call_id=call_id, tokens_used=300)
    state = _state(caller)
    assert (state.in_flight, state.day_tokens) == (0, 300)
    assert state.tokens_level == pytest.approx(300, abs=20)
    _admit(caller, gateway_id, tokens=500)


def test_more_used_than_reserved_is_counted(make_caller, gateway_id):
    caller = make_caller("tier5")
    call_id = _admit(caller, gateway_id, tokens=100)
    rate_limits.finish_call(call_id=call_id, tokens_used=150)
    assert _state(caller).day_tokens == 150


def test_yesterdays_call_gives_nothing_back_to_today(make_caller, gateway_id):
    caller = make_caller("tier5")
    old = _admit(caller, gateway_id, tokens=1_000)
    _yesterday()
    _admit(caller, gateway_id, tokens=700)
    rate_limits.finish_call(call_id=old, tokens_used=0)
    assert _state(caller).day_tokens == 700


def test_an_end_counts_once(make_caller, gateway_id):
    caller = make_caller("tier5")
    call_id = _admit(caller, gateway_id)
    _admit(caller, gateway_id)
    assert rate_limits.finish_call(call_id=call_id, tokens_used=10) is True
    assert rate_limits.finish_call(call_id=call_id, tokens_used=10) is False
    assert _state(caller).in_flight == 1


def test_creation_counts_requests_and_tokens_but_holds_no_place(make_caller, gateway_id):
    caller = make_caller("tier0", tokens_per_minute=1_000)
    call_id = _admit(caller, gateway_id, tokens=100)
    rate_limits.admit_tokens(caller, tokens=900)
    state = _state(caller)
    assert (state.in_flight, state.day_tokens) == (1, 1_000)
    with pytest.raises(LimitExceeded, match="TPM rate limit"):
        rate_limits.admit_tokens(caller, tokens=100)
    rate_limits.finish_call(call_id=call_id, tokens_used=0)
    rate_limits.admit_tokens(caller, tokens=100)
    with pytest.raises(LimitExceeded, match="max request: 3"):
        rate_limits.admit_tokens(caller, tokens=1)


def test_a_call_that_its_living_gateway_lost_is_reaped_in_the_end(make_caller, gateway_id):
    caller = make_caller("tier5")
    lost = _admit(caller, gateway_id)
    CallInFlight.objects.update(
        started_at=timezone.now() - timedelta(seconds=rate_limits.ABANDONED_AFTER_SECONDS + 1)
    )
    kept = _admit(caller, gateway_id)
    rate_limits.heartbeat(gateway_id=gateway_id, host="a", pid=1)
    assert [call.call_id for call in rate_limits.reap()] == [lost]
    assert CallInFlight.objects.get().id == kept


def test_the_calls_of_a_dead_gateway_are_reaped_and_give_all_back(make_caller):
    dead, alive = uuid4(), uuid4()
    caller, other = make_caller("tier5"), make_caller("tier5")
    rate_limits.heartbeat(gateway_id=dead, host="a", pid=1)
    lost = {_admit(caller, dead, tokens=500), _admit(caller, dead, tokens=300), _admit(other, dead, tokens=1)}
    kept = _admit(caller, alive, tokens=200)
    _let_pass(31)
    rate_limits.heartbeat(gateway_id=alive, host="b", pid=2)
    reaped = rate_limits.reap()
    assert {call.call_id for call in reaped} == lost
    assert {call.organization_id for call in reaped} == {caller.organization_id, other.organization_id}
    assert (_state(caller).in_flight, _state(caller).day_tokens) == (1, 200)
    assert (_state(other).in_flight, _state(other).day_tokens) == (0, 0)
    assert rate_limits.finish_call(call_id=lost.pop(), tokens_used=5) is False
    assert rate_limits.finish_call(call_id=kept, tokens_used=5) is True
    assert rate_limits.reap() == []


def test_a_gateway_that_never_beat_is_judged_by_its_calls_age(make_caller, gateway_id):
    caller = make_caller("tier5")
    call_id = _admit(caller, gateway_id)
    assert rate_limits.reap() == []
    _let_pass(31)
    assert [call.call_id for call in rate_limits.reap()] == [call_id]


def test_a_beating_gateway_keeps_its_long_calls(make_caller, gateway_id):
    _admit(make_caller("tier5"), gateway_id)
    _let_pass(600)
    rate_limits.heartbeat(gateway_id=gateway_id, host="a", pid=1)
    assert rate_limits.reap() == []


def test_a_gateway_long_dead_is_forgotten(gateway_id):
    rate_limits.heartbeat(gateway_id=gateway_id, host="a", pid=1)
    _let_pass(3_599)
    rate_limits.reap()
    assert Gateway.objects.count() == 1
    _let_pass(2)
    rate_limits.reap()
    assert Gateway.objects.count() == 0
