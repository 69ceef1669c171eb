"""What a month would have cost by another price list: every fact of it rated twice, and nothing written.

A draft says new prices for single items; what it leaves out keeps its price. The rules are the price book's own: a
tier's price wins over the one for all, each fact by the prices of its own instant, the draft's prices at any instant.
The database sums up by groups in exact numbers, so that a month of a million facts takes seconds.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import Any

from django.db import connection, transaction

from billing import money, price_book, storage
from billing.errors import DraftRefused
from billing.models import CURRENCIES, Meter, PricedItem

CALENDAR = timezone(timedelta(hours=8))
"""Months are those of the callers' calendar, UTC+8."""
DRAFT_ITEMS_MAX = 1000
DRAFT_CHARS_MAX = 1_000_000
ORGANIZATIONS_SHOWN = 20
PER_MILLION_MAX = Decimal(10) ** 12
COLUMNS = ("meter", "model", "currency", "tier", "per_million")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPrice:
    """A price that might be announced, per 1,000,000 units. `tier` "": for all tiers."""

    meter: str
    model: str
    currency: str
    tier: str
    per_million: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What one meter, model or organization (`name`), or all together (""), cost and would have cost."""

    currency: str
    name: str
    old: Decimal
    new: Decimal

    @property
    def difference(self) -> Decimal:
        return money.subtract(self.new, self.old)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """Of facts from `first` on, before `end`. `organizations` are those with the largest differences.

    `new_items` are the draft's items that nothing is sold as today: a mistake in a name looks like that.
    """

    first: datetime
    end: datetime
    facts: int
    totals: tuple[Compared, ...]
    meters: tuple[Compared, ...]
    models: tuple[Compared, ...]
    organizations: tuple[Compared, ...]
    new_items: tuple[DraftPrice, ...]


# --- Reading a draft ------------------------------------------------------------------------------------------


def parse(text: str) -> list[DraftPrice]:
    """A CSV with a header, or a JSON list of objects: meter, model, per_million; currency (CNY) and tier if wanted.

    Raises DraftRefused, which names the item, what came and what is taken.
    """
    if len(text) > DRAFT_CHARS_MAX:
        raise DraftRefused(
            f"A price list has at most {DRAFT_CHARS_MAX:,} characters, this one {len(text):,}."
        )
    text = text.lstrip("\ufeff").strip()
    rows = _from_json(text) if text.startswith(("[", "{")) else _from_csv(text)
    if not 0 < len(rows) <= DRAFT_ITEMS_MAX:
        raise DraftRefused(f"A price list has 1 to {DRAFT_ITEMS_MAX} items, this one {len(rows)}.")
    draft = [_item(row, number) for number, row in enumerate(rows, 1)]
    seen: set[tuple[str, ...]] = set()
    for number, item in enumerate(draft, 1):
        key = (item.meter, item.model, item.currency, item.tier)
        if key in seen:
            raise DraftRefused(f"Item {number}: {' '.join(filter(None, key))} is there twice.")
        seen.add(key)
    return draft


def _from_json(text: str) -> list[Mapping[str, Any]]:
    try:
        # A float would have lost what was written.
        rows = json.loads(text, parse_float=Decimal)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DraftRefused(f"This is no JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DraftRefused("A price list in JSON is a list of objects.")
    return rows


def _from_csv(text: str) -> list[Mapping[str, Any]]:
    try:
        return list(csv.DictReader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise DraftRefused(f"This is no CSV: {error}") from error


def _item(row: Mapping[str, Any], number: int) -> DraftPrice:
    unknown = [str(name) for name in row if name not in COLUMNS]
    missing = [name for name in ("meter", "model", "per_million") if row.get(name) in (None, "")]
    if unknown or missing:
        wrong = f"{', '.join(unknown)} unknown" if unknown else f"{', '.join(missing)} missing"
        raise DraftRefused(f"Item {number}: {wrong}; it takes {', '.join(COLUMNS)}.")
    return DraftPrice(
        meter=_one_of(Meter.values, row["meter"], "meter", number),
        model=_text(row["model"], "model", 128, number),
        currency=_one_of([code for code, _ in CURRENCIES], row.get("currency") or "CNY", "currency", number),
        tier=_text(row.get("tier") or "", "tier", 32, number),
        per_million=_per_million(row["per_million"], number),
    )


def _one_of(known: Sequence[str], value: Any, name: str, number: int) -> str:
    if value not in known:
        raise DraftRefused(f"Item {number}: {name} got {value!r}, it takes one of {', '.join(known)}.")
    return str(value)


def _text(value: Any, name: str, chars_max: int, number: int) -> str:
    if not isinstance(value, str) or len(value) > chars_max or not value.isprintable():
        raise DraftRefused(f"Item {number}: {name} takes a text of at most {chars_max} characters.")
    return value


def _per_million(value: Any, number: int) -> Decimal:
    try:
        price = Decimal(value) if type(value) in (str, int, Decimal) else Decimal("NaN")
    except InvalidOperation:
        price = Decimal("NaN")
    if not price.is_finite() or not 0 <= price < PER_MILLION_MAX or price % price_book.STEP:
        raise DraftRefused(
            f"Item {number}: per_million got {value!r}, it takes 0 or more, in steps of {price_book.STEP}."
        )
    return price


# --- The month ------------------------------------------------------------------------------------------------


def month(text: str) -> tuple[datetime, datetime]:
    """The first instant of a month that is written like 2024-07, and the first one after it. Raises DraftRefused."""
    try:
        first = datetime.strptime(text, "%Y-%m").replace(tzinfo=CALENDAR)
        end = (first + timedelta(days=31)).replace(day=1)
        return first.astimezone(UTC), end.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise DraftRefused(f"A month is written like 2024-07, not like {text!r}.") from error


def last_month(at: datetime) -> str:
    """The month before the one of `at`."""
    return f"{at.astimezone(CALENDAR).replace(day=1) - timedelta(days=1):%Y-%m}"


# --- Rating twice ---------------------------------------------------------------------------------------------

RATED = """
WITH draft AS (
    SELECT * FROM json_to_recordset(%(draft)s)
        AS d (meter varchar, model varchar, currency varchar, tier varchar, per_million numeric)
), rated AS (
    SELECT a.currency, m.meter, m.model, m.organization_id, count(*) AS facts, sum(m.quantity) AS quantity,
        coalesce(o.per_million, g.per_million) AS old,
        coalesce(own.per_million, o.per_million, general.per_million, g.per_million) AS new
    FROM billing_meterevent m
    JOIN billing_billingaccount a ON a.organization_id = m.organization_id
    LEFT JOIN billing_accountpricetier t ON t.organization_id = m.organization_id
        AND t.valid_from <= m.occurred_at AND (t.valid_to IS NULL OR t.valid_to > m.occurred_at)
    LEFT JOIN (billing_priceditem oi JOIN billing_price o ON o.priced_item_id = oi.id)
        ON oi.meter = m.meter AND oi.model = m.model AND oi.currency = a.currency AND oi.tier = t.tier
        AND o.valid_from <= m.occurred_at AND (o.valid_to IS NULL OR o.valid_to > m.occurred_at)
    LEFT JOIN (billing_priceditem gi JOIN billing_price g ON g.priced_item_id = gi.id)
        ON gi.meter = m.meter AND gi.model = m.model AND gi.currency = a.currency AND gi.tier = ''
        AND g.valid_from <= m.occurred_at AND (g.valid_to IS NULL OR g.valid_to > m.occurred_at)
    LEFT JOIN draft own ON own.meter = m.meter AND own.model = m.model AND own.currency = a.currency
        AND own.tier = t.tier
    LEFT JOIN draft general ON general.meter = m.meter AND general.model = m.model
        AND general.currency = a.currency AND general.tier = ''
    WHERE m.occurred_at >= %(first)s AND m.occurred_at < %(end)s
    AND (%(organization_id)s::varchar IS NULL OR m.organization_id = %(organization_id)s)
    GROUP BY a.currency, m.meter, m.model, m.organization_id, old, new
)
SELECT CASE WHEN grouping(meter) = 0 THEN 'meter' WHEN grouping(model) = 0 THEN 'model'
            WHEN grouping(organization_id) = 0 THEN 'organization' ELSE 'total' END,
    currency, coalesce(meter, model, organization_id, ''), sum(facts),
    coalesce(sum(quantity * old), 0) * 0.000001, coalesce(sum(quantity * new), 0) * 0.000001
