"""Every purse's hash chain recomputed from the rows themselves, a few thousand at a time. Runs in a transaction."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db import connection

from billing import chain
from billing.chain import Break, ChainedEntry

ROWS_AT_ONCE = 5_000

ENTRIES = """
SELECT e.chain, e.id, e.organization_id, e.currency, e.purse_id::text, e.purse_sequence, e.kind,
    CASE WHEN e.credit_id = e.purse_id THEN e.amount ELSE -e.amount END, e.balance_after,
    e.meter_event_id::text, e.quantity, e.unit_price, e.reverses_id, e.reason, e.request_id, e.created_at,
    e.debit_id::text, e.credit_id::text, e.idempotency_key, e.price_id, e.operator
FROM billing_ledgerentry e WHERE e.purse_id IS NOT NULL ORDER BY e.purse_id, e.purse_sequence
"""


def breaks() -> Iterator[Break]:
    """The first break of each purse."""
    return chain.breaks(_entries())


def _entries() -> Iterator[tuple[ChainedEntry, bytes]]:
    with connection.chunked_cursor() as cursor:
        cursor.execute(ENTRIES)
        while rows := cursor.fetchmany(ROWS_AT_ONCE):
            for row in rows:
                yield _chained(*row[1:]), bytes(row[0] or b"")


def _chained(
    id_: int,
    organization: str,
    currency: str,
    purse: str,
    sequence: int,
    kind: str,
    change: Decimal,
    balance_after: Decimal,
    event: str | None,
    quantity: int | None,
    unit_price: Decimal | None,
    reverses: int | None,
    reason: str,
    request_id: str,
    created_at: datetime,
    *sealed: Any,
) -> ChainedEntry:
    debit, credit, idempotency_key, price, operator = sealed
    return ChainedEntry(
        id=id_,
        organization=organization,
        currency=currency,
        purse=purse,
        sequence=sequence,
        kind=kind,
        change=change,
        balance_after=balance_after,
        event=event,
        quantity=quantity,
        unit_price=unit_price,
        reverses=reverses,
        reason=reason,
        request_id=request_id,
        created_at=created_at,
        sealed=chain.sealed(
            debit=debit,
            credit=credit,
            idempotency_key=idempotency_key,
            price=price,
            operator=operator,
        ),
    )
