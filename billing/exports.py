"""Usage for other systems: each meter event as a CloudEvent, after what it cost is known, and none left out.

The meter events are their own outbox: they are immutable, and rated in the transaction that writes them. A sink has a
position among them. Instants give no order in which nothing comes late: a transaction that is slow to commit brings an
event that was recorded before those that were read. So the order is that of the transactions' numbers, and only what
is below the number of the oldest transaction still running is read: nothing can come before it any more.

An event is sent before the position moves, so a sink may get it twice, always under the same id.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zlib import crc32

from django.db import connection, transaction

from billing import clock, ledger, money
from billing.errors import ExportAhead, ExportMoved
from billing.models import ExportPosition, Meter

TYPES = {
    Meter.CREATION: "contextcache.creation.v1",
    Meter.STORAGE: "contextcache.storage.v1",
    Meter.CALL: "contextcache.call.v1",
    Meter.PROMPT: "contextcache.tokens.v1",
    Meter.COMPLETION: "contextcache.tokens.v1",
}
RETRY_SECONDS = (5, 30, 120, 600, 1_800)
"""How long after each failure in a row the next try follows; the last goes on."""
LOCK_SPACE = 0x0CAE
"""The first key of the advisory locks that keep one sink to one exporter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedEvent:
    """A meter event with what it cost. `amount` = quantity × unit price; `waived` of it could not be paid."""

    recorded_xid: int
    id: uuid.UUID
    organization_id: str
    meter: str
    subject: str
    model: str
    quantity: int
    unit: str
    occurred_at: datetime
    api_key_id: str
    request_id: str
    currency: str
    is_sandbox: bool
    amount: Decimal
    waived: Decimal
    unit_price: Decimal


def cloud_event(event: RatedEvent, *, source: str) -> dict[str, Any]:
    """As CloudEvents 1.0, in JSON's types; amounts are strings, exact."""
    return {
        "specversion": "1.0",
        "id": str(event.id),
        "source": source,
        "type": TYPES[Meter(event.meter)],
        "subject": event.organization_id,
        "time": event.occurred_at.astimezone(UTC).isoformat(),
        "datacontenttype": "application/json",
        "data": {
            "meter": event.meter,
            "model": event.model,
            "cache_id": event.subject or None,
            "quantity": event.quantity,
            "unit": event.unit,
            "amount": money.text(event.amount),
            "waived": money.text(event.waived),
            "currency": event.currency,
            "unit_price": money.text(event.unit_price),
            "api_key_id": event.api_key_id or None,
            "request_id": event.request_id or None,
            "sandbox": event.is_sandbox,
        },
    }


# --- Reading --------------------------------------------------------------------------------------------------

# An event without an entry was free. What was reversed later was used all the same: a reversal has no event.
NEXT = """
SELECT m.recorded_xid, m.id, m.organization_id, m.meter, m.subject, m.model, m.quantity, m.unit, m.occurred_at,
       m.api_key_id, m.request_id, a.currency, o.kind = 'sandbox', coalesce(e.amount, 0), coalesce(e.waived, 0),
       coalesce(e.unit_price, 0)
  FROM billing_meterevent AS m
  JOIN billing_billingaccount AS a ON a.organization_id = m.organization_id
  JOIN access_organization AS o ON o.id = m.organization_id
  LEFT JOIN LATERAL (
       SELECT sum(x.amount) AS amount, sum(x.amount) FILTER (WHERE x.kind = 'waiver') AS waived,
              max(x.unit_price) AS unit_price
         FROM billing_ledgerentry AS x WHERE x.meter_event_id = m.id) AS e ON true
 WHERE (m.recorded_xid, m.id) > (%(xid)s, %(id)s)
   AND m.recorded_xid < coalesce(%(below)s, pg_snapshot_xmin(pg_current_snapshot())::text::bigint)
   AND (%(not_before)s::timestamptz IS NULL OR m.recorded_at >= %(not_before)s)
 ORDER BY m.recorded_xid, m.id LIMIT %(limit)s
"""


def position_of(sink: str) -> ExportPosition:
    """Where the sink stands; a new one stands before the first event of all.

    Raises ExportAhead when it has got further than this database has ever been.
    """
    position = any_position_of(sink)
    if position.recorded_xid >= _next_xid():
        raise ExportAhead(
            f"{sink} stands at transaction {position.recorded_xid}, which this database has not reached: it was "
            "restored from a dump, and counts anew. Run `manage.py export_usage --restored` before the service starts."
        )
    return position


def any_position_of(sink: str) -> ExportPosition:
    """The same, also where it stands among the transactions of another database: for `restart_after_restore`."""
    position, _ = ExportPosition.objects.get_or_create(sink=sink)
    return position


