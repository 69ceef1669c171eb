"""Random operations over many accounts in worker processes, and every promise of billing looked at in between.

Three kinds of accounts: of the past, who walk through a price change of long ago; of the present, who live by the
clock; and of the future, whose clock runs ahead, into prices that are announced while they go.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from django.db import connection

from billing import audit, price_book, storage
from billing.audit import Violation
from billing.errors import PriceRefused
from billing.models import Meter
from cacheplane.management.drill import processes
from cacheplane.management.drill.figures import Advance, Figure, in_silence
from cacheplane.management.drill.payer import make_payer
from cacheplane.management.drill.wanderers import PresentWanderer, Wanderer

PART = "operations"
OPERATIONS = 1_000_000
WORKERS = 2
ACCOUNTS_PER_WORKER = 200
OPERATIONS_PER_ACCOUNT = 20
"""At least, so that a small drill does more than open accounts."""
LOOKS = (0.001, 0.02, 0.1, 0.3, 0.6, 1.0)
"""After these parts of the operations all promises are looked at: each look reads every row there is. The first one
comes soon, because before it nobody has counted the rows: the server's plans are then those for empty tables."""
STEPS_BETWEEN_REPORTS = 100

PAST = datetime(2024, 8, 6, 12, tzinfo=UTC)
"""Four hours before storage became cheaper."""
ADVANCE_NOTICE = price_book.NOTICE + timedelta(seconds=60)
FIRST_PRICES = {
    Meter.CREATION: Decimal(24),
    Meter.STORAGE: Decimal(5),
    Meter.CALL: Decimal(20_000),
    Meter.PROMPT: Decimal(12),
    Meter.COMPLETION: Decimal(12),
}
STORAGE_PRICES = [Decimal(price) for price in ("0", "0.001", "2.5", "4", "5", "10", "12.345")]


