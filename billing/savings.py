"""What subjects cost, and what the calls that used them would have cost without.

A subject is whatever is created, stored and called by its id. What its calls spared are facts: each call tells its
cached tokens and the model that answered. Those tokens are priced here as uncached prompt tokens of that model, by
the price in force when the call started; what was paid is read from the ledger and never priced again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db import connection

from billing import ledger, price_book
from billing.models import EntryKind, Meter
from billing.money import ZERO, exact

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
        "prices": ledger.as_json(_prices(organization_id, currency=currency, start=start, end=end)),
        "spared": ledger.as_json(
            [
                {"subject": s.subject, "since": s.since, "until": s.until, "milliseconds": s.milliseconds}
                for s in spared
            ]
        ),
        "hours": list(range(24)),
    } | {meter.name: meter.value for meter in Meter}
    with connection.cursor() as cursor:
        cursor.execute(STATEMENT.replace("{group}", GROUPS[by]), values)
        return [_balanced(*row) for row in cursor.fetchall()]


def _prices(organization_id: str, *, currency: str, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """The prompt prices of all models that were called, each for the span in which they were."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT called_model, min(occurred_at), max(occurred_at) FROM billing_meterevent"
            " WHERE organization_id = %s AND occurred_at >= %s AND occurred_at < %s AND meter = %s"
            " AND cached_tokens IS NOT NULL AND called_model <> '' GROUP BY called_model",
            [organization_id, start, end, Meter.CALL.value],
        )
        spans = cursor.fetchall()
    rows: list[dict[str, Any]] = []
    for model, first, last in spans:
        pieces = price_book.prices_between(
            meter=Meter.PROMPT, model=model, currency=currency, first=first, last=last
        )
        ends = [*(piece.valid_from for piece in pieces[1:]), None]
        rows += [
            {"model": model, "since": piece.valid_from, "until": until, "unit_price": piece.unit_price}
            for piece, until in zip(pieces, ends, strict=True)
        ]
    return rows


# A line's minutes k start at occurred_at + 60k s. Those that started by the last call are not the tail.
STATEMENT = """
WITH fact AS MATERIALIZED (
    SELECT {group} AS key, e.id, e.meter, e.subject, e.occurred_at, e.cached_tokens, e.called_model, e.quantity,
           e.end_minute - e.first_minute AS minutes
      FROM billing_meterevent AS e
     WHERE e.organization_id = %(organization)s AND e.occurred_at >= %(start)s AND e.occurred_at < %(end)s
       AND e.meter IN (%(CREATION)s, %(STORAGE)s, %(CALL)s)
), call AS (
    SELECT f.key, count(*) AS calls, coalesce(sum(f.cached_tokens), 0) AS cached_tokens,
           coalesce(sum(f.cached_tokens * p.unit_price), 0) AS cost_uncached,
           count(s.milliseconds) AS timed_calls, coalesce(sum(s.milliseconds), 0) AS milliseconds,
           max(f.occurred_at) AS last_call_at,
           count(DISTINCT (f.occurred_at AT TIME ZONE %(tz)s)::date) AS call_days
      FROM fact AS f
      LEFT JOIN json_to_recordset(%(prices)s::json)
                AS p (model varchar, since timestamptz, until timestamptz, unit_price numeric)
        ON p.model = f.called_model AND f.occurred_at >= p.since
           AND (p.until IS NULL OR f.occurred_at < p.until)
      LEFT JOIN json_to_recordset(%(spared)s::json)
                AS s (subject varchar, since timestamptz, until timestamptz, milliseconds bigint)
        ON s.subject = f.subject AND f.occurred_at >= s.since AND (s.until IS NULL OR f.occurred_at < s.until)
     WHERE f.meter = %(CALL)s
     GROUP BY f.key
), by_hour AS (
    SELECT key, hour, count(*) AS calls
      FROM (SELECT key, extract(hour FROM occurred_at AT TIME ZONE %(tz)s)::int AS hour
              FROM fact WHERE meter = %(CALL)s) AS hit
     GROUP BY key, hour
), hours AS (
    SELECT c.key, array_agg(coalesce(b.calls, 0) ORDER BY h.hour) AS calls_by_hour
      FROM call AS c CROSS JOIN unnest(%(hours)s::int[]) AS h (hour)
      LEFT JOIN by_hour AS b ON b.key = c.key AND b.hour = h.hour
     GROUP BY c.key
), paid AS (
    SELECT f.key, f.meter, f.id, sum(CASE WHEN l.kind = %(waiver)s THEN 0 ELSE l.amount END)
                                 - coalesce(sum(r.amount), 0) AS amount
      FROM fact AS f
      JOIN billing_ledgerentry AS l ON l.meter_event_id = f.id AND l.organization_id = %(organization)s
      LEFT JOIN billing_ledgerentry AS r ON r.reverses_id = l.id AND r.organization_id = %(organization)s
     GROUP BY f.key, f.meter, f.id
), cost AS (
    SELECT key,
           coalesce(sum(amount) FILTER (WHERE meter = %(CREATION)s), 0) AS creation,
           coalesce(sum(amount) FILTER (WHERE meter = %(STORAGE)s), 0) AS storage,
           coalesce(sum(amount) FILTER (WHERE meter = %(CALL)s), 0) AS call_fees
      FROM paid GROUP BY key
), kept AS (
    SELECT f.key, sum(f.minutes) AS minutes,
           sum(line.unit_price * (f.quantity / f.minutes)
               * CASE WHEN c.last_call_at IS NULL OR c.last_call_at < f.occurred_at THEN f.minutes
                      ELSE greatest(0, f.minutes - 1
                                       - floor(extract(epoch FROM c.last_call_at - f.occurred_at) / 60)::bigint)
                 END) AS tail
      FROM fact AS f
      JOIN billing_storageline AS line ON line.meter_event_id = f.id
      LEFT JOIN call AS c ON c.key = f.key
     WHERE f.meter = %(STORAGE)s
     GROUP BY f.key
)
SELECT keys.key, coalesce(call.calls, 0), coalesce(call.cached_tokens, 0), coalesce(call.cost_uncached, 0),
       coalesce(call.timed_calls, 0), coalesce(call.milliseconds, 0), call.last_call_at,
       hours.calls_by_hour, coalesce(call.call_days, 0),
       coalesce(cost.creation, 0), coalesce(cost.storage, 0), coalesce(cost.call_fees, 0),
       coalesce(kept.minutes, 0), coalesce(kept.tail, 0)
  FROM (SELECT DISTINCT key FROM fact) AS keys
  LEFT JOIN call ON call.key = keys.key
  LEFT JOIN hours ON hours.key = keys.key
  LEFT JOIN cost ON cost.key = keys.key
  LEFT JOIN kept ON kept.key = keys.key
 ORDER BY keys.key
 LIMIT %(limit)s
"""


def _balanced(
    key: str,
    calls: int,
    cached_tokens: int,
    cost_uncached: Decimal,
    timed_calls: int,
    milliseconds: int,
    last_call_at: datetime | None,
    calls_by_hour: list[int] | None,
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
        calls_by_hour=tuple(calls_by_hour or [0] * 24),
        call_days=call_days,
        creation=exact(creation),
        storage=exact(storage),
        call_fees=exact(call_fees),
        stored_minutes=int(stored_minutes),
        tail=exact(tail or ZERO),
    )
