"""Which price holds at an instant, and how a new one is announced."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import IntegrityError, connection, transaction

from billing import clock, price_book
from billing.errors import NoPrice, PriceRefused
from billing.models import Price, PricedItem

pytestmark = pytest.mark.django_db

FAMILY = "moonshot-v1"
BETA = datetime(2024, 6, 30, 16, tzinfo=UTC)
STORAGE_HALVED = datetime(2024, 8, 6, 16, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
NOBODY = "org-without-a-tier"


def per_million(meter: str, at: datetime, model: str = FAMILY) -> Decimal:
    return price_book.price_at(
        organization_id=NOBODY, meter=meter, model=model, currency="CNY", at=at
    ).per_million


def test_the_list_of_the_contract_is_there():
    assert (per_million("creation", BETA), per_million("call", BETA)) == (24, 20_000)
    assert per_million("storage", BETA) == per_million("storage", STORAGE_HALVED - MICROSECOND) == 10
    assert per_million("storage", STORAGE_HALVED) == 5
    for model, price in [("8k", 12), ("32k", 24), ("128k", 60)]:
        for meter in ("prompt", "completion"):
            assert per_million(meter, BETA, f"moonshot-v1-{model}") == price
    with pytest.raises(NoPrice):
        per_million("creation", BETA - MICROSECOND)


def test_a_unit_price_is_exact():
    price = price_book.price_at(organization_id=NOBODY, meter="call", model=FAMILY, currency="CNY", at=BETA)
    assert price.unit_price == Decimal("0.02")
    assert price.price_id == Price.objects.get(priced_item__meter="call").pk


def test_prices_over_a_span_come_in_order_and_without_a_gap():
    pieces = price_book.prices_between(
        organization_id=NOBODY, meter="storage", model=FAMILY, currency="CNY", first=BETA, last=STORAGE_HALVED
    )
    assert [(piece.valid_from, piece.unit_price) for piece in pieces] == [
        (BETA, Decimal("0.00001")),
        (STORAGE_HALVED, Decimal("0.000005")),
    ]


@pytest.mark.parametrize(
    ("first", "last"),
    [(BETA - MICROSECOND, BETA), (BETA - timedelta(days=2), BETA - timedelta(days=1))],
)
def test_a_span_with_a_gap_has_no_price(first, last):
    with pytest.raises(NoPrice):
        price_book.prices_between(
            organization_id=NOBODY, meter="storage", model=FAMILY, currency="CNY", first=first, last=last
        )


def test_a_gap_in_the_middle_and_an_end_are_seen():
    item = PricedItem.objects.create(meter="storage", model="m")
    day = timedelta(days=1)
    for start, end in [(0, 1), (2, 3)]:
        Price.objects.create(
            priced_item=item, per_million=1, valid_from=BETA + start * day, valid_to=BETA + end * day
        )
    for first, last in [(0.5, 2.5), (2.5, 3), (0, 1)]:
        with pytest.raises(NoPrice):
            price_book.prices_between(
                organization_id=NOBODY,
                meter="storage",
                model="m",
                currency="CNY",
                first=BETA + first * day,
                last=BETA + last * day,
            )


# --- Announcing -----------------------------------------------------------------------------------------------


def publish(valid_from: datetime, price: str = "4.5", meter: str = "storage", model: str = FAMILY) -> Price:
    return price_book.publish(
        meter=meter, model=model, currency="CNY", per_million=Decimal(price), valid_from=valid_from
    )


def test_an_announced_price_follows_the_one_in_force():
    start = clock.now() + timedelta(hours=1)
    publish(start)
    assert per_million("storage", start - MICROSECOND) == 5
    assert per_million("storage", start) == Decimal("4.5")


def test_a_price_is_announced_five_minutes_ahead():
    with pytest.raises(PriceRefused, match="ahead"):
        publish(clock.now() + timedelta(seconds=299))


def test_nothing_is_slipped_in_before_what_is_announced():
    start = clock.now() + timedelta(days=2)
    publish(start)
    for refused in (start, start - timedelta(days=1)):
        with pytest.raises(PriceRefused, match="already"):
            publish(refused)


def test_a_price_below_zero_or_in_finer_steps_is_refused():
    for price in ("0.0001", "-1"):
        with pytest.raises(PriceRefused, match="steps"):
            publish(clock.now() + timedelta(days=2), price=price)


def test_what_has_no_price_yet_may_have_one_at_once():
    start = clock.now()
    publish(start, meter="prompt", model="brand-new")
    assert per_million("prompt", start, "brand-new") == Decimal("4.5")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("UPDATE billing_price SET per_million = 1", "never changed"),
        ("UPDATE billing_price SET valid_from = valid_from - interval '1 day'", "never changed"),
        ("UPDATE billing_price SET valid_to = NULL WHERE valid_to IS NOT NULL", "never changed"),
        ("UPDATE billing_price SET valid_to = clock_timestamp() WHERE valid_to IS NULL", "300 seconds ahead"),
        ("DELETE FROM billing_price", "never changed"),
    ],
)
def test_the_database_refuses_to_rewrite_a_price(change, match):
    with pytest.raises(IntegrityError, match=match), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(change)


# --- The memo -------------------------------------------------------------------------------------------------


def test_a_price_is_read_once_while_nobody_can_have_changed_it(django_assert_num_queries):
    price_book.forget()
    at = clock.now()
    per_million("call", at)
    with django_assert_num_queries(0):
        per_million("call", at + timedelta(seconds=200))
    with django_assert_num_queries(2):
        per_million("call", at + timedelta(seconds=400))


def test_a_closed_price_is_remembered_for_its_own_time_only(django_assert_num_queries):
    price_book.forget()
    assert per_million("storage", BETA) == 10
    with django_assert_num_queries(0):
        assert per_million("storage", STORAGE_HALVED - MICROSECOND) == 10
    assert per_million("storage", STORAGE_HALVED) == 5


def test_a_price_that_may_still_be_rolled_back_is_not_remembered(django_assert_num_queries):
    start = clock.now()
    publish(start, meter="prompt", model="maybe")
    per_million("prompt", start, "maybe")
    with django_assert_num_queries(2):
        per_million("prompt", start, "maybe")


def test_an_announcement_ends_no_price_that_is_remembered():
    """What the memo holds is good until NOTICE after it was read; an announcement starts later than that."""
    price_book.forget()
    at = clock.now()
    assert per_million("call", at) == 20_000
    start = clock.now() + price_book.NOTICE + timedelta(seconds=5)
    publish(start, price="10000", meter="call")
    assert per_million("call", start - MICROSECOND) == 20_000
    assert per_million("call", start) == 10_000