FROM rated
GROUP BY GROUPING SETS ((currency), (currency, meter), (currency, model), (currency, organization_id))
ORDER BY 2, 3
"""


def preview(
    draft: Sequence[DraftPrice], *, first: datetime, end: datetime, organization_id: str | None = None
) -> Preview:
    """What was used from `first` on, before `end`, by the price book and by the draft; of one organization or all."""
    with connection.cursor() as cursor:
        cursor.execute(
            RATED,
            {
                "draft": json.dumps([asdict(item) for item in draft], default=str),
                "first": first,
                "end": end,
                "organization_id": organization_id,
            },
        )
        rows = cursor.fetchall()
    groups: dict[str, list[Compared]] = {"total": [], "meter": [], "model": [], "organization": []}
    for group, currency, name, _, old, new in rows:
        groups[group].append(
            Compared(currency=currency, name=name, old=money.exact(old), new=money.exact(new))
        )
    largest = sorted(groups["organization"], key=lambda one: abs(one.difference), reverse=True)
    return Preview(
        first=first,
        end=end,
        facts=sum(int(row[3]) for row in rows if row[0] == "total"),
        totals=tuple(groups["total"]),
        meters=tuple(groups["meter"]),
        models=tuple(groups["model"]),
        organizations=tuple(largest[:ORGANIZATIONS_SHOWN]),
        new_items=tuple(_new_items(draft)),
    )


def _new_items(draft: Sequence[DraftPrice]) -> list[DraftPrice]:
    sold = set(PricedItem.objects.values_list("meter", "model", "currency"))
    return [item for item in draft if (item.meter, item.model, item.currency) not in sold]


# --- Announcing -----------------------------------------------------------------------------------------------


def announce(draft: Sequence[DraftPrice], *, valid_from: datetime) -> None:
    """Announce all of the draft's prices for one instant, or none. Raises PriceRefused."""
    with transaction.atomic():
        for item in draft:
            price_book.publish(**asdict(item), valid_from=valid_from)
        if any(item.meter == Meter.STORAGE for item in draft):
            transaction.on_commit(lambda: storage.reprice())
