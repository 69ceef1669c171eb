"""What use costs: quantity × price. Pure: no clock, no database; every function can be tried by hand.

Storage is charged by the started minute. Minute k of a segment is [started_at + 60k s, started_at + 60(k+1) s). It
is owed from the instant it starts, at the price in force at that instant, and every segment has at least one. So
what a segment costs follows from its two ends and the price book alone, however often it is looked at.

Inside, instants are integer microseconds and money is integer nanos: exact, and fast enough to search with.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from billing import money
from billing.errors import NoPrice

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)
MINUTE_US = 60_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PricePiece:
    """A unit price from `valid_from` until the next piece (or for good). For storage the unit is a token-minute."""

    price_id: int
    valid_from: datetime
    unit_price: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class DatedPrice:
    """A row of the price book, for one tier or ("") for all: in force from `valid_from` on, before `valid_to`."""

    price_id: int
    tier: str
    per_million: Decimal
    valid_from: datetime
    valid_to: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSpan:
    """An account pays the prices of `tier` from `valid_from` on, before `valid_to`; None: for good."""

    tier: str
    valid_from: datetime
    valid_to: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSpan:
    """What rating must know of a segment: minutes before `billed_minutes` are posted, the rest is still owed.

    `prices` are in order, without a gap, the first one in force when the first unbilled minute starts.
    """

    tokens: int
    started_at: datetime
    ends_at: datetime
    billed_minutes: int
    prices: tuple[PricePiece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLine:
    """Minutes [first_minute, end_minute) at one price. `quantity` is in token-minutes."""

    first_minute: int
    end_minute: int
    quantity: int
    price_id: int
    unit_price: Decimal
    amount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Fund:
    """Free money (posted − held) that can pay minutes that start before `expires_at`; None: any."""

    free: Decimal
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """`owed`: what purses that are still valid must pay for storage; `available`: what they have beyond it."""

    owed: Decimal
    available: Decimal


def amount(quantity: int, unit_price: Decimal) -> Decimal:
    return money.multiply(quantity, unit_price)


# --- Which price ----------------------------------------------------------------------------------------------


def is_in_force(dated: DatedPrice | TierSpan, at: datetime) -> bool:
    return dated.valid_from <= at and (dated.valid_to is None or at < dated.valid_to)


def tier_at(tiers: Iterable[TierSpan], at: datetime) -> str:
    """ "" where no tier's own prices are paid."""
    return next((span.tier for span in tiers if is_in_force(span, at)), "")


def price_for(prices: Iterable[DatedPrice], *, tier: str, at: datetime) -> DatedPrice | None:
    """The price of this tier if it has one in force at `at`, else the one for all tiers."""
    found = {price.tier: price for price in prices if is_in_force(price, at)}
    return found.get(tier) or found.get("")


def price_pieces(
    prices: Sequence[DatedPrice],
    tiers: Sequence[TierSpan],
    *,
    first: datetime,
    last: datetime,
    of: str,
) -> tuple[PricePiece, ...]:
    """The prices in force from `first` to `last`, both included, in order. Raises NoPrice, `of` what, at a gap.

    A piece ends where the tier changes, also when the price does not: so every line of storage is of one tier, and
    what it would cost by another price list can be told exactly.
    """
    pieces: list[PricePiece] = []
    before: tuple[str, int] | None = None
    for at in _edges([*prices, *tiers], first=first, last=last):
        tier = tier_at(tiers, at)
        price = price_for(prices, tier=tier, at=at)
        if price is None:
            raise NoPrice(f"No {of} is in force at {at.isoformat()}.")
        if (tier, price.price_id) != before:
            before = (tier, price.price_id)
            unit_price = money.unit_price(price.per_million)
            pieces.append(PricePiece(price_id=price.price_id, valid_from=at, unit_price=unit_price))
    return tuple(pieces)


def _edges(dated: Iterable[DatedPrice | TierSpan], *, first: datetime, last: datetime) -> list[datetime]:
    """`first`, and each later instant up to `last` at which one of these begins or ends, in order."""
    instants = {instant for one in dated for instant in (one.valid_from, one.valid_to) if instant is not None}
    return sorted({first} | {instant for instant in instants if first < instant <= last})


# --- Minutes --------------------------------------------------------------------------------------------------


