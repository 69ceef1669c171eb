"""A cache object's budget: what its creations and its storage may cost. Its end is planned by it; under the lock of
the organization's account."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from billing import budgets, charging, money
from billing.accounts import LockedAccount
from billing.budgets import Budget, Spender
from billing.models import StorageSegment
from billing.money import ZERO
from cacheplane.caching.models import CacheObject
from cacheplane.errors import InvalidRequest


def of(row: CacheObject) -> Budget | None:
    return None if row.budget_amount is None else Budget(amount=row.budget_amount, per=row.budget_per)


def _spender(row: CacheObject, *, currency: str) -> Spender:
    keys = [creation_key(row.id, number + 1) for number in range(row.activations)]
    return Spender(subject=row.id, creation_keys=keys, currency=currency)


def creation_key(cache_id: str, activation: int) -> str:
    """How billing knows an object's n-th creation."""
    return f"{cache_id}:{activation}"


def spent(row: CacheObject, *, currency: str, at: datetime) -> Decimal:
    """What its budget has paid so far, in the period of `at`. Only for an object that has one."""
    budget = of(row)
    assert budget is not None
    return budgets.spent(budget, _spender(row, currency=currency), at=at)


def within(
    account: LockedAccount,
    row: CacheObject,
    segment: StorageSegment,
    *,
    until: datetime,
    at: datetime,
    more: Decimal = ZERO,
) -> datetime:
    """`until`, or the first minute of its open segment (or one that is not saved yet) that its budget cannot pay.
    `more` is about to be spent."""
    budget = of(row)
    if budget is None:
        return until
    beyond = budgets.ends_at(
        budget, _spender(row, currency=account.currency), segment, ends_at=until, at=at, more=more
    )
    return until if beyond is None else min(until, beyond)


def require_creation(
    account: LockedAccount, row: CacheObject, *, at: datetime, budget: Budget | None = None
) -> None:
    """Raise InvalidRequest when the budget cannot pay a creation and the first minute. `budget` is one that the
    object will have."""
    budget = budget or of(row)
    if budget is None:
        return
    quote = charging.creation_quote(model=row.model, tokens=row.tokens, currency=account.currency, at=at)
    gone = budgets.spent(budget, _spender(row, currency=account.currency), at=at)
    if money.add(gone, quote.total) > budget.amount:
        raise InvalidRequest(
            f"Invalid request: budget.amount: got {money.text(budget.amount)} "
            f"{'a month' if budget.per == budgets.MONTH else 'in total'}, of which {money.text(gone)} is spent, "
            f"takes {money.text(quote.total)} more for a creation and its first minute"
        )
