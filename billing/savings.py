"""What subjects cost, and what the calls that used them would have cost without.

A subject is whatever is created, stored and called by its id. What its calls spared are facts: each call tells its
cached tokens and the model that answered. Those tokens are priced here as uncached prompt tokens of that model, by
the price in force when the call started; what was paid is read from the ledger and never priced again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db import connection

from billing import price_book
from billing.models import EntryKind, Meter
from billing.money import exact

GROUPS_MAX = 10_000
SUBJECT, FAMILY, DAY = "subject", "family", "day"
GROUPS = {
    SUBJECT: "e.subject",
    FAMILY: "e.model",
    DAY: "to_char(e.occurred_at AT TIME ZONE %(tz)s, 'YYYY-MM-DD')",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spared:
    """Each call of `subject` from `since` until before `until` spared `milliseconds`; None: for good."""

    subject: str
    since: datetime
    until: datetime | None
    milliseconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Balanced:
    """One group: its calls, what they spared, and what its subjects cost meanwhile.

    `creation`, `storage` and `call_fees` are what was paid, less what corrections gave back. `cost_uncached` is what
    the cached tokens would have cost. `milliseconds` of the `timed_calls`, those whose time is known.
    `tail` is the storage of the minutes that started after the last call, all of it when there was none.
    `calls_by_hour` has 24 numbers, by the zone's hours; `call_days` counts the days that had a call.
    """

    key: str
    calls: int
    cached_tokens: int
    cost_uncached: Decimal
    timed_calls: int
    milliseconds: int
    last_call_at: datetime | None
    calls_by_hour: tuple[int, ...]
    call_days: int
    creation: Decimal
    storage: Decimal
    call_fees: Decimal
    stored_minutes: int
    tail: Decimal


def called_subjects(organization_id: str, *, start: datetime, end: datetime) -> list[str]:
    """Subjects that had a call in [start, end), GROUPS_MAX + 1 at most."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT subject FROM billing_meterevent WHERE organization_id = %s"
            " AND occurred_at >= %s AND occurred_at < %s AND meter = %s LIMIT %s",
            [organization_id, start, end, Meter.CALL.value, GROUPS_MAX + 1],
        )
        return [subject for (subject,) in cursor.fetchall()]


def balanced(
    organization_id: str,
    *,
    currency: str,
    by: str,
    start: datetime,
    end: datetime,
    tz: str,
    spared: Sequence[Spared],
) -> list[Balanced]:
    """Groups of what happened in [start, end), by SUBJECT, FAMILY or DAY, GROUPS_MAX + 1 at most, in the order of
    their keys. `tz` is the zone of days and hours. Calls of before there were such facts spared nothing. Raises
    NoPrice."""
    values: dict[str, Any] = {
        "organization": organization_id,
        "start": start,
        "end": end,
        "tz": tz,
        "waiver": EntryKind.WAIVER.value,
        "limit": GROUPS_MAX + 1,
        "prices": _by_name(_prices(organization_id, currency=currency, start=start, end=end)),
        "spared": _by_name(
            (s.subject, {"since": s.since, "until": s.until, "milliseconds": s.milliseconds}) for s in spared
        ),
    } | {meter.name: meter.value for meter in Meter}
    with connection.cursor() as cursor:
        cursor.execute(STATEMENT.replace("{group}", GROUPS[by]), values)
        return [_balanced(*row) for row in cursor.fetchall()]


