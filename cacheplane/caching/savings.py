"""What an organization's cache objects have saved it: in money, and in seconds.

Seconds are an estimate, and an honest one: a hit saves what the engine needed to prefill the object, as the worker
measured it when the object became active. What restoring it took is not measured, and not subtracted. Where nothing
was measured, nothing is said. The measure stands in the object's event `active`, which outlives the object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import groupby

from billing import accounts, money, savings
from billing.savings import Balanced, Spared
from cacheplane.caching import advice
from cacheplane.caching.advice import Advice, Kept
from cacheplane.caching.models import CacheObjectEvent
from cacheplane.errors import InvalidRequest

OBJECT, MODEL, DAY = "object", "model", "day"
GROUPS = {OBJECT: savings.SUBJECT, MODEL: savings.FAMILY, DAY: savings.DAY}
GROUPS_MAX = savings.GROUPS_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One object's, family's or day's part. `seconds_saved` is None where nothing was measured; `advice` is given
    for objects alone."""

    key: str
    calls: int
    cached_tokens: int
    cost: Decimal
    cost_uncached: Decimal
    saved: Decimal
    seconds_saved: Decimal | None
    break_even_calls_per_hour: int | None
    advice: Advice | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """All parts, and their sums. Amounts are in `currency`."""

    currency: str
    groups: tuple[Saved, ...]
    calls: int
    cached_tokens: int
    cost: Decimal
    cost_uncached: Decimal
    saved: Decimal
    seconds_saved: Decimal | None


def savings_of(
    organization_id: str, *, by: str, start: datetime, end: datetime, tz: str, at: datetime
) -> Savings:
    """What was saved in [start, end), by OBJECT, MODEL (family) or DAY of the zone `tz`.

    Raises InvalidRequest for more than GROUPS_MAX groups, and billing's NoPrice.
    """
    currency = accounts.balance(organization_id, at).currency
    called = savings.called_subjects(organization_id, start=start, end=end)
    _require_few(len(called))
    rows = savings.balanced(
        organization_id,
        currency=currency,
        by=GROUPS[by],
        start=start,
        end=end,
        tz=tz,
        spared=_measured(organization_id, called, until=end),
    )
    _require_few(len(rows))
    groups = tuple(_saved(row, is_object=by == OBJECT) for row in rows)
    seconds = [group.seconds_saved for group in groups if group.seconds_saved is not None]
    return Savings(
        currency=currency,
        groups=groups,
        calls=sum(group.calls for group in groups),
        cached_tokens=sum(group.cached_tokens for group in groups),
        cost=money.total(group.cost for group in groups),
        cost_uncached=money.total(group.cost_uncached for group in groups),
        saved=money.total(group.saved for group in groups),
        seconds_saved=sum(seconds, Decimal(0)) if seconds else None,
    )


def _require_few(groups: int) -> None:
    if groups > GROUPS_MAX:
        raise InvalidRequest(
            f"Invalid request: start: got a span in which more than {GROUPS_MAX} cache objects were used, takes a "
            "shorter one"
        )


def _measured(organization_id: str, subjects: Sequence[str], *, until: datetime) -> list[Spared]:
    """What each activation's prefill took, for the calls until the next one."""
    rows = (
        CacheObjectEvent.objects.filter(
            organization_id=organization_id, cache_id__in=subjects, kind="active", at__lt=until
        )
        .order_by("cache_id", "at")
        .values_list("cache_id", "at", "detail__prefill_ms")
    )
    found = []
    for cache_id, activations in groupby(rows, key=lambda row: row[0]):
        spans = list(activations)
        ends = [*(at for _, at, _ in spans[1:]), None]
        found += [
            Spared(subject=cache_id, since=since, until=ended, milliseconds=prefill_ms)
            for (_, since, prefill_ms), ended in zip(spans, ends, strict=True)
            if prefill_ms is not None
        ]
    return found


def _saved(row: Balanced, *, is_object: bool) -> Saved:
    kept = Kept(
        calls=row.calls,
        call_days=row.call_days,
        calls_by_hour=row.calls_by_hour,
        cost_uncached=row.cost_uncached,
        creation=row.creation,
        storage=row.storage,
        call_fees=row.call_fees,
        stored_minutes=row.stored_minutes,
        tail=row.tail,
    )
    return Saved(
        key=row.key,
        calls=row.calls,
        cached_tokens=row.cached_tokens,
        cost=kept.cost,
        cost_uncached=row.cost_uncached,
        saved=kept.saved,
        seconds_saved=Decimal(row.milliseconds).scaleb(-3) if row.timed_calls else None,
        break_even_calls_per_hour=advice.break_even_calls_per_hour(kept),
        advice=advice.advise(kept) if is_object else None,
    )
