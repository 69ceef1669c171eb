"""What an organization used and what it paid for it, summed up by day, model, cache object, key or meter.

What was used are the facts (meter events), each at the instant at which it occurred: storage counts where the first
minute of its line lies. What was paid are their entries. Storage is posted by the hour, so the last hour's may be
missing. One statement sums both, so they are of one snapshot.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db import connection

from billing.models import EntryKind, Meter

GROUPS_MAX = 10_000

DIMENSIONS = {
    "day": "to_char(e.occurred_at AT TIME ZONE %(tz)s, 'YYYY-MM-DD')",
    "model": "e.model",
    "cache": "nullif(e.subject, '')",
    "key": "nullif(e.api_key_id, '')",
    "meter": "e.meter",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """One group. Tokens, token-minutes and calls are counted, money is exact.

    `cached_tokens` were taken from cache objects, `prompt_tokens` were not. `amount` is what purses paid; `reversed`
    of it was given back by corrections; `waived` was used beyond what could be paid, and cost nothing.
    """

    group: dict[str, str | None]
    creation_tokens: int
    storage_token_minutes: int
    calls: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    amount: Decimal
    reversed: Decimal
    waived: Decimal


def sums(
    organization_id: str, *, group_by: Sequence[str], start: datetime, end: datetime, tz: str
) -> list[Sums]:
    """Facts of [start, end), by the dimensions asked for, in their order; without any, all in one.

    `tz` is the name of the zone whose days are meant. One group more than GROUPS_MAX at most.
    """
    values: dict[str, Any] = {
        "organization": organization_id,
        "start": start,
        "end": end,
        "tz": tz,
        "waiver": EntryKind.WAIVER.value,
        "limit": GROUPS_MAX + 1,
    } | {meter.name: meter.value for meter in Meter}
    with connection.cursor() as cursor:
        cursor.execute(_statement(group_by), values)
        rows = cursor.fetchall()
    return [_sums(group_by, *row) for row in rows]


def _statement(group_by: Sequence[str]) -> str:
    """Facts and payments are rows of one kind, so that each is counted once however many entries paid a fact.

    `OFFSET 0`: the entries of each fact are looked up by it alone. Else the planner might, where it does not know yet
    how many an organization has, compare each fact with all of them.
    """
    group = "".join(f"{DIMENSIONS[name]}, " for name in group_by)
    keys = [f"k{number}" for number in range(len(group_by))]
    named = "".join(f"{key}, " for key in keys)
    by = (
        f"GROUP BY {', '.join(keys)} ORDER BY {', '.join(f'{key} NULLS FIRST' for key in keys)}"
        if keys
        else ""
    )
    return f"""
WITH used ({named}meter, quantity, cached, amount, reversed, waived) AS (
    SELECT {group}e.meter, e.quantity, coalesce(e.cached_tokens, 0), 0::numeric, 0::numeric, 0::numeric
      FROM billing_meterevent AS e
     WHERE e.organization_id = %(organization)s AND e.occurred_at >= %(start)s AND e.occurred_at < %(end)s
    UNION ALL
    SELECT {group}e.meter, 0, 0, CASE WHEN l.kind = %(waiver)s THEN 0 ELSE l.amount END, l.reversed,
           CASE WHEN l.kind = %(waiver)s THEN l.amount ELSE 0 END
      FROM billing_meterevent AS e
     CROSS JOIN LATERAL (
        SELECT l.kind, l.amount, coalesce(r.amount, 0) AS reversed
          FROM billing_ledgerentry AS l LEFT JOIN billing_ledgerentry AS r ON r.reverses_id = l.id
         WHERE l.meter_event_id = e.id OFFSET 0) AS l
     WHERE e.organization_id = %(organization)s AND e.occurred_at >= %(start)s AND e.occurred_at < %(end)s
)
SELECT json_build_array({", ".join(keys)}),
       coalesce(sum(quantity) FILTER (WHERE meter = %(CREATION)s), 0),
       coalesce(sum(quantity) FILTER (WHERE meter = %(STORAGE)s), 0),
       coalesce(sum(quantity) FILTER (WHERE meter = %(CALL)s), 0),
       coalesce(sum(quantity) FILTER (WHERE meter = %(PROMPT)s), 0),
       coalesce(sum(cached), 0),
       coalesce(sum(quantity) FILTER (WHERE meter = %(COMPLETION)s), 0),
       coalesce(sum(amount), 0), coalesce(sum(reversed), 0), coalesce(sum(waived), 0)
  FROM used {by} LIMIT %(limit)s
"""


def _sums(
    group_by: Sequence[str],
    keys: object,
    creation: int,
    storage: int,
    calls: int,
    prompt: int,
    cached: int,
    completion: int,
    amount: Decimal,
    reversed_: Decimal,
    waived: Decimal,
) -> Sums:
    values = json.loads(keys) if isinstance(keys, str) else keys
    assert isinstance(values, list)
    return Sums(
        group=dict(zip(group_by, values, strict=True)),
        creation_tokens=int(creation),
        storage_token_minutes=int(storage),
        calls=int(calls),
        prompt_tokens=int(prompt),
        cached_tokens=int(cached),
        completion_tokens=int(completion),
        amount=amount,
        reversed=reversed_,
        waived=waived,
    )
