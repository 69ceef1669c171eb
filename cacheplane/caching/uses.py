"""What a call does to its cache object's end."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from billing import charging
from billing.accounts import LockedAccount
from cacheplane.caching import lifecycle, reasons, ski_rental
from cacheplane.caching.models import ACTIVE, AUTO, ERROR, EXPIRED, FIXED, CacheObject


def use(
    account: LockedAccount,
    row: CacheObject,
    *,
    is_hit: bool,
    reset_seconds: int | None,
    at: datetime,
    actor: str,
    cached_tokens_max: int | None,
) -> None:
    """A call named the object, and hit it or not; `reset_seconds` is its `reset_ttl`.

    A fixed end moves as the call says. With ttl auto it moves by the use, and reset_ttl brings back one that has
    ended. A schedule's end stays. Raises what a revival raises. The account and the row are locked.
    """
    until = None if reset_seconds is None else at + timedelta(seconds=reset_seconds)
    if row.ttl_policy == FIXED:
        if until is not None:
            lifecycle.move_end(
                account, row, until=until, at=at, actor=actor, cached_tokens_max=cached_tokens_max
            )
    elif row.ttl_policy == AUTO:
        status = row.status_at(at)
        if status == ACTIVE and is_hit:
            earn(account, row, is_hit=True, at=at, actor=actor)
        elif status in (EXPIRED, ERROR) and until is not None:
            assert row.cap_seconds is not None
            cap_at = at + timedelta(seconds=row.cap_seconds)
            lifecycle.move_end(
                account, row, until=cap_at, at=at, actor=actor, cached_tokens_max=cached_tokens_max
            )


def earn(account: LockedAccount, row: CacheObject, *, is_hit: bool, at: datetime, actor: str) -> None:
    """ttl auto: an active object was used at `at`, or was asked for anew. A use never makes the end an earlier one."""
    assert row.segment is not None and row.cap_at is not None
    quote = charging.creation_quote(
        organization_id=row.organization_id,
        model=row.model,
        tokens=row.tokens,
        currency=account.currency,
        at=at,
    )
    minutes = ski_rental.break_even_minutes(creation=quote.fee, storage_per_minute=quote.storage_per_minute)
    until = ski_rental.kept_until(started_at=row.segment.started_at, used_at=at, minutes=minutes)
    until = min(until, row.cap_at)
    if is_hit and until <= (row.wanted_until or row.expired_at):
        return
    detail = reasons.of_use(row, quote, minutes=minutes, until=until, at=at) if is_hit else {}
    kind = "auto_extended" if is_hit else "extended"
    lifecycle.set_end(account, row, until=until, at=at, actor=actor, kind=kind, **detail)
    write(row, {"used_at": at, "kept_minutes": minutes})


def write(row: CacheObject, columns: dict[str, Any]) -> None:
    """Write what no status depends on, and let the row at hold know it."""
    CacheObject.objects.filter(id=row.id).update(**columns)
    for name, value in columns.items():
        setattr(row, name, value)
