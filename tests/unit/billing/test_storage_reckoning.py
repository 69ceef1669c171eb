"""The drill's own reckoning of storage, minute by minute, and what it is drawn from."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from cacheplane.management.drill import intervals
from cacheplane.management.drill.intervals import Interval, Reckoned

SEED = 7
MINUTE = intervals.MINUTE_US
STORED = Interval(tokens=10, start=0, first_end=3 * MINUTE, moves=(), cut=None, prices=((0, 7),))


@pytest.mark.parametrize(
    "changes, minutes, cost",
    [
        ({}, 3, 210),
        ({"first_end": 3 * MINUTE + 1}, 4, 280),
        ({"first_end": 1}, 1, 70),
        ({"cut": 0}, 1, 70),
        ({"cut": MINUTE}, 1, 70),
        ({"cut": MINUTE + 1}, 2, 140),
        ({"moves": ((MINUTE, 5 * MINUTE),)}, 5, 350),
        ({"moves": ((MINUTE, MINUTE),)}, 1, 70),
        ({"prices": ((0, 7), (MINUTE, 1))}, 3, 90),
        ({"prices": ((0, 7), (MINUTE + 1, 1))}, 3, 150),
    ],
)
def test_minutes_are_reckoned_as_a_bookkeeper_does(changes: dict[str, Any], minutes: int, cost: int):
    found = intervals.reckon(replace(STORED, **changes), asked=(), money=10**12)
    assert found == Reckoned(minutes=minutes, cost=cost, until=(), beyond=None)


def test_what_is_owed_by_an_instant_and_where_money_ends():
    found = intervals.reckon(STORED, asked=(-1, 0, 2 * MINUTE - 1), money=139)
    assert (found.until, found.beyond) == ((0, 70, 140), MINUTE)


def test_the_same_seed_draws_the_same():
    def draws() -> list[Interval]:
        rng = random.Random(SEED)
        return [intervals.drawn(rng) for _ in range(50)]

    assert draws() == draws()


def test_what_is_drawn_has_all_kinds_of_stories():
    rng = random.Random(SEED)
    drawn = [intervals.drawn(rng) for _ in range(500)]
    assert any(one.moves for one in drawn) and any(one.cut is not None for one in drawn)
    assert any(len(one.prices) > 1 for one in drawn)
    assert any(to < one.first_end for one in drawn for _, to in one.moves), "an end that is moved forward"
    assert any(to > one.first_end for one in drawn for _, to in one.moves)
