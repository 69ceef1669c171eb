"""Money keeps nine places, or says that it cannot."""

from __future__ import annotations

import decimal
from decimal import Decimal

import pytest

from billing import money


def test_an_amount_keeps_nine_places():
    assert str(money.exact("0.02")) == "0.020000000"
    assert money.exact(Decimal("0.000000001")) == Decimal("1e-9")


@pytest.mark.parametrize("value", ["0.0000000001", "1e-10", "0.1234567891"])
def test_a_tenth_place_is_refused_not_rounded(value):
    with pytest.raises(decimal.Inexact):
        money.exact(value)


def test_a_float_is_refused():
    with pytest.raises(TypeError):
        money.exact(0.1)  # type: ignore[arg-type]


def test_what_the_usual_context_would_round_stays_exact():
    large = Decimal("123456789012345.123456789")
    assert large * 9_999_999_999 != money.multiply(9_999_999_999, large)
    assert money.to_nanos(money.multiply(9_999_999_999, large)) == money.to_nanos(large) * 9_999_999_999


def test_nanos_go_there_and_back():
    for text in ("0", "0.000000001", "20000.5", "999999999999999.999999999"):
        assert money.from_nanos(money.to_nanos(Decimal(text))) == Decimal(text)


def test_every_price_in_steps_of_a_thousandth_has_an_exact_unit_price():
    for thousandths in range(0, 100_000, 7):
        per_million = Decimal(thousandths) / 1000
        assert money.unit_price(per_million) * 1_000_000 == per_million


def test_an_amount_is_written_without_an_exponent():
    assert money.text(money.ZERO) == "0.000000000"
    assert money.text(Decimal("0.35")) == "0.350000000"
    assert money.text(Decimal("-1E+2")) == "-100.000000000"
