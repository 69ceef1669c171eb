"""The rule costs at most twice what hindsight would have chosen, in the minutes and prices that are really billed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest

from billing import money
from cacheplane.caching import ski_rental
from cacheplane.caching.ski_rental import break_even_minutes, kept_until

NOON = datetime(2024, 11, 15, 12, tzinfo=UTC)
MINUTE_US = 60_000_000
SEQUENCES = 6_000
SHIPPED = (Decimal("0.000024"), Decimal("0.000005"))


def online_nanos(uses_us: Sequence[int], creation: Decimal, storage: Decimal) -> int:
    """Creations, and the started minutes of each life, as the rule buys them. Integer microseconds and nanos."""
    minutes = break_even_minutes(creation=creation, storage_per_minute=storage)
    fee, minute = money.to_nanos(creation), money.to_nanos(storage)
    cost, index = 0, 0
    while index < len(uses_us):
        started_at = NOON + timedelta(microseconds=uses_us[index])
        ends_at = started_at
        while index < len(uses_us) and (
            ends_at == started_at or NOON + timedelta(microseconds=uses_us[index]) < ends_at
        ):
            used_at = NOON + timedelta(microseconds=uses_us[index])
            ends_at = kept_until(started_at=started_at, used_at=used_at, minutes=minutes)
            index += 1
        cost += fee + minute * ((ends_at - started_at) // ski_rental.MINUTE)
    return cost


def best_nanos(uses_us: Sequence[int], creation: Decimal, storage: Decimal) -> int:
    """The cheapest way to have all uses served, of all there are: each life serves some uses one after another."""
    fee, minute = money.to_nanos(creation), money.to_nanos(storage)
    best = [0]
    for last in range(len(uses_us)):
        best.append(
            min(
                best[first] + fee + minute * ((uses_us[last] - uses_us[first]) // MINUTE_US + 1)
                for first in range(last + 1)
            )
        )
    return best[-1]


def ratio(uses_us: Sequence[int], creation: Decimal, storage: Decimal) -> Fraction:
    return Fraction(online_nanos(uses_us, creation, storage), best_nanos(uses_us, creation, storage))


def random_prices(chance: random.Random) -> tuple[Decimal, Decimal]:
    return Decimal(chance.randint(1, 60_000)).scaleb(-9), Decimal(chance.randint(1, 12_000)).scaleb(-9)


def random_uses(chance: random.Random, minutes: int) -> list[int]:
    """Gaps about the break-even, where the rule is at its worst, and some of any kind."""
    kept = min(minutes, 30)
    at, uses = 0, []
    for _ in range(chance.randint(1, 25)):
        uses.append(at)
        gap = chance.choice(
            [
                (kept + 1) * MINUTE_US,
                (kept + 1) * MINUTE_US - 1,
                (kept + 1) * MINUTE_US + chance.randint(0, 3),
                kept * MINUTE_US + chance.randint(-1, 1),
                chance.randint(0, 2 * (kept + 1) * MINUTE_US),
                chance.randint(0, MINUTE_US),
                1,
            ]
        )
        at += max(0, gap)
    return uses


def test_it_never_costs_more_than_twice_the_best_choice() -> None:
    chance = random.Random(20241115)
    worst = Fraction(0)
    for _ in range(SEQUENCES):
        creation, storage = random_prices(chance)
        uses = random_uses(chance, break_even_minutes(creation=creation, storage_per_minute=storage))
        found = ratio(uses, creation, storage)
        assert 1 <= found <= 2, (creation, storage, uses)
        worst = max(worst, found)
    assert worst > Fraction(3, 2), "sequences that do not try the rule prove nothing"


def test_it_may_cost_nearly_twice_as_much() -> None:
    """Each call comes just after the object was let go, at prices where a minute more would have cost the creation."""
    creation, storage = Decimal("0.000999999"), Decimal("0.000010000")
    gap = (break_even_minutes(creation=creation, storage_per_minute=storage) + 1) * MINUTE_US
    found = ratio([gap * use for use in range(400)], creation, storage)
    assert Fraction(198, 100) < found <= 2


def test_counted_from_the_use_itself_it_would_cost_more_than_twice_as_much() -> None:
    """What the minute of the use has to do with it: the plain rule, 4 minutes and no more, against calls each 4."""
    creation, storage = (money.to_nanos(price) for price in SHIPPED)
    plain = 100 * (creation + 4 * storage)
    assert Fraction(plain, best_nanos([4 * MINUTE_US * use for use in range(100)], *SHIPPED)) > 2
    assert ratio([4 * MINUTE_US * use for use in range(100)], *SHIPPED) <= 2


@pytest.mark.parametrize(
    ("creation", "storage", "minutes"),
    [
        ("0.000024", "0.000005", 4),
        ("0.000024", "0.00001", 2),
        ("0.00003", "0.00001", 3),
        ("0.000029999", "0.00001", 2),
        ("0.000001", "0.000005", 1),
        ("0", "0.000005", 1),
        ("0.000024", "0", ski_rental.MINUTES_MAX),
        ("1000", "0.000000001", ski_rental.MINUTES_MAX),
    ],
)
def test_break_even_is_in_whole_minutes_and_follows_the_prices(
    creation: str, storage: str, minutes: int
) -> None:
    found = break_even_minutes(creation=Decimal(creation), storage_per_minute=Decimal(storage))
    assert found == minutes


def test_the_end_is_that_of_a_minute_that_is_paid_for() -> None:
    def seconds(used: float) -> float:
        used_at = NOON + timedelta(seconds=used)
        return (kept_until(started_at=NOON, used_at=used_at, minutes=4) - NOON).total_seconds()

    assert [seconds(used) for used in (0, 0.5, 59.999999, 60, 61, 179.5)] == [300, 300, 300, 360, 360, 420]
    assert seconds(-1) == 300, "a clock that stepped back ends nothing before its time"
