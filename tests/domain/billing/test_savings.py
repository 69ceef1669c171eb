"""What subjects cost and what their calls spared, against figures worked out by hand."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from billing import clock, price_book, savings
from billing.savings import DAY, FAMILY, SUBJECT, Spared
from tests.domain.billing.conftest import NOON, make_payer

pytestmark = pytest.mark.django_db

MINUTE = timedelta(minutes=1)


def balanced(payer, by: str = SUBJECT, *, tz: str = "UTC", spared=(), start=None, end=None):
    rows = savings.balanced(
        payer.organization_id,
        currency="CNY",
        by=by,
        start=start or NOON - timedelta(days=1),
        end=end or payer.at + timedelta(days=1),
        tz=tz,
        spared=spared,
    )
    return {row.key: row for row in rows}


def hit(payer, subject: str, *, cached: int = 1000, model: str = "moonshot-v1-8k") -> None:
    payer.call(subject=subject, prompt=cached + 100, cached=cached, completion=5, model=model)


def test_an_object_that_lost_money(payer):
    payer.create("a", tokens=1000, seconds=3600)
    for minutes in (1, 4, 5):
        payer.pass_time(minutes=minutes)
        hit(payer, "a")
    payer.pass_time(hours=2).settle()
    payer.close("a")
    [a] = balanced(payer).values()
    assert (a.key, a.calls, a.cached_tokens) == ("a", 3, 3000)
    assert a.cost_uncached == Decimal("0.036")
    assert (a.creation, a.storage, a.call_fees) == (Decimal("0.024"), Decimal("0.6"), Decimal("0.06"))
    assert a.stored_minutes == 60
    # The last call came as minute 10 started: 49 minutes came after it, posted in one line.
    assert a.tail == Decimal("0.49")
    assert (a.last_call_at, a.call_days) == (NOON + 10 * MINUTE, 1)
    assert a.calls_by_hour[12] == sum(a.calls_by_hour) == 3


@pytest.mark.parametrize(
    ("seconds", "tail"), [(0, 9), (59, 9), (60, 8), (61, 8), (540, 0), (599, 0), (600, 0)]
)
def test_the_tail_are_the_minutes_that_start_after_the_last_call(payer, seconds, tail):
    payer.create("a", tokens=1000, seconds=600)
    payer.pass_time(seconds=seconds)
    hit(payer, "a")
    payer.pass_time(hours=1)
    payer.close("a")
    assert balanced(payer)["a"].tail == tail * Decimal("0.01")


def test_a_tail_over_several_lines(payer):
    payer.create("a", tokens=1000, seconds=7200)
    payer.pass_time(minutes=30)
    hit(payer, "a")
    for _ in range(3):
        payer.pass_time(minutes=30).settle()
    payer.close("a")
    assert (balanced(payer)["a"].storage, balanced(payer)["a"].tail) == (Decimal("1.2"), Decimal("0.89"))


def test_what_was_never_called_is_all_tail(payer):
    payer.create("a", tokens=1000, seconds=600)
    payer.pass_time(hours=1)
    payer.close("a")
    [a] = balanced(payer).values()
    assert (a.calls, a.cost_uncached, a.last_call_at, a.tail) == (0, 0, None, a.storage)
    assert a.calls_by_hour == (0,) * 24


def test_cached_tokens_are_priced_by_the_model_that_was_called(payer):
    payer.create("a", tokens=1000)
    hit(payer, "a", model="moonshot-v1-8k")
    hit(payer, "a", model="moonshot-v1-128k")
    assert balanced(payer)["a"].cost_uncached == Decimal("0.012") + Decimal("0.06")
    assert balanced(payer, FAMILY)["moonshot-v1"].cost_uncached == Decimal("0.072")


def test_each_call_is_priced_by_the_price_of_its_time():
    now = clock.now()
    payer = make_payer(recharged="100", at=now)
    change = now + timedelta(minutes=10)
    price_book.publish(
        meter="prompt", model="moonshot-v1-8k", currency="CNY", per_million=Decimal(6), valid_from=change
    )
    payer.create("a", tokens=1000)
    hit(payer, "a")
    payer.at = change - timedelta(microseconds=1)
    hit(payer, "a")
    payer.at = change
    hit(payer, "a")
    assert balanced(payer)["a"].cost_uncached == Decimal("0.012") * 2 + Decimal("0.006")


def test_days_and_hours_are_those_of_the_zone(payer):
    payer.create("a", tokens=1000, seconds=864_000)
    hit(payer, "a")
    payer.pass_time(hours=5)
    hit(payer, "a")
    assert {key: row.calls for key, row in balanced(payer, DAY, tz="UTC").items()} == {"2024-07-15": 2}
    told = balanced(payer, DAY, tz="Asia/Shanghai")
    assert {key: (row.calls, row.creation) for key, row in told.items()} == {
        "2024-07-15": (1, Decimal("0.024")),
        "2024-07-16": (1, 0),
    }
    shanghai = balanced(payer, tz="Asia/Shanghai")["a"]
    assert (shanghai.calls_by_hour[20], shanghai.calls_by_hour[1], shanghai.call_days) == (1, 1, 2)


def test_seconds_are_those_of_the_activation_that_was_called(payer):
    payer.create("a", tokens=1000, seconds=86_400)
    payer.create("b", tokens=1000, seconds=86_400)
    for subject in "aab":
        hit(payer, subject)
    payer.pass_time(hours=1)
    hit(payer, "a")
    spared = [
        Spared(subject="a", since=NOON, until=NOON + timedelta(hours=1), milliseconds=1500),
        Spared(subject="a", since=NOON + timedelta(hours=1), until=None, milliseconds=700),
    ]
    told = balanced(payer, spared=spared)
    assert (told["a"].timed_calls, told["a"].milliseconds) == (3, 3700)
    assert (told["b"].timed_calls, told["b"].milliseconds) == (0, 0)
    assert savings.called_subjects(payer.organization_id, start=NOON, end=payer.at) == ["a", "b"]


def test_what_was_given_back_is_no_cost_and_what_was_waived_neither(new_payer):
    payer = new_payer(recharged="10")
    payer.create("a", tokens=1000, seconds=60)
    hit(payer, "a")
    payer.correct(payer.entries(kind="creation")[0])
    [a] = balanced(payer).values()
    assert (a.creation, a.call_fees) == (0, Decimal("0.02"))
    payer.hold(payer.available)
    payer.call(hold="0", subject="a", prompt=1000, cached=1000)
    [a] = balanced(payer).values()
    assert (a.calls, a.call_fees) == (2, Decimal("0.02"))


def test_nobody_elses_and_no_other_time_is_told(payer):
    payer.create("a", tokens=1000)
    hit(payer, "a")
    assert balanced(make_payer(recharged="1")) == {}
    assert balanced(payer, start=NOON + MINUTE, end=NOON + 2 * MINUTE) == {}
