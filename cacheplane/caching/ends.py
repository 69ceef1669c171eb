"""Where an active object's end is planned: by its lifetime, and by its budget too. Nothing is written here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from billing import charging, money
from billing.accounts import LockedAccount
from billing.models import StorageSegment
from cacheplane.caching import budgets, ski_rental
from cacheplane.caching.models import AUTO, SCHEDULED, CacheObject, CacheObjectEvent

SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An active object's end: `until` by its lifetime, `ends_at` by its budget too. The rest is of `ttl` auto, and
    of a schedule."""

    until: datetime
    ends_at: datetime
    used_at: datetime | None = None
    kept_minutes: int | None = None
    precompute_seconds: int | None = None

    def columns(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "expired_at": self.ends_at,
            "wanted_until": self.until if self.ends_at < self.until else None,
        }
        if self.used_at is not None:
            found |= {"used_at": self.used_at, "kept_minutes": self.kept_minutes}
        if self.precompute_seconds is not None:
            found |= {"precompute_seconds": self.precompute_seconds}
        return found


def of_activation(account: LockedAccount, row: CacheObject, *, at: datetime) -> Plan:
    """Of an object that becomes active at `at`: that is a use."""
    quote = charging.creation_quote(
        organization_id=row.organization_id,
        model=row.model,
        tokens=row.tokens,
        currency=account.currency,
        at=at,
    )
    segment = StorageSegment(
        subject=row.id, model=row.model, tokens=row.tokens, started_at=at, ends_at=row.expired_at
    )
    fee = quote.fee if row.creation_fee_due else money.ZERO
    until, used_at, minutes = row.wanted_until or row.expired_at, None, None
    if row.ttl_policy == AUTO:
        minutes = ski_rental.break_even_minutes(
            creation=quote.fee, storage_per_minute=quote.storage_per_minute
        )
        used_at = at
        until = min(ski_rental.kept_until(started_at=at, used_at=at, minutes=minutes), row.expired_at)
    return Plan(
        until=until,
        ends_at=budgets.within(account, row, segment, until=until, at=at, more=fee),
        used_at=used_at,
        kept_minutes=minutes,
        precompute_seconds=_precompute_seconds(row, at=at) if row.ttl_policy == SCHEDULED else None,
    )


def _precompute_seconds(row: CacheObject, *, at: datetime) -> int | None:
    claims = CacheObjectEvent.objects.filter(cache_id=row.id, kind="claimed").order_by("-at")
    claimed_at = claims.values_list("at", flat=True).first()
    return None if claimed_at is None else max(0, -((claimed_at - at) // SECOND))
