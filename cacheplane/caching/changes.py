"""What its owner changes of a cache object: metadata, what decides its end, its budget."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db import transaction

from billing import accounts, clock, price_book, price_tiers
from billing.accounts import LockedAccount
from billing.budgets import Budget, OrganizationSpender, all_end_at
from billing.models import Meter
from cacheplane.access import audit
from cacheplane.caching import budgets, lifecycle, reasons, uses
from cacheplane.caching.lifetimes import Lifetime
from cacheplane.caching.models import ACTIVE, AUTO, PENDING, CacheObject, OrganizationBudget

NEW_PRICE = "The price of storage changes, so its budget ends at another time."
NEW_BUDGET = "The organization's budget changes, so it ends at another time."


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a PUT changes; None stays as it is. `is_budget_dropped`: there is to be none."""

    metadata: dict[str, str] | None = None
    lifetime: Lifetime | None = None
    budget: Budget | None = None
    is_budget_dropped: bool = False


def change(
    organization_id: str, cache_id: str, wanted: Change, *, actor: str, cached_tokens_max: int | None
) -> CacheObject:
    """Metadata, lifetime and budget in one transaction, all or nothing. Raises as `extend` does."""
    with transaction.atomic():
        account = accounts.lock(organization_id)
        at = account.locked_at
        row = lifecycle.locked(organization_id, cache_id)
        if wanted.metadata is not None:
            CacheObject.objects.filter(id=row.id).update(metadata=wanted.metadata)
        if wanted.budget is not None or wanted.is_budget_dropped:
            _set_budget(account, row, wanted.budget, is_end_kept=wanted.lifetime is None, at=at, actor=actor)
        if wanted.lifetime is not None:
            _set_lifetime(
                account, row, wanted.lifetime, at=at, actor=actor, cached_tokens_max=cached_tokens_max
            )
        return CacheObject.objects.with_what_decides_status().get(id=cache_id)


def _set_budget(
    account: LockedAccount,
    row: CacheObject,
    budget: Budget | None,
    *,
    is_end_kept: bool,
    at: datetime,
    actor: str,
) -> None:
    uses.write(
        row,
        {
            "budget_amount": budget.amount if budget is not None else None,
            "budget_per": budget.per if budget is not None else "",
        },
    )
    if not is_end_kept:
        return
    status = row.status_at(at)
    if status == ACTIVE:
        lifecycle.set_end(account, row, until=row.wanted_until or row.expired_at, at=at, actor=actor)
    elif status == PENDING:
        budgets.require_creation(account, row, at=at)


def _set_lifetime(
    account: LockedAccount,
    row: CacheObject,
    lifetime: Lifetime,
    *,
    at: datetime,
    actor: str,
    cached_tokens_max: int | None,
) -> None:
    """Another rule decides the end from now on, and the end is what it says now."""
    uses.write(row, lifetime.columns(at))
    until = lifetime.until(at)
    if until is None:
        _close(account, row, at=at, actor=actor)
    elif row.ttl_policy == AUTO and row.status_at(at) == ACTIVE:
        uses.earn(account, row, is_hit=False, at=at, actor=actor)
    else:
        lifecycle.move_end(account, row, until=until, at=at, actor=actor, cached_tokens_max=cached_tokens_max)


def _close(account: LockedAccount, row: CacheObject, *, at: datetime, actor: str) -> None:
    """Its schedule, a new one, is closed: it ends, if it has not yet, and waits for the next opening."""
    if row.status in (PENDING, ACTIVE):
        CacheObject.objects.filter(id=row.id, expired_at__gt=at).update(expired_at=at)
        lifecycle.expire(account, row, at=at, actor=actor)
    detail = reasons.of_closing(next_open_at=row.windows.next_open(at))
    lifecycle.note(row.id, row.organization_id, "schedule_closed", at=at, actor=actor, **detail)


def keep_to_budgets() -> int:
    """After a storage price was announced, or a tier with a price of its own was given: plan the ends of active
    objects with a budget by it; how many there were.

    A price is announced ahead, and this is run more often than that: no budget is passed by a new price. A tier
    holds at once, so by a tier it is passed by no more than what is stored between two runs.
    """
    since = clock.now() - 2 * price_book.NOTICE
    is_announced = price_book.was_announced(meter=Meter.STORAGE, since=since)
    if not is_announced and not price_tiers.have_changed(since=since):
        return 0
    for organization_id in OrganizationBudget.objects.values_list("organization_id", flat=True):
        with transaction.atomic():
            account = accounts.lock(organization_id)
            _keep_organization_s(account, at=account.locked_at, actor="clock", why=NEW_PRICE)
    found = CacheObject.objects.filter(status=ACTIVE, budget_amount__isnull=False)
    pairs = list(found.order_by("organization_id", "id").values_list("organization_id", "id"))
    for organization_id, cache_id in pairs:
        with transaction.atomic():
            account = accounts.lock(organization_id)
            for row in _active_rows(organization_id, at=account.locked_at, id=cache_id):
                _plan_anew(account, row, at=account.locked_at, why=NEW_PRICE)
    return len(pairs)


def set_organization_budget(
    organization_id: str, budget: Budget | None, *, operator: str, reason: str
) -> None:
    """What all creations and storage of an organization may cost; None: what its money allows.

    Objects that would pass it end sooner, all within one minute; those that an earlier budget cut get their ends
    back as far as this one goes. Raises InvalidRequest without a reason, and billing's AccountNotFound.
    """
    with transaction.atomic():
        account = accounts.lock(organization_id)
        at = account.locked_at
        audit.record(
            operator=operator,
            action="organization.set_budget",
            subject=organization_id,
            organization_id=organization_id,
            reason=audit.required_reason(reason),
            detail={"amount": str(budget.amount), "per": budget.per} if budget is not None else {},
        )
        known = OrganizationBudget.objects.filter(organization_id=organization_id)
        if budget is None:
            known.delete()
        else:
            OrganizationBudget.objects.update_or_create(
                organization_id=organization_id,
                defaults={"amount": budget.amount, "per": budget.per, "set_at": at, "set_by": operator},
            )
        _keep_organization_s(account, at=at, actor=operator, why=NEW_BUDGET)


def _keep_organization_s(account: LockedAccount, *, at: datetime, actor: str, why: str) -> None:
    """Cut what would pass the organization's budget, and give back what it leaves."""
    organization_id = account.organization_id
    end = _budget_ends_at(account, at=at)
    if end is not None:
        for row in _active_rows(organization_id, at=at, expired_at__gt=end):
            lifecycle.cut_end(account, row, ends_at=end, at=at, actor=actor, why=why)
    for row in _active_rows(organization_id, at=at, wanted_until__isnull=False):
        _plan_anew(account, row, at=at, why=why)


def _budget_ends_at(account: LockedAccount, *, at: datetime) -> datetime | None:
    budget = budgets.of_organization(account.organization_id)
    if budget is None:
        return None
    spender = OrganizationSpender(organization_id=account.organization_id, currency=account.currency)
    return all_end_at(budget, spender, at=at)


def _active_rows(organization_id: str, *, at: datetime, **about: object) -> list[CacheObject]:
    rows = CacheObject.objects.of(organization_id).select_for_update(of=("self",)).with_what_decides_status()
    found = rows.filter(status=ACTIVE, **about).order_by("id")
    return [row for row in found if row.status_at(at) == ACTIVE]


def _plan_anew(account: LockedAccount, row: CacheObject, *, at: datetime, why: str) -> None:
    until = row.wanted_until or row.expired_at
    lifecycle.set_end(account, row, until=until, at=at, actor="clock", kind="repriced", why=why)
