"""Statements of account: all that happened to an organization's money in a period, ready to be checked by anybody.

An entry belongs to the period in which it was booked. Storage is booked at the latest by the hourly settlement, so its
last minutes may stand on the next statement; each line says which minutes it pays. A statement opens where the one
before it closed, because each purse's entries stand in the order of their times and the period is a run of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal
from functools import reduce
from operator import or_
from typing import Any

from django.db import connection, transaction
from django.db.models import Q

from billing import accounts, chain, money, storage
from billing.errors import StatementRefused
from billing.models import EntryKind, Invoice, LedgerEntry, Meter, MeterEvent
from billing.money import ZERO
from billing.periods import Period, day_at
from billing.snapshots import snapshot
from billing.statement_document import (
    InvoiceOfMonth,
    Line,
    MeterSum,
    PurseSpan,
    Statement,
    Used,
    WaivedLine,
)

STATEMENT_ENTRIES_MAX = 200_000
"""Longer statements are refused: they are read, and held in memory, as a whole."""


def statement(organization_id: str, *, start: date, end: date) -> Statement:
    """What happened from the beginning of `start` up to that of `end`: days of UTC+8, see `periods.ZONE`.

    If the period is not over, storage is settled up to now, and there may be more to come. Takes the account's lock for
    that moment only. Raises AccountNotFound, StatementRefused.
    """
    period = Period(start=start, end=end)
    read_at = _settled_at(organization_id, period)
    with snapshot():
        currency, purses = spans(organization_id, period)
        if sum(each.closing_sequence - each.opening_sequence for each in purses) > STATEMENT_ENTRIES_MAX:
            raise StatementRefused(
                f"The period has more than {STATEMENT_ENTRIES_MAX} entries: ask for fewer days."
            )
        lines = _lines(purses)
        waived = _waived(organization_id, period)
        invoice = _invoice(organization_id, period)
    return Statement(
        organization_id=organization_id,
        currency=currency,
        period=period,
        read_at=read_at,
        purses=tuple(purses),
        lines=tuple(lines),
        waived=tuple(waived),
        meters=tuple(_meters(lines, waived)),
        sums=_sums(lines),
        spent=spent(lines),
        invoice=invoice,
    )


def _settled_at(organization_id: str, period: Period) -> datetime:
    """Until when all is booked: whoever was booking when the lock was asked for has done so when it is there."""
    if period.start >= period.end:
        raise StatementRefused("A statement's `end` is the day after its last one: it comes after `start`.")
    with transaction.atomic():
        account = accounts.lock(organization_id)
        at = account.locked_at
        if period.starts_at > at:
            raise StatementRefused(f"The period has not begun: it is {day_at(at)} in UTC+8.")
        if period.ends_at > at:
            storage.settle(account, at=at)
    return at


# --- Purses: where the period begins and ends -------------------------------------------------------------------

SPANS = """
SELECT a.currency, p.id, p.kind, p.expires_at, s.first, s.last,
    coalesce(o.balance_after, 0), o.chain, coalesce(c.balance_after, 0), c.chain
FROM billing_billingaccount a
JOIN billing_ledgeraccount p ON p.organization_id = a.organization_id
CROSS JOIN LATERAL (
    SELECT billing_entries_before(p.id, %s) AS first, billing_entries_before(p.id, %s) AS last) s
LEFT JOIN billing_ledgerentry o ON o.purse_id = p.id AND o.purse_sequence = s.first
LEFT JOIN billing_ledgerentry c ON c.purse_id = p.id AND c.purse_sequence = s.last
WHERE a.organization_id = %s ORDER BY p.kind = 'cash', p.expires_at
"""


def spans(organization_id: str, period: Period) -> tuple[str, list[PurseSpan]]:
    """The account's currency, and each purse over the period, in the order in which they pay."""
    with connection.cursor() as cursor:
        cursor.execute(SPANS, [period.starts_at, period.ends_at, organization_id])
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows[0][0], [_span(*row[1:]) for row in rows]


def _span(
    id_: object,
    kind: str,
    expires_at: datetime | None,
    first: int,
    last: int,
    opening: Decimal,
    opening_chain: bytes | None,
    closing: Decimal,
    closing_chain: bytes | None,
) -> PurseSpan:
    beginning = chain.genesis(str(id_))
    return PurseSpan(
        id=str(id_),
        kind=kind,
        expires_at=expires_at,
        opening=money.exact(opening),
        closing=money.exact(closing),
        opening_sequence=first,
        closing_sequence=last,
        opening_chain=bytes(opening_chain or beginning),
        closing_chain=bytes(closing_chain or beginning),
    )


