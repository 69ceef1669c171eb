"""The months of which an organization can have a statement, and its invoices: lists, the newest first or last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal

from billing import money, statements
from billing.models import ENTRY_ORDER, Invoice, LedgerEntry
from billing.periods import Period, day_at, months
from billing.snapshots import snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """What there was as the month began and as it ended; until it is over, what there is now."""

    period: Period
    currency: str
    opening: Decimal
    closing: Decimal
    is_final: bool
    invoice: Invoice | None


def periods_of(organization_id: str, *, at: datetime) -> list[Period]:
    """All months from that of the first entry to that of `at`, oldest first; none without an entry."""
    first = LedgerEntry.objects.filter(organization_id=organization_id).order_by(ENTRY_ORDER.asc()).first()
    return [] if first is None else months(day_at(first.created_at), day_at(at))


def opened_and_closed(organization_id: str, periods: Sequence[Period], *, at: datetime) -> list[Month]:
    """These months, in their order."""
    with snapshot():
        invoices = {
            invoice.month: invoice
            for invoice in Invoice.objects.filter(
                organization_id=organization_id, month__in=[period.start for period in periods]
            )
        }
        return [
            _month(organization_id, period, at=at, invoice=invoices.get(period.start)) for period in periods
        ]


def _month(organization_id: str, period: Period, *, at: datetime, invoice: Invoice | None) -> Month:
    currency, purses = statements.spans(organization_id, period)
    return Month(
        period=period,
        currency=currency,
        opening=money.total(purse.opening for purse in purses),
        closing=money.total(purse.closing for purse in purses),
        is_final=at >= period.ends_at,
        invoice=invoice,
    )


def invoices(organization_id: str, *, limit: int, newest_first: bool, after: date | None) -> list[Invoice]:
    """At most `limit` invoices, those behind the month `after`."""
    rows = Invoice.objects.filter(organization_id=organization_id)
    if after is not None:
        rows = rows.filter(month__lt=after) if newest_first else rows.filter(month__gt=after)
    return list(rows.order_by("-month" if newest_first else "month")[:limit])
