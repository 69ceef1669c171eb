"""What moved an organization's money: its ledger entries, one by one, in the order in which they were written.

Entries of one organization are written under its account's lock, so their ids grow as they are committed: a reader
who goes on from the last id he saw misses nothing and sees nothing twice, whatever is written meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

from django.db import connection
from django.db.models import Case, F, Q, QuerySet, Value, When
from django.db.models.functions import Coalesce
from django.db.models.lookups import GreaterThan, LessThan

from billing.models import ENTRY_ORDER, EntryKind, LedgerEntry
from billing.money import ZERO

TOKENS = "tokens"
"""What prompt and completion tokens are called together."""
METERS = (
    *(EntryKind.CREATION.value, EntryKind.STORAGE.value, EntryKind.CALL.value, TOKENS),
    *(EntryKind.PROMPT.value, EntryKind.COMPLETION.value),
    *(EntryKind.RECHARGE.value, EntryKind.REVERSAL.value, EntryKind.LAPSE.value, EntryKind.WAIVER.value),
)
OF_TOKENS = (EntryKind.PROMPT.value, EntryKind.COMPLETION.value)

WRITTEN_LATE = timedelta(hours=1)
"""An entry's instant is read before it is written, but no transaction lasts as long as this."""
PAGE_ROWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which transfers are meant; what is None or empty takes all. `start` is included, `end` is not."""

    meter: str = ""
    subject: str = ""
    model: str = ""
    api_key_id: str = ""
    request_id: str = ""
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """At most `limit` transfers; `after` and `before` are ids, excluded, in the direction of the list."""

    limit: int
    newest_first: bool = True
    after: int | None = None
    before: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One entry as the organization sees it: what left its purse is negative.

    `meter` is "tokens" for prompt and completion, and `kind` says which. What paid a charge from several purses is a
    transfer for each of them; `quantity` is the whole charge's on each. A waiver moved none of the organization's
    money: its `amount` is zero and `waived` is what it was spared. A reversal tells the subject and the model of the
    entry that it undoes.
    """

    id: int
    time: datetime
    meter: str
    kind: str | None
    subject: str
    model: str
    api_key_id: str
    quantity: int | None
    unit: str | None
    unit_price: Decimal | None
    amount: Decimal
    waived: Decimal
    balance_after: Decimal | None
    purse: str | None
    price_id: int | None
    request_id: str
    reverses: int | None
    reason: str


NOTHING = Value(ZERO)
EVENT_OF_REVERSED = "reverses__meter_event__"
COLUMNS = (
    *(F("id"), F("created_at"), F("kind")),
    Coalesce("meter_event__subject", f"{EVENT_OF_REVERSED}subject", Value("")),
    Coalesce("meter_event__model", f"{EVENT_OF_REVERSED}model", Value("")),
    Coalesce("meter_event__api_key_id", f"{EVENT_OF_REVERSED}api_key_id", Value("")),
    *(F("quantity"), F("meter_event__unit"), F("unit_price")),
    Case(
        When(purse=None, then=NOTHING),
        When(credit=F("purse"), then=F("amount")),
        default=NOTHING - F("amount"),
    ),
    Case(When(kind=EntryKind.WAIVER, then=F("amount")), default=NOTHING),
    *(F("balance_after"), F("purse__kind"), F("price_id"), F("request_id"), F("reverses_id"), F("reason")),
)
"""In the order of `_transfer`'s arguments."""


def page(organization_id: str, wanted: Filter, window: Window) -> list[Transfer]:
    """At most `window.limit` transfers in the window's direction. A page costs the same at any depth."""
    rows = _within(_meant(organization_id, wanted), window)
    rows = rows.order_by(ENTRY_ORDER.desc() if window.newest_first else ENTRY_ORDER.asc())
    return [_transfer(*row) for row in rows.values_list(*COLUMNS)[: window.limit]]


def is_of(organization_id: str, entry_id: int) -> bool:
    """Whether this entry is the organization's, and so may be a cursor."""
    return LedgerEntry.objects.filter(organization_id=organization_id, id=entry_id).exists()


def count_up_to(organization_id: str, wanted: Filter, window: Window, *, limit: int) -> int:
    """How many transfers lie between the window's ends, counted no further than `limit`."""
    return _within(_meant(organization_id, wanted), window).values("id")[:limit].count()


