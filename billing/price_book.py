"""Effective-dated prices: which one holds at an instant, and how a new one is announced.

A price is never changed. The open one can be closed, at least `NOTICE` ahead (the database sees to it), when its
successor is published. That is why a price that was just read is known to hold for the next five minutes, and why
the memo of this process can never be wrong: it remembers a price only up to the instant until which nobody can
still have ended it.

A price may be for one tier alone, and then wins over the one for all. Which tier an account has, and had, is a row
with dates too (`price_tiers`), so that a month can be rated again. It may change at once, so it is not remembered:
what is remembered are prices that hold for every tier.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from django.db import IntegrityError, connection, transaction
from django.db.models import Q

from billing import clock, money, rating
from billing.errors import NoPrice, PriceRefused
from billing.models import Price, PricedItem
from billing.rating import DatedPrice, PricePiece, TierSpan

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
    """A price for every tier, and when it is known to hold: from `valid_from` on, before `known_until`."""

    price: UnitPrice
    valid_from: datetime
    known_until: datetime


_memo: dict[tuple[str, str, str], KnownPrice] = {}


def forget() -> None:
    """Empty this process's memo. Needed only where committed prices are wiped, which tests alone can do."""
    _memo.clear()


def price_at(*, organization_id: str, meter: str, model: str, currency: str, at: datetime) -> UnitPrice:
    """The price in force for this organization at `at`: that of its tier if there is one. Raises NoPrice."""
    known = remembered(meter=meter, model=model, currency=currency, at=at)
    if known is not None:
        return known.price
    book = _read(meter, model, currency, at)
    if book.to_remember is not None:
        _remember((meter, model, currency), book.to_remember)
        return book.to_remember.price
    tier = "" if not book.has_tiers else rating.tier_at(tiers_between(organization_id, at, at), at)
    price = rating.price_for(book.prices, tier=tier, at=at)
    if price is None:
        raise _no_price(meter, model, currency, at)
    return _unit_price(price)


def remembered(*, meter: str, model: str, currency: str, at: datetime) -> KnownPrice | None:
    """The price in force at `at`, for whatever tier, if this process knows it without asking; asks nobody.

    Where a tier has a price of its own nothing is remembered: which tier an account has may change at once.
    """
    known = _memo.get((meter, model, currency))
    return known if known is not None and known.valid_from <= at < known.known_until else None


def is_priced(*, meter: str, model: str, currency: str, at: datetime) -> bool:
    """Whether organizations of any tier find a price at `at`."""
    return rating.price_for(_read(meter, model, currency, at).prices, tier="", at=at) is not None


