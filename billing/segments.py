"""Open segments as rating sees them: rows joined with the prices that hold over their lives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from billing import price_book, rating
from billing.models import Meter, StorageSegment
from billing.rating import PricePiece, StoredSpan


@dataclass(slots=True, kw_only=True)
class SegmentRead:
    """The columns of a segment that rating looks at, where it is only read: a whole model's instance costs more to
    make than to rate."""

    model: str
    tokens: int
    started_at: datetime
    ends_at: datetime
    billed_minutes: int


Row = StorageSegment | SegmentRead


def open_rows(organization_id: str) -> list[StorageSegment]:
    return list(
        StorageSegment.objects.filter(organization_id=organization_id, closed_at__isnull=True).order_by("id")
    )


def spans(rows: Sequence[Row], *, organization_id: str, currency: str) -> list[StoredSpan]:
    """One span per row, all of one organization, in the rows' order. Raises NoPrice."""
    prices = {
        model: _prices(organization_id, model, [row for row in rows if row.model == model], currency)
        for model in {row.model for row in rows}
    }
    return [span(row, prices[row.model]) for row in rows]


def span(row: Row, prices: tuple[PricePiece, ...]) -> StoredSpan:
    return StoredSpan(
        tokens=row.tokens,
        started_at=row.started_at,
        ends_at=row.ends_at,
        billed_minutes=row.billed_minutes,
        prices=prices,
    )


def _prices(organization_id: str, model: str, rows: Sequence[Row], currency: str) -> tuple[PricePiece, ...]:
    first = min(first_unbilled_start(row) for row in rows)
    last = max(row.ends_at for row in rows)
    return prices_over(organization_id, model, currency, first=first, last=last)


def first_unbilled_start(row: Row) -> datetime:
    return rating.minute_start(started_at=row.started_at, minute=row.billed_minutes)


def prices_over(
    organization_id: str, model: str, currency: str, *, first: datetime, last: datetime
) -> tuple[PricePiece, ...]:
    """A segment that is billed to its end may have its next minute after it: then one instant is enough."""
    return price_book.prices_between(
        organization_id=organization_id,
        meter=Meter.STORAGE,
        model=model,
        currency=currency,
        first=first,
        last=max(first, last),
    )
