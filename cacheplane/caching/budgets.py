"""Budgets: what the creations and the storage of a cache object, or of its whole organization, may cost. Ends are
planned by them; under the lock of the organization's account."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from billing import budgets, charging, money
from billing.accounts import LockedAccount
from billing.budgets import AnySpender, Budget, OrganizationSpender, Spender
from billing.models import StorageSegment
from billing.money import ZERO
from cacheplane.caching.models import CacheObject, OrganizationBudget
from cacheplane.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A budget that an object has to keep to: its own, or its organization's."""

    budget: Budget
    spender: AnySpender
    is_organizations: bool


def of(row: CacheObject) -> Budget | None:
    return None if row.budget_amount is None else Budget(amount=row.budget_amount, per=row.budget_per)


def of_organization(organization_id: str) -> Budget | None:
    row = OrganizationBudget.objects.filter(organization_id=organization_id).first()
    return None if row is None else Budget(amount=row.amount, per=row.per)


def _bounds(row: CacheObject, *, currency: str) -> list[Bound]:
    found = []
    if (own := of(row)) is not None:
        keys = [creation_key(row.id, number + 1) for number in range(row.activations)]
        spender = Spender(
            organization_id=row.organization_id, subject=row.id, creation_keys=keys, currency=currency
        )
        found.append(Bound(budget=own, spender=spender, is_organizations=False))
    if (shared := of_organization(row.organization_id)) is not None:
        everybody = OrganizationSpender(
            organization_id=row.organization_id, currency=currency, own_hold=row.hold_reference
        )
        found.append(Bound(budget=shared, spender=everybody, is_organizations=True))
    return found


def creation_key(cache_id: str, activation: int) -> str:
    """How billing knows an object's n-th creation."""
    return f"{cache_id}:{activation}"


def within(
    account: LockedAccount,
    row: CacheObject,
    segment: StorageSegment,
    *,
    until: datetime,
    at: datetime,
    more: Decimal = ZERO,
) -> datetime:
    """`until`, or the first minute of its open segment (or one that is not saved yet) that a budget cannot pay.
    `more` is about to be spent."""
    ends = [
        budgets.ends_at(bound.budget, bound.spender, segment, ends_at=until, at=at, more=more)
        for bound in _bounds(row, currency=account.currency)
    ]
    return min([until, *(end for end in ends if end is not None)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """The budget that ended an object, and what was spent of it by then."""

    budget: Budget
    spent: Decimal
    is_organizations: bool


def reached(account: LockedAccount, row: CacheObject, *, at: datetime) -> Reached | None:
    """The one with the least left at `at`; None where there is none any more."""
    found = [
        Reached(
            budget=bound.budget,
            spent=budgets.spent(bound.budget, bound.spender, at=at),
            is_organizations=bound.is_organizations,
        )
        for bound in _bounds(row, currency=account.currency)
    ]
    return min(found, key=lambda one: money.subtract(one.budget.amount, one.spent), default=None)


def require_creation(account: LockedAccount, row: CacheObject, *, at: datetime) -> None:
    """Raise InvalidRequest when a budget cannot pay a creation and the first minute."""
    for bound in _bounds(row, currency=account.currency):
        quote = charging.creation_quote(
            organization_id=row.organization_id,
            model=row.model,
            tokens=row.tokens,
            currency=account.currency,
            at=at,
        )
        left = budgets.left(bound.budget, bound.spender, at=at)
        if quote.total > left:
            period = "a month" if bound.budget.per == budgets.MONTH else "in total"
            amount, gone = (
                money.text(bound.budget.amount),
                money.text(money.subtract(bound.budget.amount, left)),
            )
            named = (
                f"The organization's budget is {amount} {period}"
                if bound.is_organizations
                else f"Invalid request: budget.amount: got {amount} {period}"
            )
            raise InvalidRequest(
                f"{named}, of which {gone} is spent, takes {money.text(quote.total)} more for a creation and its "
                "first minute"
            )
