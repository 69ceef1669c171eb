"""Effective-dated prices: which one holds at an instant, and how a new one is announced.

A price is never changed. The open one can be closed, at least `NOTICE` ahead (the database sees to it), when its
successor is published. That is why a price that was just read is known to hold for the next five minutes, and why
the memo of this process can never be wrong: it remembers a price only up to the instant until which nobody can
still have ended it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from django.db import IntegrityError, connection, transaction

from billing import clock, money
from billing.errors import NoPrice, PriceRefused
from billing.models import Price, PricedItem
from billing.rating import PricePiece

STEP = Decimal("0.001")
NOTICE = timedelta(seconds=300)
MEMO_ITEMS_MAX = 1000
ANNOUNCEMENT_LOCK = 7_305_221_001
"""The advisory lock that the price table's trigger takes too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrice:
    """A price as it is quoted (per 1,000,000 units) and as it is charged (per unit, exact at nine places)."""

    price_id: int
    per_million: Decimal
    unit_price: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPrice:
    """A price, and the instants between which it is known to hold: from `valid_from` on, before `known_until`."""

    price: UnitPrice
    valid_from: datetime
    known_until: datetime


_memo: dict[tuple[str, str, str], KnownPrice] = {}


def forget() -> None:
    """Empty this process's memo. Needed only where committed prices are wiped, which tests alone can do."""
    _memo.clear()


def price_at(*, meter: str, model: str, currency: str, at: datetime) -> UnitPrice:
    """The price in force at `at`. Raises NoPrice."""
    known = remembered(meter=meter, model=model, currency=currency, at=at)
    return known.price if known is not None else _read(meter, model, currency, at)


def remembered(*, meter: str, model: str, currency: str, at: datetime) -> KnownPrice | None:
    """The price in force at `at` if this process knows it without asking; asks nobody."""
    known = _memo.get((meter, model, currency))
    return known if known is not None and known.valid_from <= at < known.known_until else None


def _read(meter: str, model: str, currency: str, at: datetime) -> UnitPrice:
    wait_for_announcements()
    with connection.cursor() as cursor:
        # age(xmin) > 0: the row is not of the transaction that we are in, which might still be rolled back.
        cursor.execute(
            "SELECT p.id, p.per_million, p.valid_from, p.valid_to, clock_timestamp(), age(p.xmin) > 0"
            " FROM billing_price p JOIN billing_priceditem i ON i.id = p.priced_item_id"
            " WHERE i.meter = %s AND i.model = %s AND i.currency = %s"
            " AND p.valid_from <= %s AND (p.valid_to IS NULL OR p.valid_to > %s)",
            [meter, model, currency, at, at],
        )
        row = cursor.fetchone()
    if row is None:
        raise NoPrice(f"No {currency} price for {meter} of {model} is in force at {at.isoformat()}.")
    price_id, per_million, valid_from, valid_to, read_at, is_committed = row
    price = UnitPrice(price_id=price_id, per_million=per_million, unit_price=money.unit_price(per_million))
    until = valid_to or read_at + NOTICE
    # A sandbox asks beyond what is known: what holds there may still be changed, and its neighbours need the memo.
    if is_committed and at < until:
        known = KnownPrice(price=price, valid_from=valid_from, known_until=until)
        _remember((meter, model, currency), known)
    return price


def _remember(key: tuple[str, str, str], known: KnownPrice) -> None:
    if len(_memo) >= MEMO_ITEMS_MAX:
        _memo.clear()
    _memo[key] = known


def prices_between(
    *, meter: str, model: str, currency: str, first: datetime, last: datetime
) -> tuple[PricePiece, ...]:
    """The prices in force from `first` to `last`, both included, in order. Raises NoPrice if there is a gap."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT p.id, p.valid_from, p.valid_to, p.per_million"
            " FROM billing_price p JOIN billing_priceditem i ON i.id = p.priced_item_id"
            " WHERE i.meter = %s AND i.model = %s AND i.currency = %s"
            " AND p.valid_from <= %s AND (p.valid_to IS NULL OR p.valid_to > %s) ORDER BY p.valid_from",
            [meter, model, currency, last, first],
        )
        rows = cursor.fetchall()
    covered_until: datetime | None = first
    for _, valid_from, valid_to, _ in rows:
        if covered_until is None or valid_from > covered_until:
            raise NoPrice(f"No {currency} price for {meter} of {model} is in force at {covered_until}.")
        covered_until = valid_to
    if covered_until is not None and covered_until <= last:
        raise NoPrice(
            f"No {currency} price for {meter} of {model} is in force at {covered_until.isoformat()}."
        )
    return tuple(
        PricePiece(price_id=price_id, valid_from=valid_from, unit_price=money.unit_price(per_million))
        for price_id, valid_from, _, per_million in rows
    )


def wait_for_announcements() -> None:
    """Until the end of the caller's transaction no price is announced; one that is being announced is waited for.

    For who reads prices and writes down what follows from them where `storage.reprice` could not yet find it.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", [ANNOUNCEMENT_LOCK])


def publish(*, meter: str, model: str, currency: str, per_million: Decimal, valid_from: datetime) -> Price:
    """Announce a price, at least `NOTICE` ahead; the one in force then ends when the new one starts.

    An item without any price may start at once. After the commit of a storage price run `storage.reprice`, so that
    open segments reckon with it. Raises PriceRefused.
    """
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [ANNOUNCEMENT_LOCK])
        item, _ = PricedItem.objects.get_or_create(meter=meter, model=model, currency=currency)
        check(item, per_million=per_million, valid_from=valid_from)
        try:
            with transaction.atomic():
                item.prices.filter(valid_to__isnull=True).update(valid_to=valid_from)
                return item.prices.create(per_million=per_million, valid_from=valid_from)
        except IntegrityError as error:
            raise PriceRefused(f"The price is not taken: {error}") from error


def check(item: PricedItem, *, per_million: Decimal, valid_from: datetime) -> None:
    """Raises PriceRefused if this price could not be announced now."""
    if per_million < 0 or per_million % STEP:
        raise PriceRefused(f"A price per 1,000,000 units comes in steps of {STEP}, from 0 on.")
    if item.prices.exists() and valid_from < clock.now() + NOTICE:
        raise PriceRefused(f"A price is announced at least {int(NOTICE.total_seconds())} seconds ahead.")
    if item.prices.filter(valid_from__gte=valid_from).exists():
        raise PriceRefused("A price that starts then, or later, is published already.")
