"""Exact money: `Decimal` with nine places, in a context that refuses to round.

Inside rating a sum is an `int` of nanos (1 nano = 0.000000001 of the currency), which is exact by nature and
fast; outside it is a `Decimal`. Pure: no framework.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterable
from decimal import Decimal

PLACES = 9
NANO = 10**PLACES
ZERO = Decimal("0.000000000")
UNITS_PER_PRICE = 1_000_000
"""A price is quoted per this many units."""

EXACT = decimal.Context(
    prec=60,
    rounding=decimal.ROUND_HALF_EVEN,
    traps=[decimal.Inexact, decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow],
)


def exact(value: Decimal | int | str) -> Decimal:
    """The same value with nine places. Raises decimal.Inexact if it has more, TypeError for a float."""
    if isinstance(value, float):
        raise TypeError("Money is never a float: pass a Decimal or a string.")
    return Decimal(value).quantize(ZERO, context=EXACT)


def to_nanos(amount: Decimal) -> int:
    """Raises decimal.Inexact when the amount has more than nine places."""
    return int(exact(amount).scaleb(PLACES, EXACT))


def from_nanos(nanos: int) -> Decimal:
    return Decimal(nanos).scaleb(-PLACES, EXACT)


def text(amount: Decimal) -> str:
    """As JSON carries it: nine places, never an exponent, for example "0.350000000"."""
    return format(exact(amount), "f")


def add(a: Decimal, b: Decimal) -> Decimal:
    return EXACT.add(a, b)


def subtract(a: Decimal, b: Decimal) -> Decimal:
    return EXACT.subtract(a, b)


def total(amounts: Iterable[Decimal]) -> Decimal:
    result = ZERO
    for amount in amounts:
        result = EXACT.add(result, amount)
    return result


def multiply(quantity: int, unit_price: Decimal) -> Decimal:
    return EXACT.multiply(Decimal(quantity), unit_price)


def unit_price(per_million: Decimal) -> Decimal:
    """A price per 1,000,000 units in steps of 0.001 is exact at nine places per unit."""
    return exact(EXACT.divide(per_million, Decimal(UNITS_PER_PRICE)))
