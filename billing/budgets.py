"""What the creations and the storage of a subject, or of a whole organization, may cost, in each month of UTC+8 or
in total.

Nothing is written while time passes, as with storage itself: when a budget ends follows from what was spent, the
prices and the minutes of the open segment. Who opens or moves a segment asks for that end first and plans no later
one. All of it under the account's lock.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from django.db.models import QuerySet, Sum

from billing import money, price_book, rating, segments
from billing.models import EntryKind, Hold, LedgerEntry, Meter, StorageLine, StorageSegment
from billing.money import ZERO
from billing.rating import Fund, StoredSpan

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

    organization_id: str
    subject: str
    creation_keys: Sequence[str]
    currency: str

    def created(self) -> QuerySet[LedgerEntry]:
        return LedgerEntry.objects.filter(
            kind=EntryKind.CREATION,
            meter_event__source=Meter.CREATION.value,
            meter_event__source_key__in=self.creation_keys,
        )

    def stored(self) -> QuerySet[StorageSegment]:
        return StorageSegment.objects.filter(subject=self.subject)

    def reserved(self) -> Decimal:
        """What is held for creations of which nothing is charged yet."""
        return ZERO


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationSpender:
    """All subjects of an organization. `own_hold` is of the creation that is decided on, and no reserve."""

    organization_id: str
    currency: str
    own_hold: uuid.UUID | None = None

    def created(self) -> QuerySet[LedgerEntry]:
        return LedgerEntry.objects.filter(
            kind=EntryKind.CREATION,
            meter_event__organization_id=self.organization_id,
            meter_event__meter=Meter.CREATION.value,
        )

    def stored(self) -> QuerySet[StorageSegment]:
        return StorageSegment.objects.filter(organization_id=self.organization_id)

    def reserved(self) -> Decimal:
        held = Hold.objects.filter(
            organization_id=self.organization_id, kind=Hold.Kind.CREATION, state=Hold.State.OPEN
        )
        return _sum(held.exclude(reference=self.own_hold) if self.own_hold is not None else held)


AnySpender = Spender | OrganizationSpender


def period_at(budget: Budget, at: datetime) -> tuple[datetime | None, datetime | None]:
    """The first instant of the budget's period that holds `at`, and of the next one; None: without end."""
    if budget.per == TOTAL:
        return None, None
    first = at.astimezone(MONTHS_OF).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return first, (first + timedelta(days=32)).replace(day=1)


def spent(budget: Budget, spender: AnySpender, *, at: datetime) -> Decimal:
    """What was spent in the budget's period up to `at`, minutes that have started included."""
    first, _ = period_at(budget, at)
    spans = _whole_spans(_open_rows(spender), of=spender)
    return money.add(_spent_before(spender, first), _cost(spans, first, _started_before(at)))


def left(budget: Budget, spender: AnySpender, *, at: datetime) -> Decimal:
    """What nobody has spent in the budget's period, nor is going to by what is open now."""
    first, last = period_at(budget, at)
    spans = _whole_spans(_open_rows(spender), of=spender)
    gone = [_spent_before(spender, first), spender.reserved(), _cost(spans, first, last)]
    return money.subtract(budget.amount, money.total(gone))


def ends_at(
    budget: Budget,
    spender: AnySpender,
    segment: StorageSegment,
    *,
    ends_at: datetime,
    at: datetime,
    more: Decimal = ZERO,
) -> datetime | None:
    """The start of the first minute of an open segment, or one that is about to be opened, that the budget cannot
    pay; None when it pays all up to `ends_at`. `more` is about to be spent, in the period of `at`.

    What the spender's other open segments cost up to their planned ends, and what is held for creations, is theirs.
    """
    price_book.wait_for_announcements()
    [span] = _whole_spans([segment], of=spender, ends_at=ends_at)
    others = _whole_spans(_open_rows(spender, except_segment=segment.pk), of=spender)
    planned = rating.minutes_lived(started_at=span.started_at, ended_at=ends_at)
    first, last = period_at(budget, at)
    gone = money.total([_spent_before(spender, first), spender.reserved(), more])
    while True:
        left = money.subtract(budget.amount, money.add(gone, _cost(others, first, last)))
        end = planned if last is None else _minutes_before(span, last, planned)
        beyond = rating.first_beyond(
            span, first_minute=_first_minute(span, first), end_minute=end, allowance=left
        )
        if beyond is not None:
            return rating.minute_start(started_at=span.started_at, minute=beyond)
        if last is None or end >= planned:
            return None
        first, last = period_at(budget, last)
        gone = ZERO


