"""The one place where money is rounded: an invoice's total, to fen. Pure.

Half up, as invoices are rounded where these are written. What half even is good for, that errors do not add up, is
not needed: rounded is only ever the sum to date, and an invoice is the difference of two of them.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context, Decimal

from billing import money

FEN = Decimal("0.01")
ROUNDING = Context(prec=60, rounding=ROUND_HALF_UP)


def to_fen(amount: Decimal) -> Decimal:
    """To two places; half a fen goes away from zero."""
    return amount.quantize(FEN, context=ROUNDING)


def invoice_amount(*, spent: Decimal, spent_to_date: Decimal) -> Decimal:
    """round(total to date) - round(total to date without what is invoiced)."""
    return money.subtract(to_fen(spent_to_date), to_fen(money.subtract(spent_to_date, spent)))
