"""What a subject's creations and storage may cost, in each month of UTC+8 or in total.

Nothing is written while time passes, as with storage itself: when a budget ends follows from what was spent, the
prices and the minutes of the open segment. Who opens or moves a segment asks for that end first and plans no later
one. All of it under the account's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from django.db.models import QuerySet, Sum

from billing import money, price_book, rating, segments
from billing.models import EntryKind, LedgerEntry, Meter, StorageLine, StorageSegment
from billing.money import ZERO
from billing.rating import StoredSpan

MONTH, TOTAL = "month", "total"
PERIODS = (MONTH, TOTAL)
MONTHS_OF = timezone(timedelta(hours=8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """`amount` per calendar month of UTC+8, or in total."""

    amount: Decimal
    per: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spender:
    """Whose budget it is: the subject of its segments, and the source keys of its creations."""

    subject: str
    creation_keys: Sequence[str]
    currency: str


def period_at(budget: Budget, at: datetime) -> tuple[datetime | None, datetime | None]:
    """The first instant of the budget's period that holds `at`, and of the next one; None: without end."""
    if budget.per == TOTAL:
        return None, None
    first = at.astimezone(MONTHS_OF).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return first, (first + timedelta(days=32)).replace(day=1)


def spent(budget: Budget, spender: Spender, *, at: datetime) -> Decimal:
    """What was spent in the budget's period up to `at`, minutes that have started included."""
    first, _ = period_at(budget, at)
    amount = _spent_before(spender, first)
    row = StorageSegment.objects.filter(subject=spender.subject, closed_at__isnull=True).first()
    if row is None:
        return amount
    span = _whole_span(row, currency=spender.currency, ends_at=row.ends_at)
    end = min(
        rating.minutes_started(started_at=row.started_at, at=at),
        rating.minutes_lived(started_at=row.started_at, ended_at=row.ends_at),
    )
    return money.add(amount, _cost(span, first, end))


def ends_at(
    budget: Budget,
    spender: Spender,
    segment: StorageSegment,
    *,
    ends_at: datetime,
    at: datetime,
    more: Decimal = ZERO,
) -> datetime | None:
    """The start of the first minute of an open segment, or one that is about to be opened, that the budget cannot
    pay; None when it pays all up to `ends_at`. `more` is about to be spent, in the period of `at`."""
    price_book.wait_for_announcements()
    span = _whole_span(segment, currency=spender.currency, ends_at=ends_at)
    planned = rating.minutes_lived(started_at=span.started_at, ended_at=ends_at)
    first, last = period_at(budget, at)
    left = money.subtract(budget.amount, money.add(_spent_before(spender, first), more))
    while True:
        end = planned if last is None else _minutes_before(span, last, planned)
        beyond = rating.first_beyond(
            span, first_minute=_first_minute(span, first), end_minute=end, allowance=left
        )
        if beyond is not None:
            return rating.minute_start(started_at=span.started_at, minute=beyond)
        if last is None or end >= planned:
            return None
        first, last = period_at(budget, last)
        left = budget.amount


def _spent_before(spender: Spender, first: datetime | None) -> Decimal:
    """Creations and closed segments of the period that began at `first`."""
    created = LedgerEntry.objects.filter(
        kind=EntryKind.CREATION,
        meter_event__source=Meter.CREATION.value,
        meter_event__source_key__in=spender.creation_keys,
    )
    closed = StorageSegment.objects.filter(subject=spender.subject, closed_at__isnull=False)
    whole, straddling = closed, closed.none()
    if first is not None:
        created = created.filter(meter_event__occurred_at__gte=first)
        whole = closed.filter(started_at__gte=first)
        straddling = closed.filter(started_at__lt=first, closed_at__gt=first)
    lines = StorageLine.objects.filter(segment__in=whole.values("id"))
    parts = [_sum(created), _sum(lines)]
    for row in straddling:
        span = _whole_span(row, currency=spender.currency, ends_at=row.closed_at or row.ends_at)
        parts.append(_cost(span, first, row.billed_minutes))
    return money.total(parts)


def _sum(rows: QuerySet[Any]) -> Decimal:
    found: Decimal | None = rows.aggregate(sum=Sum("amount"))["sum"]
    return money.exact(found or 0)


def _whole_span(row: StorageSegment, *, currency: str, ends_at: datetime) -> StoredSpan:
    """A segment from its first minute on, as if nothing of it were billed yet."""
    prices = segments.prices_over(row.model, currency, first=row.started_at, last=max(row.ends_at, ends_at))
    return StoredSpan(
        tokens=row.tokens, started_at=row.started_at, ends_at=ends_at, billed_minutes=0, prices=prices
    )


def _cost(span: StoredSpan, first: datetime | None, end_minute: int) -> Decimal:
    lines = rating.storage_lines(span, first_minute=_first_minute(span, first), end_minute=end_minute)
    return money.total(line.amount for line in lines)


def _first_minute(span: StoredSpan, first: datetime | None) -> int:
    return 0 if first is None else rating.minutes_before(started_at=span.started_at, at=first)


def _minutes_before(span: StoredSpan, last: datetime, planned: int) -> int:
    return min(planned, rating.minutes_before(started_at=span.started_at, at=last))