def minutes_lived(*, started_at: datetime, ended_at: datetime) -> int:
    """Minutes started in [started_at, ended_at), at least 1: what a segment with these ends costs in the end."""
    return max(1, minutes_before(started_at=started_at, at=ended_at))


def minutes_before(*, started_at: datetime, at: datetime) -> int:
    """Minutes that started strictly before `at`; 0 when `at` is not after the start."""
    return max(0, -((started_at - at) // MINUTE))


def minutes_started(*, started_at: datetime, at: datetime) -> int:
    """Minutes that started at or before `at`: minute k is owed from its first instant on."""
    return max(0, (at - started_at) // MINUTE + 1)


def minute_start(*, started_at: datetime, minute: int) -> datetime:
    return started_at + minute * MINUTE


# --- Storage lines --------------------------------------------------------------------------------------------


def storage_lines(span: StoredSpan, *, first_minute: int, end_minute: int) -> list[StorageLine]:
    """Minutes [first_minute, end_minute), cut where the price changes between two minutes' starts."""
    lines = []
    for piece, lo, hi in _pieces(span, first_minute, end_minute):
        quantity = (hi - lo) * span.tokens
        lines.append(
            StorageLine(
                first_minute=lo,
                end_minute=hi,
                quantity=quantity,
                price_id=piece.price_id,
                unit_price=piece.unit_price,
                amount=amount(quantity, piece.unit_price),
            )
        )
    return lines


def _pieces(span: StoredSpan, first_minute: int, end_minute: int) -> list[tuple[PricePiece, int, int]]:
    """The price pieces that hold in these minutes, each with the minutes at whose start it is in force."""
    if first_minute >= end_minute:
        return []
    starts = [minutes_before(started_at=span.started_at, at=piece.valid_from) for piece in span.prices]
    if not starts or starts[0] > first_minute:
        raise NoPrice(
            f"No storage price is in force at minute {first_minute} from {span.started_at.isoformat()}."
        )
    ends = [*starts[1:], end_minute]
    clipped = [
        (piece, max(lo, first_minute), min(hi, end_minute))
        for piece, lo, hi in zip(span.prices, starts, ends, strict=True)
    ]
    return [(piece, lo, hi) for piece, lo, hi in clipped if lo < hi]


def first_beyond(span: StoredSpan, *, first_minute: int, end_minute: int, allowance: Decimal) -> int | None:
    """The first of minutes [first_minute, end_minute) that an allowance, paying them in order, cannot pay any more;
    None: it pays them all."""
    left = money.to_nanos(allowance)
    for piece, lo, hi in _pieces(span, first_minute, end_minute):
        rate = span.tokens * money.to_nanos(piece.unit_price)
        if rate and left < rate * (hi - lo):
            return lo + max(0, left) // rate
        left -= rate * (hi - lo)
    return None


# --- What is owed, and when money runs out --------------------------------------------------------------------


class _Track:
    """One span in integers: what its first n unbilled minutes cost, for any n, in a step or two."""

    __slots__ = ("billed", "rates", "start", "total")

    def __init__(self, span: StoredSpan) -> None:
        self.start = _microseconds(span.started_at)
        self.billed = span.billed_minutes
        self.total = minutes_lived(started_at=span.started_at, ended_at=span.ends_at)
        self.rates = [
            (lo, hi, span.tokens * money.to_nanos(piece.unit_price))
            for piece, lo, hi in _pieces(span, self.billed, self.total)
        ]

    def cost_of_first(self, minutes: int) -> int:
        """Nanos for the unbilled ones among the first `minutes`."""
        rates = self.rates
        if len(rates) == 1:
            lo, hi, rate = rates[0]
            end = minutes if minutes < hi else hi
            return (end - lo) * rate if end > lo else 0
        return sum((min(minutes, hi) - lo) * rate for lo, hi, rate in rates if lo < minutes)

    def cost_before(self, at: int) -> int:
        """Nanos for the unbilled minutes that start strictly before `at`."""
        return self.cost_of_first(-((self.start - at) // MINUTE_US))

    def cost_up_to(self, at: int) -> int:
        """Nanos for the unbilled minutes that start at or before `at`."""
        return self.cost_of_first((at - self.start) // MINUTE_US + 1)


def commitment(spans: Iterable[StoredSpan]) -> Decimal:
    """What all unbilled minutes cost up to the planned ends."""
    return money.from_nanos(sum(track.cost_of_first(track.total) for track in map(_Track, spans)))


def owed(spans: Iterable[StoredSpan], *, at: datetime) -> Decimal:
    """What the unbilled minutes that have started by `at` cost."""
    instant = _microseconds(at)
    return money.from_nanos(sum(track.cost_up_to(instant) for track in map(_Track, spans)))


def per_minute(spans: Iterable[StoredSpan], *, at: datetime) -> Decimal:
    """What the spans that are stored at `at` cost a minute, at the prices in force then."""
    return money.total(
        amount(span.tokens, _in_force(span, at=at).unit_price)
        for span in spans
        if span.started_at <= at < span.ends_at
    )


def _in_force(span: StoredSpan, *, at: datetime) -> PricePiece:
    """The first piece where the minute of `at` is posted already, and its price forgotten."""
    return next((piece for piece in reversed(span.prices) if piece.valid_from <= at), span.prices[0])


def position(spans: Sequence[StoredSpan], funds: Sequence[Fund], *, at: datetime) -> Position:
    """What is owed and available at `at`, when each minute is paid by what was valid as it started.

    A fund that has expired since still pays for the minutes before; what it had beyond them is lost.
    """
    tracks = [_Track(span) for span in spans]
    instant = _microseconds(at)
    covered = 0
    for expires_at, free in _expiries(funds):
        if expires_at <= instant:
            covered += min(free, sum(track.cost_before(expires_at) for track in tracks) - covered)
    owed_nanos = sum(track.cost_up_to(instant) for track in tracks) - covered
    valid = sum(
        money.to_nanos(fund.free) for fund in funds if fund.expires_at is None or fund.expires_at > at
    )
    return Position(owed=money.from_nanos(owed_nanos), available=money.from_nanos(valid - owed_nanos))


def exhausts_at(spans: Sequence[StoredSpan], funds: Sequence[Fund]) -> datetime | None:
    """The start of the first minute that the funds cannot pay; None when they pay all minutes to the planned ends.

    Each minute is paid by funds that are valid as it starts, the one that expires first being used first. So the
    capacity is a staircase that falls, at each expiry, by what that fund has not been used for until then.
    """
    tracks = [track for track in map(_Track, spans) if track.rates]
    if not tracks:
        return None
    capacity = sum(money.to_nanos(fund.free) for fund in funds)
    covered = 0
    for expires_at, free in _expiries(funds):
        cost = sum(track.cost_before(expires_at) for track in tracks)
        if cost > capacity:
            return _first_beyond(tracks, capacity)
        used = min(free, cost - covered)
        covered += used
        capacity -= free - used
    if sum(track.cost_of_first(track.total) for track in tracks) > capacity:
        return _first_beyond(tracks, capacity)
    return None


def _expiries(funds: Iterable[Fund]) -> list[tuple[int, int]]:
    """(instant, nanos) of each fund that expires, in order."""
    return sorted(
        (_microseconds(f.expires_at), money.to_nanos(f.free)) for f in funds if f.expires_at is not None
    )


def _first_beyond(tracks: list[_Track], capacity: int) -> datetime:
    """The first minute start at which the cost so far exceeds `capacity`, which it does in the end.

    A search over whole minutes finds the 60 s in which it happens; in those each track starts one minute at most.
    """
    base = min(track.start + track.billed * MINUTE_US for track in tracks)
    last = max(track.start + track.total * MINUTE_US for track in tracks)

    def exceeds(minutes: int) -> bool:
        return sum(track.cost_before(base + minutes * MINUTE_US) for track in tracks) > capacity

    window_end = base + MINUTE_US * bisect_left(range((last - base) // MINUTE_US + 1), True, key=exceeds)
    window_start = window_end - MINUTE_US
    spent = sum(track.cost_before(window_start) for track in tracks)
    starts = []
    for track in tracks:
        minute = -((track.start - window_start) // MINUTE_US)
        cost = track.cost_of_first(minute + 1) - track.cost_of_first(minute)
        starts.append((track.start + minute * MINUTE_US, cost))
    for start, cost in sorted(starts):
        spent += cost
        if spent > capacity:
            return EPOCH + start * MICROSECOND
    raise AssertionError("the window was chosen because the cost exceeds the capacity in it")


def _microseconds(at: datetime) -> int:
    return (at - EPOCH) // MICROSECOND
