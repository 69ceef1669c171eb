"""What cache objects saved: seconds as they were measured, and the advice that goes with the money."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from billing import audit, clock
from cacheplane.caching import lifecycle, savings
from cacheplane.caching.savings import DAY, MODEL, OBJECT
from cacheplane.errors import InvalidRequest
from tests.domain.billing.conftest import NOON, Payer, make_payer

pytestmark = pytest.mark.django_db


@pytest.fixture
def payer(monkeypatch: pytest.MonkeyPatch):
    """Its storage is of subjects that are no rows here, so what caching registered with the audit is left out."""
    monkeypatch.setattr(audit, "_registered", {})
    yield make_payer(recharged="1000")
    assert audit.violations(clock.now()) == []


def became_active(payer: Payer, cache_id: str, *, prefill_ms: int | None) -> None:
    measured = {} if prefill_ms is None else {"prefill_ms": prefill_ms}
    lifecycle.note(
        cache_id, payer.organization_id, "active", at=payer.at, actor="worker", bytes=5, **measured
    )


def hit(payer: Payer, cache_id: str, times: int = 1) -> None:
    for _ in range(times):
        payer.call(subject=cache_id, prompt=10_100, cached=10_000, completion=5, model="moonshot-v1-128k")


def told(payer: Payer, by: str = OBJECT, *, tz: str = "UTC"):
    return savings.savings_of(
        payer.organization_id,
        by=by,
        start=NOON - timedelta(days=1),
        end=payer.at + timedelta(days=1),
        tz=tz,
        at=payer.at,
    )


def test_a_hit_saves_what_the_prefill_took_that_it_profits_from(payer):
    """Computed twice: the second engine is faster. The third computation was not measured."""
    payer.create("cache-a", tokens=10_000, seconds=36_000)
    for prefill_ms, hits in ((2_500, 2), (900, 3), (None, 4)):
        became_active(payer, "cache-a", prefill_ms=prefill_ms)
        hit(payer, "cache-a", hits)
        payer.pass_time(minutes=5)
    [group] = told(payer).groups
    assert (group.calls, group.seconds_saved) == (9, Decimal("7.7"))


def test_seconds_that_nobody_measured_are_not_told(payer):
    payer.create("cache-a", tokens=10_000, seconds=36_000)
    became_active(payer, "cache-a", prefill_ms=None)
    hit(payer, "cache-a")
    found = told(payer)
    assert (found.groups[0].seconds_saved, found.seconds_saved) == (None, None)


def test_somebody_elses_measure_is_not_taken(payer):
    payer.create("cache-a", tokens=10_000, seconds=36_000)
    became_active(make_payer(), "cache-a", prefill_ms=1000)
    hit(payer, "cache-a")
    assert told(payer).seconds_saved is None


def test_the_sums_are_those_of_the_groups_however_they_are_grouped(payer):
    for cache_id in ("cache-a", "cache-b"):
        payer.create(cache_id, tokens=10_000, seconds=600)
        became_active(payer, cache_id, prefill_ms=1000)
    hit(payer, "cache-a", 5)
    payer.pass_time(hours=20)
    hit(payer, "cache-b")
    payer.settle()
    whole = told(payer)
    # Creations 0.48, ten minutes at 0.10 each for both, six fees; six times 10,000 tokens at 60 a million.
    assert (whole.cost, whole.cost_uncached) == (Decimal("2.6"), Decimal("3.6"))
    assert (whole.saved, whole.seconds_saved, whole.cached_tokens) == (1, 6, 60_000)
    assert [group.key for group in told(payer, MODEL).groups] == ["moonshot-v1"]
    assert [group.key for group in told(payer, DAY).groups] == ["2024-07-15", "2024-07-16"]
    for by in (MODEL, DAY):
        other = told(payer, by)
        assert (other.cost, other.cost_uncached, other.seconds_saved) == (Decimal("2.6"), Decimal("3.6"), 6)
        assert all(group.advice is None for group in other.groups)


def test_each_advice(payer):
    payer.create("cache-idle", tokens=100, seconds=86_400 * 5)
    payer.create("cache-tail", tokens=100, seconds=86_400 * 5)
    hit(payer, "cache-tail", 3)
    payer.create("cache-office", tokens=100, seconds=86_400 * 5)
    payer.create("cache-busy", tokens=100, seconds=86_400 * 5)
    for _ in range(5 * 24 - 1):
        payer.pass_time(hours=1)
        hit(payer, "cache-busy")
        if payer.at.hour in range(9, 17):
            hit(payer, "cache-office")
    payer.pass_time(hours=2).settle()
    found = {group.key: group for group in told(payer).groups}
    assert {key: group.advice.word for key, group in found.items()} == {
        "cache-idle": "stop",
        "cache-tail": "shorten",
        "cache-office": "schedule",
        "cache-busy": "keep",
    }
    assert "between 09:00 and 17:00" in found["cache-office"].advice.reason
    # 0.0024 and 7.2 of storage over 120 hours; each call spares 0.58.
    assert found["cache-busy"].break_even_calls_per_hour == 1


def test_too_many_groups_are_refused(payer, monkeypatch):
    monkeypatch.setattr(savings, "GROUPS_MAX", 1)
    payer.create("cache-a", tokens=10, seconds=60)
    assert len(told(payer).groups) == 1
    payer.create("cache-b", tokens=10, seconds=60)
    with pytest.raises(InvalidRequest, match="takes a shorter one"):
        told(payer)