def pages(organization_id: str, wanted: Filter, window: Window, *, limit: int) -> Iterator[list[Transfer]]:
    """`limit` transfers between the window's ends, PAGE_ROWS at a time, each page a query of its own."""
    while limit > 0:
        window = replace(window, limit=min(limit, PAGE_ROWS))
        found = page(organization_id, wanted, window)
        if not found:
            return
        yield found
        limit -= len(found)
        window = replace(window, after=found[-1].id)


def _within(rows: QuerySet[LedgerEntry], window: Window) -> QuerySet[LedgerEntry]:
    later, earlier = (LessThan, GreaterThan) if window.newest_first else (GreaterThan, LessThan)
    if window.after is not None:
        rows = rows.filter(later(ENTRY_ORDER, window.after))
    if window.before is not None:
        rows = rows.filter(earlier(ENTRY_ORDER, window.before))
    return rows


def _meant(organization_id: str, wanted: Filter) -> QuerySet[LedgerEntry]:
    rows = LedgerEntry.objects.filter(organization_id=organization_id)
    if wanted.meter:
        rows = rows.filter(kind__in=OF_TOKENS if wanted.meter == TOKENS else [wanted.meter])
    for column, value in (
        ("subject", wanted.subject),
        ("model", wanted.model),
        ("api_key_id", wanted.api_key_id),
        ("request_id", wanted.request_id),
    ):
        if value:
            rows = rows.filter(
                Q(**{f"meter_event__{column}": value}) | Q(**{f"{EVENT_OF_REVERSED}{column}": value})
            )
    return _between(rows, organization_id, start=wanted.start, end=wanted.end)


def _between(
    rows: QuerySet[LedgerEntry], organization_id: str, *, start: datetime | None, end: datetime | None
) -> QuerySet[LedgerEntry]:
    """Entries of a span of time. Ids grow with time but for entries that were written late, so the ids well before
    and well after the span bound it: nothing between now and a span long ago is read to find it."""
    if start is not None:
        rows = rows.filter(created_at__gte=start)
        before, _ = _around(organization_id, start - WRITTEN_LATE)
        if before is not None:
            rows = rows.filter(GreaterThan(ENTRY_ORDER, before))
    if end is not None:
        rows = rows.filter(created_at__lt=end)
        _, after = _around(organization_id, end + WRITTEN_LATE)
        if after is not None:
            rows = rows.filter(LessThan(ENTRY_ORDER, after))
    return rows


AROUND = """
SELECT max(b.id), min(a.id)
  FROM billing_ledgeraccount AS p
 CROSS JOIN LATERAL (SELECT billing_entries_before(p.id, %s) AS number) AS s
  LEFT JOIN billing_ledgerentry AS b ON b.purse_id = p.id AND b.purse_sequence = s.number
  LEFT JOIN billing_ledgerentry AS a ON a.purse_id = p.id AND a.purse_sequence = s.number + 1
 WHERE p.organization_id = %s
"""


def _around(organization_id: str, at: datetime) -> tuple[int | None, int | None]:
    """(the last entry before `at`, the first one from `at` on) of all purses, found by bisection."""
    with connection.cursor() as cursor:
        cursor.execute(AROUND, [at, organization_id])
        before, after = cursor.fetchone()
    return before, after


def _transfer(
    id_: int,
    time: datetime,
    entry_kind: str,
    subject: str,
    model: str,
    api_key_id: str,
    quantity: int | None,
    unit: str | None,
    unit_price: Decimal | None,
    amount: Decimal,
    waived: Decimal,
    balance_after: Decimal | None,
    purse: str | None,
    price_id: int | None,
    request_id: str,
    reverses: int | None,
    reason: str,
) -> Transfer:
    is_tokens = entry_kind in OF_TOKENS
    return Transfer(
        id=id_,
        time=time,
        meter=TOKENS if is_tokens else entry_kind,
        kind=entry_kind if is_tokens else None,
        subject=subject,
        model=model,
        api_key_id=api_key_id,
        quantity=quantity,
        unit=unit,
        unit_price=unit_price,
        amount=amount,
        waived=waived,
        balance_after=balance_after,
        purse=purse,
        price_id=price_id,
        request_id=request_id,
        reverses=reverses,
        reason=reason,
    )
