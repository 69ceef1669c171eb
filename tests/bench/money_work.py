"""What the clients of `tests.bench.money` do, and what they do it to."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import connection, transaction

from billing import accounts, charging, clock, storage
from billing.models import BillingAccount, LedgerAccount
from cacheplane.access.callers import Caller
from cacheplane.access.models import Organization
from cacheplane.chat import Usage
from cacheplane.engines import slots
from cacheplane.gateway import admission
from cacheplane.gateway.admission import Outcome, Wanted
from cacheplane.management.drill import calls, rerating, scene
from cacheplane.management.drill.calls import Call
from cacheplane.management.drill.figures import Figure
from cacheplane.management.drill.payer import FAMILY, MODEL

MONEY = Decimal(1_000_000)
PROMPT, COMPLETION = 200, 100
SLOTS_PER_CLIENT = 4
BALANCES = 300
SEED = 20240806


# --- What it is done to ----------------------------------------------------------------------------------------


def prepare(*, accounts: int) -> dict[str, Any]:
    """Organizations with money, an engine, and the floor's table; what a client must know of them."""
    caller = scene.caller()
    made = Organization.objects.bulk_create(
        Organization(name="Bench", tier_id="tier0") for _ in range(accounts)
    )
    at = clock.now()
    BillingAccount.objects.bulk_create(
        BillingAccount(organization_id=row.id, currency="CNY", created_at=at) for row in made
    )
    LedgerAccount.objects.bulk_create(
        LedgerAccount(organization_id=row.id, kind="cash", currency="CNY") for row in made
    )
    for row in [*made, Organization.objects.get(id=caller.organization_id)]:
        _recharge(row.id)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE bench_floor (id int PRIMARY KEY, n int NOT NULL) WITH (fillfactor = 30)")
        cursor.execute("INSERT INTO bench_floor SELECT id, 0 FROM generate_series(0, %s) AS id", [accounts])
    return {
        "caller": caller,
        "organization_ids": [row.id for row in made],
        "engine_id": scene.engine(slots=64).pk,
    }


def analyze() -> None:
    """Once there are rows, as autovacuum does within minutes: the clients' plans were those for empty tables."""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def _recharge(organization_id: str) -> None:
    with transaction.atomic():
        charging.recharge(
            organization_id=organization_id,
            amount=MONEY,
            purse="cash",
            reason="bench",
            operator="bench",
            idempotency_key=str(uuid.uuid4()),
            at=clock.now(),
        )


# --- Clients ---------------------------------------------------------------------------------------------------


def role(
    *,
    hear: Callable[[], tuple[str, float] | None],
    advance: Callable[[int], None],
    answer: Callable[[int], None],
    caller: Caller,
    organization_ids: list[str],
    engine_id: int,
    seed: int,
) -> None:
    """One client: does what it hears for so many seconds, and says how often."""
    client = Client(
        rng=random.Random(seed), hot=caller, organization_ids=organization_ids, engine_id=engine_id
    )
    while (said := hear()) is not None:
        kind, seconds = said
        answer(client.warm_up() if kind == "warm_up" else client.repeat(kind, seconds))


@dataclass(kw_only=True)
class Client:
    """Knows all accounts' currencies and the prices, as a gateway does that has served a while."""

    rng: random.Random
    hot: Caller
    organization_ids: list[str]
    engine_id: int

    def warm_up(self) -> int:
        for organization_id in [*self.organization_ids, self.hot.organization_id]:
            with transaction.atomic():
                accounts.lock(organization_id)
        self.plain()
        self.hot_whole()
        return 0

    def repeat(self, kind: str, seconds: float) -> int:
        work, count, end = getattr(self, kind), 0, time.monotonic() + seconds
        while time.monotonic() < end:
            work()
            count += 1
        return count

    def plain(self) -> None:
        self._hold_and_settle(self.rng.choice(self.organization_ids))

    def hot_plain(self) -> None:
        self._hold_and_settle(self.hot.organization_id)

    def _hold_and_settle(self, organization_id: str) -> None:
        call = Call(
            organization_id=organization_id,
            reference=uuid.uuid4(),
            family=FAMILY,
            model=MODEL,
            subject="cache-bench",
            prompt=PROMPT,
            cached=PROMPT // 2,
            completion=COMPLETION,
            started_at=datetime.now(UTC),
        )
        calls.hold(call)
        calls.settle(call)

    def whole(self) -> None:
        self._admit_and_settle(replace(self.hot, organization_id=self.rng.choice(self.organization_ids)))

    def hot_whole(self) -> None:
        self._admit_and_settle(self.hot)

    def _admit_and_settle(self, caller: Caller) -> None:
        wanted = Wanted(
            call_id=uuid.uuid4(),
            model=MODEL,
            family=FAMILY,
            prompt_tokens=PROMPT,
            max_tokens=COMPLETION,
            prefix=None,
            request_id="req-bench",
        )
        admitted = admission.admit(caller, wanted, gateway_id=uuid.uuid4(), engine_id=self.engine_id)
        assert admitted.lease is not None
        outcome = Outcome(
            usage=Usage(prompt_tokens=PROMPT, cached_tokens=0, completion_tokens=COMPLETION),
            is_hit=False,
            started_at=admitted.at,
        )
        released = slots.Release(lease=admitted.lease, resident=None, resident_organization="")
        admission.settle(caller, wanted, outcome, reset_ttl=None, released=released)

    def floor(self) -> None:
        self._update_twice(self.rng.randrange(len(self.organization_ids)))

    def hot_floor(self) -> None:
        self._update_twice(0)

    def _update_twice(self, row: int) -> None:
        with connection.cursor() as cursor:
            for _ in range(2):
                cursor.execute("UPDATE bench_floor SET n = n + 1 WHERE id = %s", [row])


# --- Balance and re-rating -------------------------------------------------------------------------------------


def balances(*, objects: int) -> tuple[list[float], list[float]]:
    """Seconds of a balance with so many open objects, and of a bare SELECT, in turns."""
    caller = scene.caller()
    _recharge(caller.organization_id)
    for number in range(objects):
        with transaction.atomic():
            account = accounts.lock(caller.organization_id)
            storage.open_segment(
                account,
                subject=f"cache-bench-{number}",
                model=FAMILY,
                tokens=1000 + number,
                at=account.locked_at,
                ends_at=account.locked_at + timedelta(hours=1),
            )
    ours, bare = [], []
    for _ in range(BALANCES):
        started = time.perf_counter()
        accounts.balance(caller.organization_id, datetime.now(UTC))
        between = time.perf_counter()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()
        bare.append(time.perf_counter() - between)
        ours.append(between - started)
    return ours, bare


def rerated(*, events: int) -> list[Figure]:
    return rerating.run(seed=SEED, events=events)
