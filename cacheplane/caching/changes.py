"""What its owner changes of a cache object: metadata, what decides its end, its budget."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db import transaction

from billing import accounts, clock, price_book
from billing.accounts import LockedAccount
from billing.budgets import Budget
from billing.models import Meter
from cacheplane.caching import budgets, lifecycle, reasons, uses
from cacheplane.caching.lifetimes import Lifetime
from cacheplane.caching.models import ACTIVE, AUTO, PENDING, CacheObject

NEW_PRICE = "The price of storage changes, so its budget ends at another time."


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
    """After a storage price was announced: plan the ends of active objects with a budget by it; how many there were.

    A price is announced ahead, and this is run more often than that: no budget is passed by a new price.
    """
    since = clock.now() - 2 * price_book.NOTICE
    if not price_book.was_announced(meter=Meter.STORAGE, since=since):
        return 0
    found = CacheObject.objects.filter(status=ACTIVE, budget_amount__isnull=False)
    pairs = list(found.order_by("organization_id", "id").values_list("organization_id", "id"))
    for organization_id, cache_id in pairs:
        with transaction.atomic():
            account = accounts.lock(organization_id)
            at = account.locked_at
            row = CacheObject.objects.select_for_update(of=("self",)).with_what_decides_status()
            locked = row.filter(id=cache_id, budget_amount__isnull=False).first()
            if locked is not None and locked.status_at(at) == ACTIVE:
                until = locked.wanted_until or locked.expired_at
                lifecycle.set_end(
                    account, locked, until=until, at=at, actor="clock", kind="repriced", why=NEW_PRICE
                )
    return len(pairs)
