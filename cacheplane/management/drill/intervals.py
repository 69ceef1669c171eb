"""Storage intervals at random, extended, cut and repriced: the rating's closed formula against minute by minute.

The other reckoning stands in `reckon` and shares nothing with billing but the question: it walks through the minutes
one at a time, in whole microseconds and nanos.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from billing import rating
from billing.rating import Fund, PricePiece, StoredSpan
from cacheplane.management.drill.figures import Advance, Figure, in_silence

PART = "intervals"
INTERVALS = 60_000
INTERVALS_BETWEEN_REPORTS = 500
MINUTE_US = 60_000_000
EPOCH = datetime(2024, 7, 1, tzinfo=UTC)
LONGEST_MINUTES = (1, 5, 60, 60, 400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """One segment's story in microseconds since EPOCH. `moves` are (when, to which end), in order; `cut` is when it
    was ended, if it was. `prices` are (from when, nanos per token-minute), the first one from before its start."""

    tokens: int
    start: int
    first_end: int
    moves: tuple[tuple[int, int], ...]
    cut: int | None
    prices: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reckoned:
    """Minutes charged and their cost in nanos; `until`: the cost of those that start up to each asked instant;
    `beyond`: the start of the first minute that the asked money does not cover."""

    minutes: int
    cost: int
    until: tuple[int, ...]
    beyond: int | None


def run(*, seed: int, intervals: int = INTERVALS, advance: Advance = in_silence) -> list[Figure]:
    started, rng = time.monotonic(), random.Random(seed)
    off, minutes, first = 0, 0, ""
    for number in range(intervals):
        interval = drawn(rng)
        asked = tuple(rng.randrange(interval.start - 5 * MINUTE_US, _last(interval) + 1) for _ in range(2))
        money = rng.choice([0, 1, interval.tokens * rng.randrange(1, 500_000)])
        expected = reckon(interval, asked=asked, money=money)
        rated = as_rated(interval, rng, asked=asked, money=money)
        minutes += expected.minutes
        if rated != expected:
            off += 1
            first = first or f"; the first: {interval}: {expected} by the minute, {rated} as rated"
        if number % INTERVALS_BETWEEN_REPORTS == INTERVALS_BETWEEN_REPORTS - 1:
            advance(INTERVALS_BETWEEN_REPORTS)
    advance(intervals % INTERVALS_BETWEEN_REPORTS)
    return [
        Figure(
            part=PART,
            name=f"storage intervals against {minutes} minutes one by one",
            goal="0 off",
            reached=f"{off} off{first}",
            is_reached=off == 0,
            count=intervals,
            what="intervals",
            seed=seed,
            seconds=time.monotonic() - started,
        )
    ]


# --- Drawing ---------------------------------------------------------------------------------------------------


def drawn(rng: random.Random) -> Interval:
    longest = rng.choice(LONGEST_MINUTES) * MINUTE_US
    start = rng.randrange(0, 86_400_000_000)
    end = start + rng.randrange(1, longest + 1)
    now, moves, planned = start, [], end
    for _ in range(rng.choice([0, 0, 1, 2, 4])):
        now = _later(rng, now, planned)
        if now >= planned:
            break
        planned = max(now, start + 1, now + rng.randrange(-longest // 4, longest + 1))
        moves.append((now, planned))
    cut = _later(rng, now, planned + MINUTE_US) if rng.random() < 0.4 else None
    last = max(planned, end, *(to for _, to in moves), start + 1)
    changes = sorted({_change(rng, start, last) for _ in range(rng.choice([0, 0, 1, 3]))})
    instants = [start - rng.randrange(MINUTE_US), *(at for at in changes if at > start)]
    prices = tuple((at, rng.choice([0, 1, 2_500, 5_000, 10_000, rng.randrange(50_000)])) for at in instants)
    return Interval(
        tokens=rng.choice([1, 1024, rng.randrange(1, 131_072)]),
        start=start,
        first_end=end,
        moves=tuple(moves),
        cut=cut,
        prices=prices,
    )


def _later(rng: random.Random, now: int, end: int) -> int:
    """An instant from now on; often a whole number of minutes after it, or one microsecond beside that."""
    if end <= now:
        return now
    at = now + rng.randrange(end - now + 1)
    if rng.random() < 0.4:
        at = now + (at - now) // MINUTE_US * MINUTE_US + rng.choice([-1, 0, 1])
    return max(now, at)


def _change(rng: random.Random, start: int, last: int) -> int:
    """A price changes anywhere, or just where a minute starts, or beside that."""
    at = start + rng.randrange(last - start + 1)
    if rng.random() < 0.5:
        at = start + (at - start) // MINUTE_US * MINUTE_US + rng.choice([-1, 0, 1])
    return at


def _last(interval: Interval) -> int:
    return max(interval.first_end, *(to for _, to in interval.moves), interval.start) + MINUTE_US


# --- Minute by minute ------------------------------------------------------------------------------------------


def reckon(interval: Interval, *, asked: tuple[int, ...], money: int) -> Reckoned:
    """Walks through the story: a minute is charged when it starts, if the segment is alive then; the first always."""
    minutes = cost = 0
    until = [0] * len(asked)
    beyond = None
    for at, price in _charged_minutes(interval):
        minutes += 1
        cost += interval.tokens * price
        if beyond is None and cost > money:
            beyond = at
        for i, instant in enumerate(asked):
            if at <= instant:
                until[i] += interval.tokens * price
    return Reckoned(minutes=minutes, cost=cost, until=tuple(until), beyond=beyond)


def _charged_minutes(interval: Interval) -> Iterator[tuple[int, int]]:
    moves, prices = list(interval.moves), list(interval.prices)
    end, price, at = interval.first_end, 0, interval.start
    while True:
        while moves and moves[0][0] <= at:
            end = moves.pop(0)[1]
        while prices and prices[0][0] <= at:
            price = prices.pop(0)[1]
        is_alive = at < end and (interval.cut is None or at < interval.cut)
        if not is_alive and at > interval.start:
            return
        yield at, price
        at += MINUTE_US


# --- As rated --------------------------------------------------------------------------------------------------


def as_rated(interval: Interval, rng: random.Random, *, asked: tuple[int, ...], money: int) -> Reckoned:
    """By the rating's own functions, billed in pieces up to random minutes as settlement ticks do."""
    pieces = tuple(
        PricePiece(price_id=number, valid_from=_at(at), unit_price=Decimal(nanos).scaleb(-9))
        for number, (at, nanos) in enumerate(interval.prices)
    )
    span = StoredSpan(
        tokens=interval.tokens,
        started_at=_at(interval.start),
        ends_at=_at(interval.first_end),
        billed_minutes=0,
        prices=pieces,
    )
    for _, to in interval.moves:
        span = replace(span, ends_at=_at(to))
    if interval.cut is not None:
        ended = max(min(_at(interval.cut), span.ends_at), span.started_at + rating.MICROSECOND)
        span = replace(span, ends_at=ended)
    lived = rating.minutes_lived(started_at=span.started_at, ended_at=span.ends_at)
    tick = rng.randrange(lived + 1)
    lines = rating.storage_lines(span, first_minute=0, end_minute=tick)
    lines += rating.storage_lines(span, first_minute=tick, end_minute=lived)
    # What is committed beside the lines of the first tick must make the same sum.
    rest = rating.commitment([replace(span, billed_minutes=tick)])
    posted = sum((line.amount for line in lines if line.end_minute <= tick), Decimal(0))
    total = sum((line.amount for line in lines), Decimal(0))
    exhausts = rating.exhausts_at([span], [Fund(free=Decimal(money).scaleb(-9), expires_at=None)])
    return Reckoned(
        minutes=sum(line.end_minute - line.first_minute for line in lines),
        cost=_nanos(total) if posted + rest == total else -1,
        until=tuple(_nanos(rating.owed([span], at=_at(instant))) for instant in asked),
        beyond=None if exhausts is None else (exhausts - EPOCH) // rating.MICROSECOND,
    )


def _at(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)


def _nanos(amount: Decimal) -> int:
    return int(amount.scaleb(9))