@dataclass(kw_only=True)
class World:
    """What one worker plays with: its accounts, one source of chance, and prices of its own for those of the future."""

    name: str
    rng: random.Random
    family: str
    future: list[Wanderer] = field(default_factory=list)
    others: list[Wanderer] = field(default_factory=list)
    turns: list[Wanderer] = field(default_factory=list)

    def play(self, steps: int, advance: Advance) -> None:
        between_changes = max(1, steps // 2)
        for step in range(steps):
            if step % between_changes == between_changes - 1:
                self.change_a_price()
            self.rng.choice(self.turns).step()
            if step % STEPS_BETWEEN_REPORTS == STEPS_BETWEEN_REPORTS - 1:
                advance(STEPS_BETWEEN_REPORTS)
        advance(steps % STEPS_BETWEEN_REPORTS)

    def change_a_price(self) -> None:
        """Announced as an operator does it: ahead of everybody who will pay it, then open segments are told."""
        latest = max(wanderer.payer.at for wanderer in self.future)
        starts = max(latest, datetime.now(UTC)) + ADVANCE_NOTICE
        starts += timedelta(seconds=self.rng.randrange(7200))
        try:
            price_book.publish(
                meter=Meter.STORAGE.value,
                model=self.family,
                currency="CNY",
                per_million=self.rng.choice(STORAGE_PRICES),
                valid_from=starts,
            )
        except PriceRefused:
            return
        storage.reprice()

    def end(self) -> Counter[str]:
        everybody = self.future + self.others
        for wanderer in everybody:
            wanderer.settle_everything()
        return sum((wanderer.done for wanderer in everybody), Counter())


def world(*, seed: int, number: int, accounts: int) -> World:
    """The accounts of worker `number`, each with a little money: one in five of the past, one of the future."""
    rng = random.Random(f"{seed}:{number}")
    made = World(name=f"{seed}-{number}", rng=rng, family=f"drill-{number}")
    first_prices(made.family, f"{made.family}-8k")
    for index in range(accounts):
        name = f"{made.name}-{index}"
        recharged = str(Decimal(rng.randrange(1, 30_000)) / 1000)
        if index % 5 == 0:
            payer = make_payer(recharged=recharged, at=PAST)
            made.others.append(Wanderer(payer=payer, rng=rng, name=name))
        elif index % 5 == 1:
            payer = make_payer(
                recharged=recharged,
                at=datetime.now(UTC),
                family=made.family,
                model=f"{made.family}-8k",
            )
            made.future.append(Wanderer(payer=payer, rng=rng, name=name))
        else:
            payer = make_payer(recharged=recharged, at=datetime.now(UTC))
            made.others.append(PresentWanderer(payer=payer, rng=rng, name=name))
    made.turns = _turns(made)
    return made


def _turns(made: World) -> list[Wanderer]:
    """Whose turn it may be. The present has most of them: it is what callers do."""
    present = [w for w in made.others if isinstance(w, PresentWanderer)]
    return [*made.future, *made.others, *present, *present]


def first_prices(family: str, model: str) -> None:
    """What has no price yet may start at once."""
    for meter, per_million in FIRST_PRICES.items():
        named = model if meter in (Meter.PROMPT, Meter.COMPLETION) else family
        price_book.publish(
            meter=meter.value, model=named, currency="CNY", per_million=per_million, valid_from=PAST
        )


# --- Playing it ------------------------------------------------------------------------------------------------

END = "end"


def role(
    *,
    hear: Callable[[], int | str | None],
    advance: Advance,
    answer: Callable[[object], None],
    seed: int,
    number: int,
    accounts: int,
) -> None:
    """One worker: plays as many steps as it is told, until the end; then says what it has done."""
    made = world(seed=seed, number=number, accounts=accounts)
    while (said := hear()) is not None:
        if isinstance(said, int):
            made.play(said, advance)
            answer(None)
        else:
            answer(made.end())


def run(
    *,
    seed: int,
    operations: int = OPERATIONS,
    workers: int = WORKERS,
    advance: Advance = in_silence,
) -> list[Figure]:
    """Two processes at random operations; all invariants at each look and at the end."""
    started = time.monotonic()
    accounts = min(ACCOUNTS_PER_WORKER, max(5, operations // workers // OPERATIONS_PER_ACCOUNT))
    roles = [{"seed": seed, "number": number, "accounts": accounts} for number in range(workers)]
    looks, playing = Looks(), 0.0
    with processes.team(__name__, roles) as team:
        for steps in legs(operations):
            shares = [steps // workers + (number < steps % workers) for number in range(workers)]
            began = time.monotonic()
            team.tell(shares, advance)
            playing += time.monotonic() - began
            looks.look()
        done: Counter[str] = sum(team.tell([END] * workers, advance), Counter())
        looks.look()
    found = figure(looks, done, seed=seed, operations=operations, seconds=time.monotonic() - started)
    return [
        replace(found, name=f"{found.name}; {operations / playing:.0f}/s, {looks.seconds:.0f} s of looks")
    ]


def run_here(*, seed: int, operations: int, accounts: int) -> tuple[Figure, Counter[str]]:
    """The same in this process, with one worker's accounts; and what was done how often."""
    started = time.monotonic()
    made, looks = world(seed=seed, number=0, accounts=accounts), Looks()
    for steps in legs(operations):
        made.play(steps, in_silence)
        looks.look()
    done = made.end()
    looks.look()
    return figure(looks, done, seed=seed, operations=operations, seconds=time.monotonic() - started), done


def legs(operations: int) -> Iterator[int]:
    """How many operations lie between two looks."""
    before = 0
    for part in LOOKS:
        upto = round(operations * part)
        yield upto - before
        before = upto


@dataclass(kw_only=True)
class Looks:
    """Each look asks the database for every promise of billing. `seconds` is what they took together."""

    count: int = 0
    seconds: float = 0.0
    found: list[Violation] = field(default_factory=list)

    def look(self) -> None:
        started = time.monotonic()
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")  # as autovacuum has it where a database has not grown within minutes
        self.found += audit.violations_of_billing()
        self.count += 1
        self.seconds += time.monotonic() - started


def figure(looks: Looks, done: Counter[str], *, seed: int, operations: int, seconds: float) -> Figure:
    refused = sum(times for name, times in done.items() if ": " in name)
    reached = f"{len(looks.found)} violations in {looks.count} looks; {refused} of them refused"
    if looks.found:
        first = looks.found[0]
        reached += f"; the first: {first.invariant}: {first.subject}: {first.detail}"
    return Figure(
        part=PART,
        name="random operations",
        goal="0 violations",
        reached=reached,
        is_reached=not looks.found,
        count=operations,
        what="operations",
        seed=seed,
        seconds=seconds,
    )