def _next_xid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        row = cursor.fetchone()
    number: int = row[0]
    return number


def next_batch(position: ExportPosition, *, limit: int, below: int | None = None) -> list[RatedEvent]:
    """The events after a position, at most `limit`, in the order in which they are to go.

    `below`, a transaction's number, is for a database in which nobody writes: there nothing comes late.
    """
    values = {
        "below": below,
        "xid": position.recorded_xid,
        "id": position.event_id,
        "not_before": position.not_before,
        "limit": limit,
    }
    with connection.cursor() as cursor:
        cursor.execute(NEXT, values)
        rows = cursor.fetchall()
    names = RatedEvent.__dataclass_fields__
    return [RatedEvent(**dict(zip(names, row, strict=True))) for row in rows]


# --- Moving ---------------------------------------------------------------------------------------------------

MOVE = """
UPDATE billing_exportposition
   SET recorded_xid = %(xid)s, event_id = %(id)s, exported = exported + %(events)s, moved_at = clock_timestamp(),
       file_name = %(file_name)s, file_bytes = %(file_bytes)s, failures = 0, failure = '', retry_at = NULL
 WHERE sink = %(sink)s AND (recorded_xid, event_id) = (%(xid_before)s, %(id_before)s)
"""
TALLY = (
    ledger.insert("billing_exporttally", "position_id, meter, hour, currency, events, quantity, amount")
    + " ON CONFLICT (position_id, meter, hour, currency) DO UPDATE"
    " SET events = billing_exporttally.events + EXCLUDED.events,"
    " quantity = billing_exporttally.quantity + EXCLUDED.quantity,"
    " amount = billing_exporttally.amount + EXCLUDED.amount"
)


def move(
    position: ExportPosition, batch: Sequence[RatedEvent], *, file_name: str = "", file_bytes: int = 0
) -> ExportPosition:
    """Write down that a batch has arrived, with its tallies: both or neither. Raises ExportMoved."""
    last = batch[-1]
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(
                MOVE,
                {
                    "sink": position.sink,
                    "xid": last.recorded_xid,
                    "id": last.id,
                    "xid_before": position.recorded_xid,
                    "id_before": position.event_id,
                    "events": len(batch),
                    "file_name": file_name,
                    "file_bytes": file_bytes,
                },
            )
            if cursor.rowcount != 1:
                raise ExportMoved(f"Somebody else has exported to {position.sink} meanwhile.")
            cursor.execute(TALLY, [ledger.as_json(_tallies(position, batch))])
        return ExportPosition.objects.get(sink=position.sink)


def _tallies(position: ExportPosition, batch: Sequence[RatedEvent]) -> list[dict[str, Any]]:
    sums: dict[tuple[str, datetime, str], tuple[int, int, Decimal]] = {}
    for event in batch:
        hour = event.occurred_at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        key = (event.meter, hour, event.currency)
        events, quantity, amount = sums.get(key, (0, 0, money.ZERO))
        sums[key] = (events + 1, quantity + event.quantity, money.add(amount, event.amount))
    return [
        {
            "position_id": position.sink,
            "meter": meter,
            "hour": hour,
            "currency": currency,
            "events": events,
            "quantity": quantity,
            "amount": amount,
        }
        for (meter, hour, currency), (events, quantity, amount) in sorted(sums.items())
    ]


def failed(position: ExportPosition, *, reason: str) -> None:
    """A try came to nothing: the next one waits, longer with each failure in a row."""
    wait = RETRY_SECONDS[min(position.failures, len(RETRY_SECONDS) - 1)]
    ExportPosition.objects.filter(sink=position.sink).update(
        failures=position.failures + 1,
        failure=reason[:200],
        retry_at=clock.now() + timedelta(seconds=wait),
    )


def restart_after_restore(sink: str) -> None:
    """Everything that a restored database holds has gone to the sink: count its transactions from the first again."""
    ExportPosition.objects.filter(sink=sink).update(
        recorded_xid=0,
        event_id=uuid.UUID(int=0),
        not_before=clock.now(),
        failures=0,
        failure="",
        retry_at=None,
    )


@contextmanager
def alone(sink: str) -> Iterator[bool]:
    """True for one exporter of a sink at a time, across all processes; ends with the connection at the latest."""
    key = crc32(sink.encode()) & 0x7FFFFFFF
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", [LOCK_SPACE, key])
        row = cursor.fetchone()
    is_alone = bool(row and row[0])
    try:
        yield is_alone
    finally:
        if is_alone:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s, %s)", [LOCK_SPACE, key])