def _by_name(rows: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """One object, in which the database finds a name's rows at once, however many names there are."""
    named: dict[str, list[dict[str, Any]]] = {}
    for name, row in rows:
        named.setdefault(name, []).append(row)
    return json.dumps(named, default=str)


def _prices(
    organization_id: str, *, currency: str, start: datetime, end: datetime
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(model, a prompt price and its span) of all models that were called, over the span in which they were."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT called_model, min(occurred_at), max(occurred_at) FROM billing_meterevent"
            " WHERE organization_id = %s AND occurred_at >= %s AND occurred_at < %s AND meter = %s"
            " AND cached_tokens IS NOT NULL AND called_model <> '' GROUP BY called_model",
            [organization_id, start, end, Meter.CALL.value],
        )
        spans = cursor.fetchall()
    for model, first, last in spans:
        pieces = price_book.prices_between(
            organization_id=organization_id,
            meter=Meter.PROMPT,
            model=model,
            currency=currency,
            first=first,
            last=last,
        )
        ends = [*(piece.valid_from for piece in pieces[1:]), None]
        for piece, until in zip(pieces, ends, strict=True):
            yield model, {"since": piece.valid_from, "until": until, "unit_price": piece.unit_price}


IN_SPAN = (
    "f.occurred_at >= (row ->> 'since')::timestamptz"
    " AND (row ->> 'until' IS NULL OR f.occurred_at < (row ->> 'until')::timestamptz)"
)
BY_HOUR = ", ".join(f"count(*) FILTER (WHERE meter = %(CALL)s AND hour = {hour})" for hour in range(24))
# Each fact is joined with what belongs to it and to nothing else, one row at most, and all is summed up once: no plan
# compares many facts with many others, also where the planner does not know yet how many an organization has.
# A line's minutes k start at occurred_at + 60k s. Those that had started by the last call are not its tail.
STATEMENT = f"""
WITH fact AS MATERIALIZED (
    SELECT {{group}} AS key, e.id, e.meter, e.subject, e.occurred_at, e.cached_tokens, e.called_model, e.quantity,
           e.end_minute - e.first_minute AS minutes,
           extract(hour FROM e.occurred_at AT TIME ZONE %(tz)s)::int AS hour,
           (e.occurred_at AT TIME ZONE %(tz)s)::date AS day,
           max(e.occurred_at) FILTER (WHERE e.meter = %(CALL)s) OVER (PARTITION BY {{group}}) AS last_call_at
      FROM billing_meterevent AS e
     WHERE e.organization_id = %(organization)s AND e.occurred_at >= %(start)s AND e.occurred_at < %(end)s
       AND e.meter IN (%(CREATION)s, %(STORAGE)s, %(CALL)s)
), explained AS (
    SELECT f.*, paid.amount, line.unit_price AS stored_at, price.unit_price AS spared_at, spared.milliseconds,
           CASE WHEN f.last_call_at IS NULL OR f.last_call_at < f.occurred_at THEN f.minutes
                ELSE greatest(0, f.minutes - 1
                                 - floor(extract(epoch FROM f.last_call_at - f.occurred_at) / 60)::bigint)
           END AS tail_minutes
      FROM fact AS f
      LEFT JOIN LATERAL (
        SELECT sum(CASE WHEN l.kind = %(waiver)s THEN 0 ELSE l.amount END - coalesce(r.amount, 0)) AS amount
          FROM billing_ledgerentry AS l LEFT JOIN billing_ledgerentry AS r ON r.reverses_id = l.id
         WHERE l.meter_event_id = f.id) AS paid ON true
      LEFT JOIN LATERAL (
        SELECT l.unit_price FROM billing_storageline AS l WHERE l.meter_event_id = f.id OFFSET 0) AS line ON true
      LEFT JOIN LATERAL (
        SELECT (p ->> 'unit_price')::numeric AS unit_price
          FROM jsonb_array_elements(%(prices)s::jsonb -> f.called_model) AS p
         WHERE {IN_SPAN.replace("row", "p")} LIMIT 1) AS price ON true
      LEFT JOIN LATERAL (
        SELECT (s ->> 'milliseconds')::bigint AS milliseconds
          FROM jsonb_array_elements(%(spared)s::jsonb -> f.subject) AS s
         WHERE f.meter = %(CALL)s AND {IN_SPAN.replace("row", "s")} LIMIT 1) AS spared ON true
)
SELECT key, count(*) FILTER (WHERE meter = %(CALL)s), coalesce(sum(cached_tokens), 0),
       coalesce(sum(cached_tokens * spared_at), 0), count(milliseconds), coalesce(sum(milliseconds), 0),
       max(last_call_at), ARRAY[{BY_HOUR}], count(DISTINCT day) FILTER (WHERE meter = %(CALL)s),
       coalesce(sum(amount) FILTER (WHERE meter = %(CREATION)s), 0),
       coalesce(sum(amount) FILTER (WHERE meter = %(STORAGE)s), 0),
       coalesce(sum(amount) FILTER (WHERE meter = %(CALL)s), 0),
       coalesce(sum(minutes), 0), coalesce(sum(stored_at * (quantity / minutes) * tail_minutes), 0)
  FROM explained GROUP BY key ORDER BY key LIMIT %(limit)s
"""


def _balanced(
    key: str,
    calls: int,
    cached_tokens: int,
    cost_uncached: Decimal,
    timed_calls: int,
    milliseconds: int,
    last_call_at: datetime | None,
    calls_by_hour: list[int],
    call_days: int,
    creation: Decimal,
    storage: Decimal,
    call_fees: Decimal,
    stored_minutes: int,
    tail: Decimal,
) -> Balanced:
    return Balanced(
        key=key,
        calls=calls,
        cached_tokens=int(cached_tokens),
        cost_uncached=exact(cost_uncached),
        timed_calls=timed_calls,
        milliseconds=int(milliseconds),
        last_call_at=last_call_at,
        calls_by_hour=tuple(calls_by_hour),
        call_days=call_days,
        creation=exact(creation),
        storage=exact(storage),
        call_fees=exact(call_fees),
        stored_minutes=int(stored_minutes),
        tail=exact(tail),
    )
