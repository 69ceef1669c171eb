"""Each part of the drill in small: it reaches its figure here, and misses it where the books are harmed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import connection, transaction

from billing import accounts
from billing.models import LedgerEntry, StorageSegment
from cacheplane.celery import app
from cacheplane.management.drill import (
    calls,
    duplicates,
    exhaustion,
    intervals,
    money,
    operations,
    overdraft,
    rerating,
    scene,
)
from cacheplane.management.drill.figures import Figure
from cacheplane.management.drill.wanderers import BrokenPromise, Wanderer
from tests.domain.billing.conftest import make_payer

pytestmark = pytest.mark.django_db(transaction=True)

SEED = 7


@pytest.fixture
def audit_clean() -> None:
    """The parts look at the promises themselves, and here some are broken on purpose."""


@pytest.fixture
def rewriting_allowed() -> Iterator[None]:
    """As it would be for whoever gets past the database's own triggers."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE billing_ledgerentry DISABLE TRIGGER billing_ledgerentry_is_append_only")
        yield
        cursor.execute("ALTER TABLE billing_ledgerentry ENABLE TRIGGER billing_ledgerentry_is_append_only")


def one(figures: list[Figure]) -> Figure:
    [figure] = figures
    return figure


# --- Each part reaches its figure ------------------------------------------------------------------------------


def test_of_many_at_once_exactly_the_affordable_pass():
    figure = one(overdraft.run(seed=SEED, rounds=2, callers=24, affordable=9))
    assert figure.is_reached, figure.reached
    assert figure.count == 48


def test_a_message_told_many_times_counts_once():
    figure = one(duplicates.run(seed=SEED, messages=6, callers=3))
    assert figure.is_reached, figure.reached
    assert figure.count == 6 * len(duplicates.KINDS)


def test_money_ends_to_the_minute_and_at_once():
    told: list[int] = []
    figure = one(
        exhaustion.run(seed=SEED, count=4, lead_seconds=1.0, spread_seconds=0.5, advance=told.append)
    )
    assert figure.is_reached, figure.reached
    assert (figure.count, sum(told)) == (4, 4)


def test_the_sweep_of_the_drill_is_that_of_the_beat_table():
    app.loader.import_default_modules()
    assert app.conf.beat_schedule["expire"]["schedule"] == exhaustion.SWEEP_SECONDS


def test_intervals_are_rated_as_they_are_reckoned():
    figure = one(intervals.run(seed=SEED, intervals=1200))
    assert figure.is_reached, figure.reached
    assert figure.count == 1200


def test_a_month_is_rated_again():
    figure = month()
    assert figure.is_reached, figure.reached
    assert figure.count == 700


def month() -> Figure:
    rerating.price_the_month()
    booked = rerating.book(random.Random(SEED), events=700, advance=lambda done: None)
    return rerating.rerate(seed=SEED, events=700, booked=booked)


def test_every_part_has_its_size():
    assert sum(operations.legs(1_000_003)) == 1_000_003
    sizes = money.Sizes(operations=1, rounds=1, messages=1, intervals=1, events=1, objects=1)
    units = {part.name: part.units(sizes) for part in money.PARTS}
    assert units == {
        "overdraft": overdraft.CALLERS,
        "duplicates": len(duplicates.KINDS),
        "exhaustion": 1,
        "intervals": 1,
        "rerating": 1,
        "operations": 1,
    }


# --- And misses it where the books are harmed ------------------------------------------------------------------


def test_a_changed_amount_is_seen_by_the_random_operations(rewriting_allowed: None):
    made, looks = operations.world(seed=SEED, number=0, accounts=5), operations.Looks()
    made.play(60, lambda done: None)
    looks.look()
    assert looks.found == []
    entry = LedgerEntry.objects.exclude(kind="recharge").order_by("id").first()
    assert entry is not None
    LedgerEntry.objects.filter(id=entry.id).update(amount=entry.amount + Decimal("0.000000001"))
    looks.look()
    figure = operations.figure(looks, made.end(), seed=SEED, operations=60, seconds=1.0)
    assert not figure.is_reached
    assert "I1" in figure.reached


def test_a_purse_that_gained_by_itself_is_seen_at_once():
    wanderer = Wanderer(payer=make_payer(recharged="1"), rng=random.Random(SEED), name="w")
    wanderer.check_balance()
    owing = wanderer.payer.hold("1")
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE billing_ledgeraccount DROP CONSTRAINT posted_covers_held_covers_zero")
        cursor.execute(
            "UPDATE billing_ledgeraccount SET held = 2 WHERE organization_id = %s",
            [wanderer.payer.organization_id],
        )
        with pytest.raises(BrokenPromise):
            wanderer.check_balance()
        cursor.execute(
            "UPDATE billing_ledgeraccount SET held = 1 WHERE organization_id = %s",
            [wanderer.payer.organization_id],
        )
        cursor.execute(
            "ALTER TABLE billing_ledgeraccount ADD CONSTRAINT posted_covers_held_covers_zero"
            " CHECK (posted >= held AND held >= 0)"
        )
    wanderer.payer.void(owing)


def test_a_charge_more_than_was_told_is_a_duplicate():
    told, rng = duplicates.Messages(), random.Random(SEED)
    caller, prices = duplicates._rich_caller(), scene.unit_prices()
    before = duplicates._cash([caller])
    duplicates._settlement(told, rng, caller, prices, 0)
    told.deliveries[0]()
    assert duplicates._wrong([caller], before, told) == []
    again = duplicates._drawn_call(rng, caller)
    calls.hold(again)
    calls.settle(again)
    [wrong] = duplicates._wrong([caller], before, told)
    assert caller.organization_id in wrong


def test_a_changed_price_is_seen_when_the_month_is_rated_again(rewriting_allowed: None):
    assert month().is_reached
    entry = LedgerEntry.objects.filter(kind="prompt").first()
    assert entry is not None
    LedgerEntry.objects.filter(id=entry.id).update(unit_price=entry.unit_price * 2)
    figure = rerating.rerate(seed=SEED, events=700, booked=Decimal(0))
    assert not figure.is_reached
    assert "the price book has" in figure.reached


def test_a_minute_billed_beyond_the_money_is_seen():
    caller, cache_id, tokens = exhaustion._stored(random.Random(SEED), scene.engine(slots=1).pk)
    with transaction.atomic():
        ends_at = accounts.lock(caller.organization_id).locked_at + timedelta(seconds=0.3)
    watched = exhaustion._moved_back(random.Random(SEED), caller, cache_id, tokens, ends_at=ends_at)
    exhaustion._watch([watched], until=ends_at + timedelta(seconds=1.2))
    assert exhaustion._judged([watched], seed=SEED, seconds=0).is_reached
    StorageSegment.objects.filter(organization_id=caller.organization_id).update(billed_minutes=99)
    figure = exhaustion._judged([watched], seed=SEED, seconds=0)
    assert not figure.is_reached
