"""The published examples, by the price lists of their days."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from cacheplane.caching import estimates
from cacheplane.engines.models import Engine, ModelFamily, ServedModel

FAMILY = "moonshot-v1"
NOBODY = "org-without-a-tier"
JULY, NOVEMBER = datetime(2024, 7, 15, 12, tzinfo=UTC), datetime(2024, 11, 15, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def family(db) -> None:
    ServedModel.objects.all().delete()
    for size in (8, 32, 128):
        ServedModel.objects.create(name=f"{FAMILY}-{size}k", family_id=FAMILY, window_tokens=size * 1024)
    Engine.objects.all().delete()
    engine = Engine.objects.create(
        name="default", total_slots=1, window_tokens=131_072, persist=True, url="http://127.0.0.1:1"
    )
    ModelFamily.objects.filter(name=FAMILY).update(engine=engine)


def priced(tokens: int, *, at: datetime, hours: float = 1):
    ends_at = at + timedelta(hours=hours)
    return estimates.priced(NOBODY, family=FAMILY, tokens=tokens, currency="CNY", at=at, ends_at=ends_at)


def test_thirty_five_thousand_tokens_for_an_hour_pay_from_eleven_calls():
    found = priced(35_000, at=JULY)
    assert (found.creation_fee, found.storage, found.call_fee) == (Decimal("0.84"), 21, Decimal("0.02"))
    small, middle, large = found.models
    assert (large.price_uncached, large.break_even_calls_per_hour) == (Decimal("2.10"), 11)
    for other in (small, middle):
        assert (other.is_too_long, other.break_even_calls) == (True, None)
    assert found.verdict == (
        "Kept for 3600 seconds, it pays from 11 calls an hour on moonshot-v1-128k; it is too long for "
        "moonshot-v1-8k, moonshot-v1-32k."
    )


def test_fifteen_hours():
    found = priced(35_000, at=JULY, hours=15)
    assert found.total == Decimal("315.84")
    large = found.models[-1]
    assert (large.break_even_calls, large.break_even_calls_per_hour) == (152, 11)


def test_half_the_storage_price_pays_sooner():
    found = priced(35_000, at=NOVEMBER)
    assert (found.storage_per_hour, found.models[-1].break_even_calls_per_hour) == (Decimal("10.5"), 6)


def test_a_break_even_that_is_whole_is_not_rounded_up():
    """2,500 tokens in July: 0.06 + 1.50, and each call on 128k spares 0.13; and the very edge of the fee."""
    assert priced(2_500, at=JULY).models[-1].break_even_calls == 12
    # 0.02 is what 1,666.67 tokens cost on 8k.
    at_the_edge = priced(1_666, at=NOVEMBER), priced(1_667, at=NOVEMBER)
    assert at_the_edge[0].models[0].break_even_calls is None
    assert at_the_edge[1].models[0].break_even_calls is not None