def all_end_at(budget: Budget, spender: AnySpender, *, at: datetime) -> datetime | None:
    """The start of the first minute of any open segment that the budget cannot pay, if all go on to their planned
    ends; None when it pays all of them. Creations that are held for come first."""
    price_book.wait_for_announcements()
    rows = _open_rows(spender)
    spans = _whole_spans(rows, of=spender)
    planned = max((row.ends_at for row in rows), default=at)
    first, last = period_at(budget, at)
    left = money.subtract(budget.amount, money.add(_spent_before(spender, first), spender.reserved()))
    while True:
        inside = [_within(span, first, last) for span in spans if last is None or span.started_at < last]
        if left < ZERO:
            return max(at, first or at)
        found = rating.exhausts_at(inside, [Fund(free=left, expires_at=None)])
        if found is not None or last is None or last >= planned:
            return found
        first, last = period_at(budget, last)
        left = budget.amount


def _within(span: StoredSpan, first: datetime | None, last: datetime | None) -> StoredSpan:
    """Its minutes from `first` on, up to `last`."""
    billed = min(
        _first_minute(span, first), rating.minutes_lived(started_at=span.started_at, ended_at=span.ends_at)
    )
    ends_at = span.ends_at if last is None else min(span.ends_at, last)
    return replace(span, billed_minutes=billed, ends_at=ends_at)


def _open_rows(spender: AnySpender, *, except_segment: int | None = None) -> list[StorageSegment]:
    rows = spender.stored().filter(closed_at__isnull=True)
    return [row for row in rows if row.pk != except_segment]


def _spent_before(spender: AnySpender, first: datetime | None) -> Decimal:
    """Creations and closed segments of the period that began at `first`."""
    created = spender.created()
    closed = spender.stored().filter(closed_at__isnull=False)
    whole, straddling = closed, closed.none()
    if first is not None:
        created = created.filter(meter_event__occurred_at__gte=first)
        whole = closed.filter(started_at__gte=first, closed_at__gte=first)
        straddling = closed.filter(started_at__lt=first, closed_at__gt=first)
    lines = StorageLine.objects.filter(segment__in=whole.values("id"))
    parts = [_sum(created), _sum(lines)]
    for row in straddling:
        [span] = _whole_spans([row], of=spender, ends_at=row.closed_at)
        parts.append(_cost([span], first, row.closed_at))
    return money.total(parts)


def _sum(rows: QuerySet[Any]) -> Decimal:
    found: Decimal | None = rows.aggregate(sum=Sum("amount"))["sum"]
    return money.exact(found or 0)


def _whole_spans(
    rows: Sequence[StorageSegment], *, of: AnySpender, ends_at: datetime | None = None
) -> list[StoredSpan]:
    """Segments from their first minute on, as if nothing of them were billed yet; `ends_at` for their own."""
    unbilled = [
        StorageSegment(
            model=row.model, tokens=row.tokens, started_at=row.started_at, ends_at=ends_at or row.ends_at
        )
        for row in rows
    ]
    return segments.spans(unbilled, organization_id=of.organization_id, currency=of.currency)


def _started_before(at: datetime) -> datetime:
    """A minute that starts at `at` has started."""
    return at + rating.MICROSECOND


def _cost(spans: Iterable[StoredSpan], first: datetime | None, last: datetime | None) -> Decimal:
    """What the minutes cost that start in [first, last) within the spans' planned ends."""
    parts = []
    for span in spans:
        planned = rating.minutes_lived(started_at=span.started_at, ended_at=span.ends_at)
        end = planned if last is None else _minutes_before(span, last, planned)
        lines = rating.storage_lines(span, first_minute=_first_minute(span, first), end_minute=end)
        parts += [line.amount for line in lines]
    return money.total(parts)


def _first_minute(span: StoredSpan, first: datetime | None) -> int:
    return 0 if first is None else rating.minutes_before(started_at=span.started_at, at=first)


def _minutes_before(span: StoredSpan, last: datetime, planned: int) -> int:
    return min(planned, rating.minutes_before(started_at=span.started_at, at=last))
