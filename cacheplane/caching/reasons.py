"""What an object's events say of a decision that nobody asked for: the figures, and why in words."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from billing import money
from billing.budgets import MONTH
from billing.charging import CreationQuote
from cacheplane.caching import ski_rental
from cacheplane.caching.budgets import Reached
from cacheplane.caching.models import CacheObject

MINUTE = timedelta(minutes=1)


def _stored_since_use(row: CacheObject, quote: CreationQuote, *, until: datetime) -> Decimal:
    """What was paid to keep it from the minute after its last use on, at the price of now."""
    if row.used_at is None or row.segment is None:
        return money.ZERO
    used_until = ski_rental.kept_until(started_at=row.segment.started_at, used_at=row.used_at, minutes=0)
    return money.multiply(max(0, -((used_until - until) // MINUTE)), quote.storage_per_minute)


def _figures(row: CacheObject, quote: CreationQuote, *, minutes: int, until: datetime) -> dict[str, Any]:
    return {
        "storage_since_use": money.text(_stored_since_use(row, quote, until=until)),
        "recreation_cost": money.text(quote.fee),
        "break_even_minutes": minutes,
    }


def of_use(
    row: CacheObject, quote: CreationQuote, *, minutes: int, until: datetime, at: datetime
) -> dict[str, Any]:
    """ttl auto: it was used at `at` and is kept to `until`; `row` still holds what was before."""
    kept = f"for the minute of the use and {minutes} more, which cost no more than a new creation"
    if row.cap_at is not None and until >= row.cap_at:
        kept = f"to its cap of {row.cap_seconds} seconds, which no use moves"
    return _figures(row, quote, minutes=minutes, until=at) | {
        "used_at": at.isoformat(),
        "why": f"It was used, so it is kept {kept}.",
    }


def of_empty_balance(*, ended_at: datetime) -> dict[str, Any]:
    """It ended before its time, for want of money."""
    return {
        "ended_at": ended_at.isoformat(),
        "why": "The balance could not pay its next minute of storage, so it ended with the last one that was paid.",
    }


def of_rest(row: CacheObject, quote: CreationQuote) -> dict[str, Any]:
    """ttl auto: nobody used it until its end."""
    minutes = row.kept_minutes or 0
    why = (
        f"Nobody used it for {minutes} minutes after that of its last use: to keep it longer would cost more than to "
        "create it again."
    )
    if row.cap_at is not None and row.expired_at >= row.cap_at:
        why = f"Its cap of {row.cap_seconds} seconds is reached."
    used = {"used_at": row.used_at.isoformat()} if row.used_at is not None else {}
    return _figures(row, quote, minutes=minutes, until=row.expired_at) | used | {"why": why}


def of_opening(*, opens_at: datetime, closes_at: datetime, quote: CreationQuote) -> dict[str, Any]:
    return {
        "opens_at": opens_at.isoformat(),
        "closes_at": closes_at.isoformat(),
        "recreation_cost": money.text(quote.fee),
        "why": "Its schedule opens, so it is computed in time and its creation is paid again.",
    }


def of_closing(*, next_open_at: datetime) -> dict[str, Any]:
    return {
        "next_open_at": next_open_at.isoformat(),
        "why": "Its schedule is closed, so its storage ends.",
    }


def of_refusal(sentence: str, *, opens_at: datetime, retry_at: datetime) -> dict[str, Any]:
    return {
        "opens_at": opens_at.isoformat(),
        "retry_at": retry_at.isoformat(),
        "why": f"It could not be opened: {sentence}",
    }


def of_budget(reached: Reached) -> dict[str, Any]:
    period = "this month" if reached.budget.per == MONTH else "in total"
    whose = "Its organization's creations" if reached.is_organizations else "Its creations"
    return {
        "budget": money.text(reached.budget.amount),
        "budget_per": reached.budget.per,
        "spent": money.text(reached.spent),
        "why": f"{whose} and storage have cost what they may cost {period}: a minute more would be beyond it.",
    }
