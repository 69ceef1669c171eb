"""Invoices: what an organization spent in a month of UTC+8, to fen, once the month is over. Never changed.

Spending is what was paid for use, from whatever purse, less what of it was given back; putting money in is none. A
month in which nothing was spent has no invoice. As on a statement, an entry belongs to the month it was booked in.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal

from django.db import connection, transaction

from billing import money, statements
from billing.errors import InvoiceRefused
from billing.models import ENTRY_ORDER, BillingAccount, Invoice, LedgerEntry
from billing.money import ZERO
from billing.periods import Period, day_at, month_of, months
from billing.rounding import invoice_amount
from billing.statement_document import PurseSpan

WAIT_AFTER_MONTH = timedelta(hours=1)
"""By then the hourly settlement has been there, and no clock that was set back books into the month any more."""


def last_month(at: datetime) -> Period:
    """The last month that can be invoiced at `at`."""
    return month_of(month_of(day_at(at - WAIT_AFTER_MONTH)).start - timedelta(days=1))


def organizations() -> list[str]:
    return list(BillingAccount.objects.order_by("organization_id").values_list("organization_id", flat=True))


def make(organization_id: str, *, at: datetime, month: Period | None = None) -> list[Invoice]:
    """Make the invoices that are missing up to `month` (the last one that is over), oldest first; those just made.

    Repeating it makes nothing. Raises InvoiceRefused when the month is not over.
    """
    last = last_month(at)
    if month is not None and month.start > last.start:
        raise InvoiceRefused(f"{month.start:%Y-%m} is invoiced from {month.ends_at + WAIT_AFTER_MONTH} on.")
    if not _missing(organization_id, month or last):
        return []
    with transaction.atomic():
        _wait_for_others(organization_id)
        made = [_make(organization_id, each, at=at) for each in _missing(organization_id, month or last)]
    return [invoice for invoice in made if invoice is not None]


def _missing(organization_id: str, last: Period) -> list[Period]:
    """Months after the last invoice's, or from the first entry's on."""
    invoice = _last_invoice(organization_id)
    if invoice is not None:
        return months(month_of(invoice.month).end, last.start)
    entry = LedgerEntry.objects.filter(organization_id=organization_id).order_by(ENTRY_ORDER.asc()).first()
    return [] if entry is None else months(day_at(entry.created_at), last.start)


def _last_invoice(organization_id: str) -> Invoice | None:
    return Invoice.objects.filter(organization_id=organization_id).order_by("-number").first()


def _wait_for_others(organization_id: str) -> None:
    """Who makes an organization's invoices does so alone, without holding up its calls meanwhile."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtext('billing invoices'), hashtext(%s))", [organization_id]
        )


def _make(organization_id: str, month: Period, *, at: datetime) -> Invoice | None:
    currency, purses = statements.spans(organization_id, month)
    spent = _spent(purses)
    if spent is None:
        return None
    before = _last_invoice(organization_id)
    spent_to_date = money.add(spent, before.spent_to_date if before else ZERO)
    return Invoice.objects.create(
        organization_id=organization_id,
        month=month.start,
        number=before.number + 1 if before else 1,
        currency=currency,
        spent=spent,
        spent_to_date=spent_to_date,
        amount=invoice_amount(spent=spent, spent_to_date=spent_to_date),
        heads=[
            {
                "purse": purse.id,
                "kind": purse.kind,
                "sequence": purse.closing_sequence,
                "chain": purse.closing_chain.hex(),
            }
            for purse in purses
            if purse.closing_sequence
        ],
        made_at=at,
    )


SPENT = """
SELECT sum(CASE WHEN e.credit_id = e.purse_id THEN -e.amount ELSE e.amount END)
FROM unnest(%s::uuid[], %s::bigint[], %s::bigint[]) AS s (purse, first, last)
JOIN billing_ledgerentry e ON e.purse_id = s.purse AND e.purse_sequence > s.first AND e.purse_sequence <= s.last
WHERE e.meter_event_id IS NOT NULL OR (e.kind = 'reversal' AND e.credit_id = e.purse_id)
"""


def _spent(purses: Sequence[PurseSpan]) -> Decimal | None:
    """None when nothing was spent or given back, not even sums that cancel out."""
    columns = zip(*((p.id, p.opening_sequence, p.closing_sequence) for p in purses), strict=True)
    with connection.cursor() as cursor:
        cursor.execute(SPENT, [list(column) for column in columns])
        row = cursor.fetchone()
    spent: Decimal | None = row[0] if row else None
    return spent


def parse_month(text: str) -> Period:
    """`2024-07`. Raises ValueError."""
    return month_of(date.fromisoformat(f"{text}-01"))
