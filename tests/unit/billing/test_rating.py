"""Rating against the vectors of the contract, against brute force, and at the edges of a minute."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from billing import money, rating
from billing.errors import NoPrice
from billing.rating import DatedPrice, Fund, PricePiece, StoredSpan, TierSpan

START = datetime(2024, 7, 15, 9, 30, tzinfo=UTC)
LONG_AGO = START - timedelta(days=10_000)
MICROSECOND = timedelta(microseconds=1)
SECOND = timedelta(seconds=1)


def piece(price_id: int, per_million: str, valid_from: datetime = LONG_AGO) -> PricePiece:
    return PricePiece(
        price_id=price_id, valid_from=valid_from, unit_price=money.unit_price(Decimal(per_million))
    )


def span(
    seconds: float, *, tokens: int = 1_000_000, billed: int = 0, prices=None, started_at=START
) -> StoredSpan:
    return StoredSpan(
        tokens=tokens,
        started_at=started_at,
        ends_at=started_at + timedelta(seconds=seconds),
        billed_minutes=billed,
        prices=tuple(prices or [piece(1, "10")]),
    )


def whole_cost(stored: StoredSpan) -> Decimal:
    minutes = rating.minutes_lived(started_at=stored.started_at, ended_at=stored.ends_at)
    lines = rating.storage_lines(stored, first_minute=0, end_minute=minutes)
    return money.total(line.amount for line in lines)


# --- The contract's vectors -----------------------------------------------------------------------------------


def vector(*, tokens: int, hours: int, calls: int) -> Decimal:
    creation = rating.amount(tokens, money.unit_price(Decimal(24)))
    stored = whole_cost(span(hours * 3600, tokens=tokens))
    return money.total([creation, stored, rating.amount(calls, money.unit_price(Decimal(20_000)))])


def uncached(*, tokens: int, calls: int) -> Decimal:
    return rating.amount(tokens * calls, money.unit_price(Decimal(60)))


def saved_percent(cost: Decimal, instead_of: Decimal) -> Decimal:
    return ((instead_of - cost) / instead_of * 100).quantize(Decimal("0.01"))


def test_35000_tokens_for_an_hour_and_100_calls():
    assert vector(tokens=35_000, hours=1, calls=100) == Decimal("23.84")
    assert uncached(tokens=35_000, calls=100) == Decimal("210.00")
    assert saved_percent(Decimal("23.84"), Decimal("210.00")) == Decimal("88.65")


def test_its_break_even_is_eleven_calls_an_hour():
    kept = vector(tokens=35_000, hours=1, calls=0)
    saved_per_call = uncached(tokens=35_000, calls=1) - Decimal("0.02")
    assert kept / saved_per_call == Decimal("10.5")


def test_35000_tokens_for_15_hours_and_639_calls():
    assert vector(tokens=35_000, hours=15, calls=0) == Decimal("315.84")
    assert vector(tokens=35_000, hours=15, calls=639) == Decimal("315.84") + Decimal("12.78")
    assert uncached(tokens=35_000, calls=639) == Decimal("1341.90")
    assert saved_percent(Decimal("328.62"), Decimal("1341.90")) == Decimal("75.51")


def test_10000_tokens_for_60_and_60_minutes_at_5():
    assert 2 * whole_cost(span(3600, tokens=10_000, prices=[piece(1, "5")])) == Decimal("6.00")


# --- The edges of a minute ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lived", "minutes"),
    [
        (timedelta(0), 1),
        (MICROSECOND, 1),
        (timedelta(seconds=60) - MICROSECOND, 1),
        (timedelta(seconds=60), 1),
        (timedelta(seconds=60) + MICROSECOND, 2),
        (timedelta(seconds=119, microseconds=999_999), 2),
        (timedelta(hours=1), 60),
        (timedelta(hours=1) + MICROSECOND, 61),
    ],
)
def test_a_started_minute_counts_whole_and_the_first_always(lived, minutes):
    assert rating.minutes_lived(started_at=START, ended_at=START + lived) == minutes


def test_a_minute_is_owed_from_its_first_instant():
    stored = [span(3600)]
    assert rating.owed(stored, at=START - MICROSECOND) == 0
    assert rating.owed(stored, at=START) == 10
    assert rating.owed(stored, at=START + 60 * SECOND - MICROSECOND) == 10
    assert rating.owed(stored, at=START + 60 * SECOND) == 20
    assert rating.owed(stored, at=START + timedelta(days=3)) == 600


def test_what_is_billed_is_not_owed_again():
    assert rating.owed([span(3600, billed=2)], at=START + 61 * SECOND) == 0
    assert rating.owed([span(3600, billed=2)], at=START + 120 * SECOND) == 10
    assert rating.commitment([span(3600, billed=58), span(3600, billed=60)]) == 20


def test_a_price_holds_for_the_minutes_that_start_while_it_is_in_force():
    change = START + 90 * SECOND
    stored = span(240, prices=[piece(1, "10"), piece(2, "5", change)])
    lines = rating.storage_lines(stored, first_minute=0, end_minute=4)
    assert [(x.first_minute, x.end_minute, x.price_id, x.amount) for x in lines] == [
        (0, 2, 1, 20),
        (2, 4, 2, 10),
    ]


def test_a_price_that_starts_with_a_minute_holds_for_it():
    stored = span(180, prices=[piece(1, "10"), piece(2, "5", START + 60 * SECOND)])
    lines = rating.storage_lines(stored, first_minute=0, end_minute=3)
    assert [(x.first_minute, x.end_minute, x.price_id) for x in lines] == [(0, 1, 1), (1, 3, 2)]


def test_a_price_shorter_than_a_minute_may_hold_for_none():
    prices = [piece(1, "10"), piece(2, "99", START + 61 * SECOND), piece(3, "5", START + 119 * SECOND)]
    lines = rating.storage_lines(span(180, prices=prices), first_minute=0, end_minute=3)
    assert [(x.first_minute, x.end_minute, x.price_id) for x in lines] == [(0, 2, 1), (2, 3, 3)]


def test_a_minute_without_a_price_is_an_error():
    late = span(180, prices=[piece(1, "10", START + 60 * SECOND)])
    with pytest.raises(NoPrice):
        rating.storage_lines(late, first_minute=0, end_minute=3)
    assert len(rating.storage_lines(late, first_minute=1, end_minute=3)) == 1


# --- Brute force ----------------------------------------------------------------------------------------------


def random_prices(rng: random.Random, *, horizon_seconds: int) -> list[PricePiece]:
    starts = {LONG_AGO} | {START + rng.randrange(horizon_seconds) * SECOND for _ in range(rng.randrange(4))}
    return [piece(i, str(Decimal(rng.randrange(30_000)) / 1000), at) for i, at in enumerate(sorted(starts))]


def price_in_force(prices: Sequence[PricePiece], at: datetime) -> Decimal:
    return next(p.unit_price for p in reversed(prices) if p.valid_from <= at)


def brute_cost(stored: StoredSpan) -> Decimal:
    """Second by whole second, the way a bookkeeper would: each minute at the price of its first instant."""
    prices = [((p.valid_from - stored.started_at) // SECOND, p.unit_price) for p in reversed(stored.prices)]
    lived = (stored.ends_at - stored.started_at) // SECOND
    per_token = sum(next(price for since, price in prices if since <= at) for at in range(0, lived, 60))
    return stored.tokens * per_token


def test_random_intervals_cost_what_brute_force_says_however_often_they_are_settled():
    """Extended, cut short, repriced, and settled at random instants: 20,000 lives, none off, no gap, no overlap."""
    rng = random.Random(20240701)
    off = 0
    for _ in range(20_000):
        end = rng.randrange(1, 4000)
        for _ in range(rng.randrange(4)):
            end += rng.randrange(3000)
        if rng.random() < 0.4:
            end = rng.randrange(1, end + 1)
        stored = span(end, tokens=rng.randrange(1, 200_000), prices=random_prices(rng, horizon_seconds=9000))
        charged, billed = Decimal(0), 0
        ticks = sorted(rng.randrange(end + 1) for _ in range(rng.randrange(4)))
        for tick in ticks:
            until = rating.minutes_before(started_at=START, at=START + tick * SECOND)
            charged, billed = charge(stored, charged, billed, until)
        charged, billed = charge(
            stored, charged, billed, rating.minutes_lived(started_at=START, ended_at=stored.ends_at)
        )
        off += charged != brute_cost(stored) or charged != rating.commitment([stored])
    assert off == 0


def charge(stored: StoredSpan, charged: Decimal, billed: int, until: int) -> tuple[Decimal, int]:
    for line in rating.storage_lines(stored, first_minute=billed, end_minute=until):
        assert line.first_minute == billed
        assert line.amount == line.quantity * line.unit_price
        charged, billed = charged + line.amount, line.end_minute
    return charged, billed


def minute_starts(spans: list[StoredSpan]) -> list[tuple[datetime, Decimal]]:
    """(instant, cost) of every unbilled minute."""
    found = []
    for stored in spans:
        total = rating.minutes_lived(started_at=stored.started_at, ended_at=stored.ends_at)
        for minute in range(stored.billed_minutes, total):
            at = stored.started_at + minute * 60 * SECOND
            found.append((at, stored.tokens * price_in_force(stored.prices, at)))
    return sorted(found)


def brute_exhaustion(spans: list[StoredSpan], funds: list[Fund]) -> datetime | None:
    """Pay instant by instant from valid funds, the first to expire first; the first instant that cannot be paid."""
    left = sorted(((f.expires_at or datetime.max.replace(tzinfo=UTC)), f.free) for f in funds)
    due: dict[datetime, Decimal] = {}
    for at, cost in minute_starts(spans):
        due[at] = due.get(at, Decimal(0)) + cost
    for at, cost in sorted(due.items()):
        for i, (expires_at, free) in enumerate(left):
            if expires_at > at:
                paid = min(free, cost)
                cost -= paid
                left[i] = (expires_at, free - paid)
        if cost > 0:
            return at
    return None


def random_case(rng: random.Random) -> tuple[list[StoredSpan], list[Fund]]:
    prices = random_prices(rng, horizon_seconds=6000)
    spans = []
    for _ in range(rng.randrange(1, 6)):
        started_at = START + rng.choice([SECOND, 30 * SECOND, 1000 * MICROSECOND]) * rng.randrange(100)
        seconds = rng.randrange(1, 5000)
        billed = rng.randrange(seconds // 60 + 1) if rng.random() < 0.3 else 0
        spans.append(
            span(
                seconds, tokens=rng.randrange(1, 50_000), billed=billed, prices=prices, started_at=started_at
            )
        )
    money_needed = rating.commitment(spans)
    parts = rng.randrange(1, 5)
    funds = [
        Fund(
            free=money.exact(
                str((money_needed * rng.randrange(40, 300) / 100 / parts).quantize(Decimal("0.000001")))
            ),
            expires_at=START + rng.randrange(-100, 6000) * SECOND if rng.random() < 0.6 else None,
        )
        for _ in range(parts)
    ]
    return spans, funds


def test_money_runs_out_at_the_minute_that_brute_force_says():
    rng = random.Random(11)
    ends = {True: 0, False: 0}
    for _ in range(2000):
        spans, funds = random_case(rng)
        expected = brute_exhaustion(spans, funds)
        assert rating.exhausts_at(spans, funds) == expected
        ends[expected is None] += 1
    assert min(ends.values()) > 200, "both outcomes were tried"


def test_the_position_is_what_paying_minute_by_minute_leaves():
    rng = random.Random(12)
    for _ in range(600):
        spans, funds = random_case(rng)
        end = brute_exhaustion(spans, funds)
        at = START + rng.randrange(5000) * SECOND
        if end is not None and at >= end:
            continue
        left = [
            [f.expires_at, f.free]
            for f in sorted(funds, key=lambda f: (f.expires_at is None, f.expires_at or at))
        ]
        for start, cost in minute_starts(spans):
            if start > at:
                break
            for fund in left:
                if fund[0] is None or fund[0] > start:
                    paid = min(fund[1], cost)
                    cost, fund[1] = cost - paid, fund[1] - paid
        position = rating.position(spans, funds, at=at)
        assert position.available == sum(
            free for expires_at, free in left if expires_at is None or expires_at > at
        )
        valid = sum(f.free for f in funds if f.expires_at is None or f.expires_at > at)
        assert position.owed == valid - position.available


def test_without_segments_money_never_runs_out():
    assert rating.exhausts_at([], [Fund(free=money.ZERO, expires_at=None)]) is None


def test_two_minutes_that_start_at_once_are_paid_both_or_neither():
    spans = [span(60, tokens=1_000_000), span(60, tokens=1_000_000)]
    assert rating.exhausts_at(spans, [Fund(free=Decimal(15), expires_at=None)]) == START
    assert rating.exhausts_at(spans, [Fund(free=Decimal(20), expires_at=None)]) is None


# --- Which price ----------------------------------------------------------------------------------------------


def dated(dice: random.Random, tier: str, number: int) -> list[DatedPrice]:
    """Prices of one tier that follow each other, with a gap now and then."""
    rows, at = [], dice.choice([0, 0, 0, 3])
    while at < 40:
        end = at + dice.randint(1, 15)
        rows.append(
            DatedPrice(
                price_id=number + at,
                tier=tier,
                per_million=Decimal(number + at),
                valid_from=START + at * SECOND,
                valid_to=None if end >= 40 else START + end * SECOND,
            )
        )
        at = end + dice.choice([0] * 15 + [4])
    return rows


@pytest.mark.parametrize("seed", range(200))
def test_price_pieces_against_every_instant(seed: int) -> None:
    dice = random.Random(seed)
    prices = dated(dice, "", 1000)
    for number in (2, 3):
        prices += dated(dice, f"tier{number}", 1000 * number)
    dice.shuffle(prices)
    cuts = sorted(dice.sample(range(40), dice.randint(0, 6)))
    tiers = [
        TierSpan(
            tier=dice.choice(["tier1", "tier2", "tier3"]),
            valid_from=START + begin * SECOND,
            valid_to=START + end * SECOND,
        )
        for begin, end in zip(cuts, cuts[1:], strict=False)
    ]
    instants = [START + second * SECOND for second in range(30)]

    def brute(at: datetime) -> int | None:
        tier = [t.tier for t in tiers if t.valid_from <= at < t.valid_to]  # type: ignore[operator]
        held = {
            p.tier: p.price_id for p in prices if p.valid_from <= at and (not p.valid_to or at < p.valid_to)
        }
        return held.get(tier[0] if tier else "", held.get(""))

    expected = [brute(at) for at in instants]
    if None in expected:
        with pytest.raises(NoPrice, match="No price of x is in force"):
            rating.price_pieces(prices, tiers, first=instants[0], last=instants[-1], of="price of x")
        return
    pieces = rating.price_pieces(prices, tiers, first=instants[0], last=instants[-1], of="price of x")
    assert [p.valid_from for p in pieces] == sorted({p.valid_from for p in pieces})
    for at, price_id in zip(instants, expected, strict=True):
        assert [p.price_id for p in pieces if p.valid_from <= at][-1] == price_id