# --- Entries ----------------------------------------------------------------------------------------------------


def _lines(purses: Sequence[PurseSpan]) -> list[Line]:
    runs = [
        Q(purse_id=p.id, purse_sequence__gt=p.opening_sequence, purse_sequence__lte=p.closing_sequence)
        for p in purses
        if p.closing_sequence > p.opening_sequence
    ]
    if not runs:
        return []
    rows = LedgerEntry.objects.filter(reduce(or_, runs)).select_related("meter_event").order_by("id")
    return [
        Line(
            entry=row.chained,
            chain=bytes(row.chain or b""),
            used=None if row.meter_event is None else _used(row.meter_event),
        )
        for row in rows
    ]


def _waived(organization_id: str, period: Period) -> list[WaivedLine]:
    rows = LedgerEntry.objects.filter(
        organization_id=organization_id,
        purse__isnull=True,
        created_at__gte=period.starts_at,
        created_at__lt=period.ends_at,
    )
    return [_waived_line(row) for row in rows.select_related("meter_event").order_by("id")]


def _waived_line(row: LedgerEntry) -> WaivedLine:
    assert row.meter_event is not None and row.quantity is not None and row.unit_price is not None
    return WaivedLine(
        id=row.pk,
        event=str(row.meter_event_id),
        quantity=row.quantity,
        unit_price=row.unit_price,
        amount=row.amount,
        created_at=row.created_at,
        used=_used(row.meter_event),
    )


def _used(event: MeterEvent) -> Used:
    minutes = None
    if event.first_minute is not None and event.end_minute is not None:
        minutes = (event.first_minute, event.end_minute)
    return Used(
        meter=event.meter,
        model=event.model,
        subject=event.subject,
        occurred_at=event.occurred_at,
        minutes=minutes,
    )


# --- Sums -------------------------------------------------------------------------------------------------------


def spent(lines: Iterable[Line]) -> Decimal:
    """What was paid for use, less what of it was given back. Exact; may be negative in a period of reversals."""
    return -money.total(line.entry.change for line in lines if is_spending(line.entry))


def is_spending(entry: chain.ChainedEntry) -> bool:
    """A charge; or the reversal of one, which brings money back (that of a recharge takes money out)."""
    return entry.kind in Meter.values or (entry.kind == EntryKind.REVERSAL and entry.change > ZERO)


def _sums(lines: Sequence[Line]) -> dict[str, Decimal]:
    """Per kind of entry, signed as the purses see them."""
    kinds = [kind for kind in EntryKind.values if any(line.entry.kind == kind for line in lines)]
    return {
        kind: money.total(line.entry.change for line in lines if line.entry.kind == kind) for kind in kinds
    }


def _meters(lines: Iterable[Line], waived: Iterable[WaivedLine]) -> list[MeterSum]:
    """An event counts once, in however many parts it was paid."""
    quantities: dict[tuple[str, str], dict[str, int]] = {}
    paid: dict[tuple[str, str], Decimal] = {}
    rest: dict[tuple[str, str], Decimal] = {}
    for line in lines:
        if line.used is not None and line.entry.event is not None and line.entry.quantity is not None:
            key = (line.used.meter, line.used.model)
            quantities.setdefault(key, {})[line.entry.event] = line.entry.quantity
            paid[key] = money.subtract(paid.get(key, ZERO), line.entry.change)
    for each in waived:
        key = (each.used.meter, each.used.model)
        quantities.setdefault(key, {})[each.event] = each.quantity
        rest[key] = money.add(rest.get(key, ZERO), each.amount)
    return [
        MeterSum(
            meter=key[0],
            model=key[1],
            quantity=sum(quantities[key].values()),
            paid=paid.get(key, ZERO),
            waived=rest.get(key, ZERO),
        )
        for key in sorted(quantities, key=lambda key: (Meter.values.index(key[0]), key[1]))
    ]


def _invoice(organization_id: str, period: Period) -> InvoiceOfMonth | None:
    if not period.is_month:
        return None
    row = Invoice.objects.filter(organization_id=organization_id, month=period.start).first()
    if row is None:
        return None
    return InvoiceOfMonth(
        number=row.number, spent=row.spent, spent_to_date=row.spent_to_date, amount=row.amount
    )
