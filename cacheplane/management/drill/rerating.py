"""A month of facts, booked by the ledger's own journal, and rated again by the audit: the same to the last place."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from django.db import connection, transaction

from billing import accounts, audit, charging, money, price_book
from billing.ledger import Budget, Charge, Journal
from billing.metering import Event
from billing.models import Meter, Price, PricedItem
from cacheplane.management.drill import processes, scene
from cacheplane.management.drill.figures import Advance, Figure, in_silence

PART = "rerating"
EVENTS = 1_000_000
SECONDS_MAX = 60.0
WORKERS = 2
EVENTS_OF_AN_ACCOUNT = 2000
EVENTS_OF_A_JOURNAL = 500
MONTH = datetime(2026, 3, 1, tzinfo=UTC)
MONTH_SECONDS = 31 * 86_400
FAMILY, MODEL = "drill-month", "drill-month-8k"
MONEY = Decimal(1_000_000)
METERS = (Meter.CALL, Meter.PROMPT, Meter.PROMPT, Meter.COMPLETION, Meter.CREATION)
FIRST = {Meter.CREATION: "24", Meter.CALL: "20000", Meter.PROMPT: "12", Meter.COMPLETION: "12.5"}
LATER = {Meter.CREATION: "23.999", Meter.CALL: "15000", Meter.PROMPT: "11.111", Meter.COMPLETION: "0"}
CHANGED_AT = MONTH + timedelta(days=10, hours=7, minutes=13, seconds=1)


def run(
    *, seed: int, events: int = EVENTS, workers: int = WORKERS, advance: Advance = in_silence
) -> list[Figure]:
    """Books the month with two processes, then rates it again. `seconds` are those of the second rating alone."""
    price_the_month()
    shares = [events // workers + (number < events % workers) for number in range(workers)]
    roles = [{"seed": seed, "number": number} for number in range(workers)]
    with processes.team(__name__, roles) as team:
        booked = money.total(team.tell(shares, advance))
    return [rerate(seed=seed, events=events, booked=booked)]


def role(
    *,
    hear: Callable[[], int | None],
    advance: Advance,
    answer: Callable[[object], None],
    seed: int,
    number: int,
) -> None:
    while (events := hear()) is not None:
        answer(book(random.Random(f"{seed}:{number}"), events=events, advance=advance))


def price_the_month() -> None:
    """A price of each meter that changes once within the month."""
    for meter in FIRST:
        model = MODEL if meter in (Meter.PROMPT, Meter.COMPLETION) else FAMILY
        item = PricedItem.objects.create(meter=meter.value, model=model, currency="CNY")
        Price.objects.create(
            priced_item=item, per_million=Decimal(FIRST[meter]), valid_from=MONTH, valid_to=CHANGED_AT
        )
        Price.objects.create(priced_item=item, per_million=Decimal(LATER[meter]), valid_from=CHANGED_AT)


def book(rng: random.Random, *, events: int, advance: Advance) -> Decimal:
    """So many events over the month, for one account after the other; what they cost together."""
    total = Decimal(0)
    prices = _prices()
    while events:
        caller = scene.caller()
        with transaction.atomic():
            charging.recharge(
                organization_id=caller.organization_id,
                amount=MONEY,
                purse="cash",
                reason="drill",
                operator="drill",
                idempotency_key=str(uuid.uuid4()),
                at=MONTH,
            )
        instants = sorted(rng.randrange(MONTH_SECONDS) for _ in range(min(events, EVENTS_OF_AN_ACCOUNT)))
        events -= len(instants)
        for first in range(0, len(instants), EVENTS_OF_A_JOURNAL):
            some = instants[first : first + EVENTS_OF_A_JOURNAL]
            total += _journal(rng, caller.organization_id, prices, some)
            advance(len(some))
    return total


Prices = dict[tuple[Meter, bool], price_book.UnitPrice]


def _prices() -> Prices:
    """(meter, whether it has changed) → price."""
    found = {}
    for meter in FIRST:
        model = MODEL if meter in (Meter.PROMPT, Meter.COMPLETION) else FAMILY
        for row in Price.objects.filter(priced_item__meter=meter.value, priced_item__model=model):
            found[meter, row.valid_from == CHANGED_AT] = price_book.UnitPrice(
                price_id=row.pk, per_million=row.per_million, unit_price=money.unit_price(row.per_million)
            )
    return found


def _journal(rng: random.Random, organization_id: str, prices: Prices, seconds: list[int]) -> Decimal:
    """One transaction: the facts of these instants, and what they cost, as a settlement writes them."""
    with transaction.atomic():
        account = accounts.lock(organization_id)
        purses = accounts.purses(account)
        journal = Journal(
            organization_id=organization_id,
            currency=account.currency,
            purses=purses,
            at=MONTH + timedelta(seconds=seconds[-1] + 1),
        )
        budget = Budget((purse, purse.free) for purse in purses)
        charges = [_charge(rng, prices, MONTH + timedelta(seconds=second)) for second in seconds]
        for charge in charges:
            journal.charge(charge, budget)
        journal.write()
        accounts.restate(account, purses)
    return money.total(charge.amount for charge in charges)


def _charge(rng: random.Random, prices: Prices, at: datetime) -> Charge:
    meter = rng.choice(METERS)
    price = prices[meter, at >= CHANGED_AT]
    event = Event(
        meter=meter.value,
        source_key=f"{uuid.UUID(int=rng.getrandbits(128))}:{meter.value}",
        subject="cache-drill",
        model=MODEL if meter in (Meter.PROMPT, Meter.COMPLETION) else FAMILY,
        quantity=1 if meter == Meter.CALL else rng.randrange(1, 30_000),
        occurred_at=at,
        api_key_id="ak-drill",
        request_id="req-drill",
    )
    return Charge(event=event, price_id=price.price_id, unit_price=price.unit_price)


BOOKED = f"""
SELECT count(*), coalesce(sum(e.amount), 0)
FROM billing_ledgerentry e JOIN billing_meterevent m ON m.id = e.meter_event_id
WHERE m.model IN ('{FAMILY}', '{MODEL}')
"""


# --- Once more -------------------------------------------------------------------------------------------------


def rerate(*, seed: int, events: int, booked: Decimal) -> Figure:
    """The audit's own questions of I4, and the month's sum against what was booked."""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")  # as autovacuum has it on a database that has grown by itself
    started = time.monotonic()
    off = [row for name, query in audit.QUERIES if name == audit.RERATED for row in _rows(query)]
    seconds = time.monotonic() - started
    found, total = _rows(BOOKED)[0]
    wrong = [f"{subject}: {detail}" for subject, detail in off[:1]]
    if total != booked:
        wrong.append(f"entries make {total}, {booked} was booked")
    reached = "; ".join(wrong) or f"identical: {found} entries, {total} CNY"
    return Figure(
        part=PART,
        name="a month rated again from its events",
        goal=f"identical, < {SECONDS_MAX:.0f} s",
        reached=f"{reached}; {seconds:.1f} s",
        is_reached=not off and total == booked and seconds < SECONDS_MAX,
        count=events,
        what="events",
        seed=seed,
        seconds=seconds,
    )


def _rows(query: str) -> list[tuple[object, object]]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        rows: list[tuple[object, object]] = cursor.fetchall()
    return rows
