"""Whether a cache object pays: each rule on its own, and the edges between them."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from cacheplane.caching import advice
from cacheplane.caching.advice import Kept

NEVER = (0,) * 24


def at_hours(**calls: int) -> tuple[int, ...]:
    """`h9=3` is three calls between nine and ten."""
    hours = [0] * 24
    for name, number in calls.items():
        hours[int(name[1:])] = number
    return tuple(hours)


KEPT = Kept(
    calls=100,
    call_days=1,
    calls_by_hour=at_hours(h9=50, h15=50),
    cost_uncached=Decimal("60"),
    creation=Decimal("1"),
    storage=Decimal("20"),
    call_fees=Decimal("2"),
    stored_minutes=600,
    tail=Decimal("1"),
)
"""Ten hours of storage, and a hundred calls that spare 0.60 for 0.02 each."""


def test_what_pays_is_kept():
    told = advice.advise(KEPT)
    assert (told.word, told.reason) == ("keep", "It saved 37.000000000.")


def test_what_is_used_all_day_is_kept_though_it_loses_and_told_from_when_it_pays():
    told = advice.advise(replace(KEPT, cost_uncached=Decimal("22")))
    assert told.word == "keep"
    # 21 fixed, 0.20 spared by a call: 105 calls in ten hours.
    assert told.reason == "It cost 1.000000000 more than it saved: it pays from 11 such calls an hour on."


def test_calls_that_spare_less_than_their_fee_never_pay():
    poor = replace(KEPT, cost_uncached=Decimal("2"))
    assert advice.break_even_calls_per_hour(poor) is None
    assert advice.advise(poor).reason.endswith("its calls spare no more than their fee.")


@pytest.mark.parametrize(
    ("cost_uncached", "wanted"),
    [("23", 10), ("22.999999999", 11), ("44", 5), ("2.000000001", 210_000_000_000)],
)
def test_break_even_is_rounded_up_to_a_whole_call(cost_uncached, wanted):
    kept = replace(KEPT, cost_uncached=Decimal(cost_uncached))
    assert advice.break_even_calls_per_hour(kept) == wanted


def test_what_was_not_called_is_stopped():
    idle = replace(
        KEPT, calls=0, call_days=0, calls_by_hour=NEVER, cost_uncached=Decimal(0), tail=KEPT.storage
    )
    told = advice.advise(idle)
    assert (told.word, "20.000000000" in told.reason) == ("stop", True)
    assert advice.break_even_calls_per_hour(idle) is None


def test_what_was_not_called_and_not_stored_is_left_alone():
    nothing = replace(KEPT, calls=0, call_days=0, calls_by_hour=NEVER, storage=Decimal(0), tail=Decimal(0))
    assert advice.advise(nothing).word == "keep"


@pytest.mark.parametrize(("tail", "word"), [("10", "keep"), ("10.000000001", "shorten"), ("20", "shorten")])
def test_a_long_tail_is_shortened(tail, word):
    assert advice.advise(replace(KEPT, tail=Decimal(tail))).word == word


WEEK = replace(
    KEPT,
    call_days=5,
    calls_by_hour=at_hours(h9=30, h12=30, h16=30, h23=10),
    stored_minutes=5 * 24 * 60,
)
"""Five days around the clock, and nine calls in ten between nine and five."""


def test_office_hours_are_a_schedule():
    told = advice.advise(WEEK)
    assert told.word == "schedule"
    assert "between 09:00 and 17:00, on 5 days" in told.reason


@pytest.mark.parametrize(
    "change",
    [
        {"call_days": 2},
        {"calls_by_hour": at_hours(h9=29, h12=30, h16=30, h23=11)},  # fewer than nine in ten
        {"calls_by_hour": at_hours(h0=50, h12=50)},  # thirteen hours
        {"stored_minutes": 5 * 8 * 60},  # it is kept in those hours alone already
        {"creation": Decimal(10)},  # five creations cost more than the nights
    ],
)
def test_no_schedule_where_one_of_its_conditions_fails(change):
    assert advice.advise(replace(WEEK, **change)).word == "keep"


def test_busy_hours_go_over_midnight():
    assert advice.busy_hours(at_hours(h22=5, h23=5, h0=5, h1=5)) == (22, 4)
    assert advice.busy_hours(at_hours(h7=1)) == (7, 1)
    assert advice.busy_hours(NEVER) is None
    assert advice.busy_hours((1,) * 24) is None