def unpriced(currency: str, *, reference: str, at: datetime) -> list[tuple[str, str]]:
    """(meter, model) of all that has a price for all tiers in the reference currency at `at`, but none in this one."""
    in_force = Price.objects.filter(
        Q(valid_to__isnull=True) | Q(valid_to__gt=at), valid_from__lte=at, priced_item__tier=""
    ).values_list("priced_item__meter", "priced_item__model")
    in_reference = in_force.filter(priced_item__currency=reference)
    return sorted(set(in_reference) - set(in_force.filter(priced_item__currency=currency)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Book:
    """The prices that may hold at an instant; what may be remembered of them, which is the same for each tier."""

    prices: list[DatedPrice]
    has_tiers: bool
    to_remember: KnownPrice | None


def _read(meter: str, model: str, currency: str, at: datetime) -> _Book:
    wait_for_announcements()
    with connection.cursor() as cursor:
        # age(xmin) > 0: the row is not of the transaction that we are in, which might still be rolled back.
        cursor.execute(
            "SELECT p.id, i.tier, p.per_million, p.valid_from, p.valid_to, age(p.xmin) > 0, clock_timestamp()"
            " FROM billing_price p JOIN billing_priceditem i ON i.id = p.priced_item_id"
            " WHERE i.meter = %s AND i.model = %s AND i.currency = %s"
            " AND (i.tier <> '' OR p.valid_from <= %s AND (p.valid_to IS NULL OR p.valid_to > %s))",
            [meter, model, currency, at, at],
        )
        rows = cursor.fetchall()
    prices = [_dated(*row[:5]) for row in rows]
    of_tiers = [price for price in prices if price.tier]
    has_tiers = any(rating.is_in_force(price, at) for price in of_tiers)
    to_remember = None
    for price, (*_, is_committed, read_at) in zip(prices, rows, strict=True):
        if is_committed and not price.tier and not has_tiers:
            to_remember = _known(price, of_tiers, read_at=read_at, at=at)
    return _Book(prices=prices, has_tiers=has_tiers, to_remember=to_remember)


def _known(
    price: DatedPrice, of_tiers: Sequence[DatedPrice], *, read_at: datetime, at: datetime
) -> KnownPrice | None:
    """What is known of a price for all tiers: it holds between the prices of single tiers, and no longer than
    until somebody may have announced one since."""
    begins = [
        price.valid_from,
        *(p.valid_to for p in of_tiers if p.valid_to is not None and p.valid_to <= at),
    ]
    ends = [read_at + NOTICE, *(p.valid_from for p in of_tiers if p.valid_from > at)]
    if price.valid_to is not None:
        ends.append(price.valid_to)
    if at >= min(ends):
        return None
    return KnownPrice(price=_unit_price(price), valid_from=max(begins), known_until=min(ends))


def _dated(
    price_id: int, tier: str, per_million: Decimal, valid_from: datetime, valid_to: datetime | None
) -> DatedPrice:
    return DatedPrice(
        price_id=price_id, tier=tier, per_million=per_million, valid_from=valid_from, valid_to=valid_to
    )


def _unit_price(price: DatedPrice) -> UnitPrice:
    return UnitPrice(
        price_id=price.price_id,
        per_million=price.per_million,
        unit_price=money.unit_price(price.per_million),
    )


def _no_price(meter: str, model: str, currency: str, at: datetime) -> NoPrice:
    return NoPrice(f"No {currency} price for {meter} of {model} is in force at {at.isoformat()}.")


def _remember(key: tuple[str, str, str], known: KnownPrice) -> None:
    if len(_memo) >= MEMO_ITEMS_MAX:
        _memo.clear()
    _memo[key] = known


TIERS = """
SELECT t.tier, t.valid_from, t.valid_to FROM billing_accountpricetier t
WHERE t.organization_id = %s AND t.valid_from <= %s AND (t.valid_to IS NULL OR t.valid_to > %s)
ORDER BY t.valid_from
"""
PRICES = """
SELECT p.id, i.tier, p.per_million, p.valid_from, p.valid_to
FROM billing_price p JOIN billing_priceditem i ON i.id = p.priced_item_id
WHERE i.meter = %s AND i.model = %s AND i.currency = %s
AND p.valid_from <= %s AND (p.valid_to IS NULL OR p.valid_to > %s)
AND (i.tier = '' OR i.tier IN (SELECT t.tier FROM billing_accountpricetier t WHERE t.organization_id = %s))
"""


def tiers_between(organization_id: str, first: datetime, last: datetime) -> list[TierSpan]:
    """Which tiers' prices the organization pays from `first` to `last`, both included, in order."""
    with connection.cursor() as cursor:
        cursor.execute(TIERS, [organization_id, last, first])
        return _tier_spans(cursor.fetchall())


def _tier_spans(rows: Iterable[tuple[str, datetime, datetime | None]]) -> list[TierSpan]:
    return [TierSpan(tier=tier, valid_from=start, valid_to=end) for tier, start, end in rows]


def prices_between(
    *, organization_id: str, meter: str, model: str, currency: str, first: datetime, last: datetime
) -> tuple[PricePiece, ...]:
    """The prices in force for it from `first` to `last`, both included, in order. Raises NoPrice if there is a gap."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"{TIERS};{PRICES}",
            [*(organization_id, last, first), *(meter, model, currency, last, first, organization_id)],
        )
        tiers = _tier_spans(cursor.fetchall())
        cursor.nextset()
        prices = [_dated(*row) for row in cursor.fetchall()]
    of = f"{currency} price for {meter} of {model}"
    return rating.price_pieces(prices, tiers, first=first, last=last, of=of)


def was_announced(*, meter: str, since: datetime) -> bool:
    """Whether a price of this meter was published after `since`."""
    return Price.objects.filter(priced_item__meter=meter, created_at__gt=since).exists()


def wait_for_announcements() -> None:
    """Until the end of the caller's transaction no price is announced; one that is being announced is waited for.

    For who reads prices and writes down what follows from them where `storage.reprice` could not yet find it.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", [ANNOUNCEMENT_LOCK])


def publish(
    *, meter: str, model: str, currency: str, per_million: Decimal, valid_from: datetime, tier: str = ""
) -> Price:
    """Announce a price, at least `NOTICE` ahead; the one in force then ends when the new one starts.

    Without `tier` it is the price for all tiers that have none of their own. What nobody pays a price for yet may
    start at once. After the commit of a storage price run `storage.reprice`, so that open segments reckon with it.
    Raises PriceRefused.
    """
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [ANNOUNCEMENT_LOCK])
        item, _ = PricedItem.objects.get_or_create(meter=meter, model=model, currency=currency, tier=tier)
        check(item, per_million=per_million, valid_from=valid_from)
        try:
            with transaction.atomic():
                item.prices.filter(valid_to__isnull=True).update(valid_to=valid_from)
                return item.prices.create(per_million=per_million, valid_from=valid_from)
        except IntegrityError as error:
            raise PriceRefused(f"The price is not taken: {error}") from error


def end(price: Price, *, at: datetime) -> None:
    """Let a tier's open price end, at least `NOTICE` ahead: then the price for all tiers holds for it again.

    After the commit for a storage price run `storage.reprice`. Raises PriceRefused.
    """
    if not price.priced_item.tier:
        raise PriceRefused("The price for all tiers is followed by another one; it does not just end.")
    try:
        with transaction.atomic():
            is_open = Price.objects.filter(pk=price.pk, valid_to__isnull=True, valid_from__lt=at)
            if not is_open.update(valid_to=at):
                raise PriceRefused("This price has an end already, or does not start before that.")
    except IntegrityError as error:
        raise PriceRefused(f"A price ends at least {int(NOTICE.total_seconds())} seconds ahead.") from error


def check(item: PricedItem, *, per_million: Decimal, valid_from: datetime) -> None:
    """Raises PriceRefused if this price could not be announced now."""
    if per_million < 0 or per_million % STEP:
        raise PriceRefused(f"A price per 1,000,000 units comes in steps of {STEP}, from 0 on.")
    if _replaces_a_price(item) and valid_from < clock.now() + NOTICE:
        raise PriceRefused(f"A price is announced at least {int(NOTICE.total_seconds())} seconds ahead.")
    if item.prices.filter(valid_from__gte=valid_from).exists():
        raise PriceRefused("A price that starts then, or later, is published already.")


def _replaces_a_price(item: PricedItem) -> bool:
    """Whether somebody pays another price now: the item's own, or, before a tier's first one, that for all tiers."""
    return Price.objects.filter(
        priced_item__meter=item.meter,
        priced_item__model=item.model,
        priced_item__currency=item.currency,
        priced_item__tier__in=["", item.tier],
    ).exists()
