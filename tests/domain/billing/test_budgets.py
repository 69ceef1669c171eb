"""When a budget ends: by the minute, by the month of UTC+8, across prices. The test holds the clock."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import transaction

from billing import budgets, rating
from billing.budgets import Budget, Spender
from billing.models import StorageSegment
from tests.domain.billing.conftest import FAMILY, NOON, STORAGE_HALVED, Payer, make_payer

pytestmark = pytest.mark.django_db

TOKENS = 100_000
MINUTE = timedelta(minutes=1)
JULY, AUGUST = Decimal("1"), Decimal("0.5")
"""¥ for a minute of 100,000 tokens, before 2024-08-07 and from then on."""
MONTH_END = datetime(2024, 7, 31, 16, tzinfo=UTC)
"""Midnight of UTC+8."""


def spender(payer: Payer, subject: str = "cache-a", *, creations: int = 1) -> Spender:
    keys = [f"{subject}:{number + 1}" for number in range(creations)]
    return Spender(organization_id=payer.organization_id, subject=subject, creation_keys=keys, currency="CNY")


def end(payer: Payer, budget: Budget, *, hours: float, who: Spender | None = None) -> datetime | None:
    segment = StorageSegment.objects.get(subject="cache-a", closed_at__isnull=True)
    with transaction.atomic():
        return budgets.ends_at(
            budget, who or spender(payer), segment, ends_at=payer.at + timedelta(hours=hours), at=payer.at
        )


def total(amount: str | Decimal) -> Budget:
    return Budget(amount=Decimal(amount), per="total")


def monthly(amount: str | Decimal) -> Budget:
    return Budget(amount=Decimal(amount), per="month")


def test_a_total_pays_the_creation_first_and_then_minutes(payer: Payer) -> None:
    payer.create("cache-a", tokens=TOKENS)
    assert end(payer, total("12.4"), hours=1) == NOON + 10 * MINUTE
    assert end(payer, total("12.399999999"), hours=1) == NOON + 9 * MINUTE
    assert end(payer, total("62.4"), hours=1) is None
    assert end(payer, total("2.4"), hours=1) == NOON, "no minute is left"
    assert end(payer, total("1"), hours=1) == NOON


def test_what_was_spent_counts_minutes_that_have_started(payer: Payer) -> None:
    payer.create("cache-a", tokens=TOKENS, seconds=600)
    for seconds, minutes in ((0, 1), (59, 1), (1, 2), (3600, 10)):
        payer.pass_time(seconds=seconds)
        assert budgets.spent(total(100), spender(payer), at=payer.at) == Decimal("2.4") + minutes * JULY
    payer.close("cache-a")
    assert budgets.spent(total(100), spender(payer), at=payer.at) == Decimal("12.4")
    assert budgets.spent(monthly(100), spender(payer), at=payer.at) == Decimal("12.4")


def test_it_is_one_subject_s(payer: Payer) -> None:
    payer.create("cache-b", tokens=TOKENS)
    payer.create("cache-a", tokens=TOKENS)
    assert end(payer, total("12.4"), hours=1) == NOON + 10 * MINUTE


def test_it_heeds_a_price_that_changes_meanwhile(payer: Payer) -> None:
    payer.at = STORAGE_HALVED - 5 * MINUTE
    payer.store("cache-a", tokens=TOKENS)
    assert end(payer, total(10), hours=1) == payer.at + 15 * MINUTE
    assert end(payer, total(5), hours=1) == payer.at + 5 * MINUTE


def test_a_month_ends_at_midnight_of_utc_8(payer: Payer) -> None:
    payer.at = MONTH_END - 10 * MINUTE
    payer.store("cache-a", tokens=TOKENS, seconds=7200)
    assert end(payer, monthly(9), hours=2) == MONTH_END - MINUTE
    assert end(payer, monthly(10), hours=2) == MONTH_END + 10 * MINUTE, "the next month has its own ten"
    assert end(payer, monthly(110), hours=2) is None
    payer.at = MONTH_END + 3 * MINUTE
    assert budgets.spent(monthly(10), spender(payer), at=MONTH_END - MINUTE / 60) == 10
    assert budgets.spent(monthly(10), spender(payer), at=payer.at) == 4
    payer.close("cache-a")
    assert budgets.spent(monthly(10), spender(payer), at=payer.at) == 3
    payer.create("cache-a", tokens=TOKENS)
    assert end(payer, monthly(10), hours=2) == payer.at + 4 * MINUTE, "3 and a creation of 2.40 are spent"


def test_a_creation_of_last_month_is_last_month_s(payer: Payer) -> None:
    payer.at = MONTH_END - MINUTE
    payer.create("cache-a", tokens=TOKENS, seconds=30)
    payer.close("cache-a", at=MONTH_END - MINUTE / 2)
    payer.at = MONTH_END + MINUTE
    assert budgets.spent(monthly(10), spender(payer), at=payer.at) == 0
    assert budgets.spent(total(10), spender(payer), at=payer.at) == Decimal("3.4")


def test_more_that_is_about_to_be_spent(payer: Payer) -> None:
    segment = StorageSegment(
        subject="cache-new", model=FAMILY, tokens=TOKENS, started_at=NOON, ends_at=NOON + timedelta(hours=1)
    )
    with transaction.atomic():
        found = budgets.ends_at(
            total(10),
            spender(payer, "cache-new", creations=0),
            segment,
            ends_at=segment.ends_at,
            at=NOON,
            more=Decimal("2.4"),
        )
    assert found == NOON + 7 * MINUTE


@pytest.mark.parametrize("seed", range(40))
def test_up_to_its_end_the_bill_is_within_the_budget_and_a_minute_more_is_not(db: None, seed: int) -> None:
    """Random lives about a month's end and a change of price, against the ledger's own lines."""
    chance = random.Random(seed)
    payer = make_payer(
        recharged="100000", at=chance.choice([MONTH_END, STORAGE_HALVED]) - chance.randint(0, 90) * MINUTE
    )
    budget = Budget(
        amount=Decimal(chance.randint(1, 400_000)).scaleb(-4), per=chance.choice(["month", "total"])
    )
    lives = chance.randint(0, 2)
    for life in range(lives):
        payer.create("cache-a", tokens=TOKENS, key=f"cache-a:{life + 1}")
        payer.pass_time(seconds=chance.randint(1, 900))
        payer.close("cache-a")
    payer.store("cache-a", tokens=TOKENS, seconds=10_800)
    started_at = payer.at
    who = spender(payer, creations=lives)
    payer.pass_time(seconds=chance.randint(0, 600))
    found = end(payer, budget, hours=2, who=who)
    ends_at = found or payer.at + timedelta(hours=2)
    for minute in range(rating.minutes_lived(started_at=started_at, ended_at=ends_at)):
        at = started_at + minute * MINUTE
        if payer.at <= at < ends_at:
            assert budgets.spent(budget, who, at=at) <= budget.amount
    if found is not None:
        assert budgets.spent(budget, who, at=found) > budget.amount
