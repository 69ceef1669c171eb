"""Many callers at once on money for fewer calls: exactly those pass, however the money lies in purses."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from django.db import transaction

from billing import accounts, audit, charging, clock
from billing.errors import InsufficientFunds
from billing.models import LedgerAccount
from cacheplane.access.callers import Caller
from cacheplane.chat import Usage
from cacheplane.engines import slots
from cacheplane.gateway import admission
from cacheplane.gateway.admission import Outcome, Wanted
from cacheplane.gateway.matching import Prefix
from cacheplane.management.drill import crowd, scene
from cacheplane.management.drill.figures import Advance, Figure, in_silence
from cacheplane.management.drill.payer import FAMILY, MODEL

PART = "overdraft"
CALLERS = 200
AFFORDABLE = 50
ROUNDS = 10
SLOTS = 64
"""Fewer than callers: some calls settle the short way, those without a slot the long way."""
CACHED_TOKENS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What came of one race: `passed` were charged, `posted` and `held` are the purses' sums after it."""

    passed: int
    refused: int
    posted: Decimal
    held: Decimal


def run(
    *,
    seed: int,
    rounds: int = ROUNDS,
    callers: int = CALLERS,
    affordable: int = AFFORDABLE,
    advance: Advance = in_silence,
) -> list[Figure]:
    """Each round is another price and other purses; hold and settlement are the gateway's own."""
    started, rng = time.monotonic(), random.Random(seed)
    engine_id = scene.engine(slots=SLOTS).pk
    missed = []
    for number in range(rounds):
        found = race(rng, engine_id=engine_id, callers=callers, affordable=affordable)
        if found != Round(
            passed=affordable, refused=callers - affordable, posted=Decimal(0), held=Decimal(0)
        ):
            missed.append(f"round {number}: {found}")
        advance(callers)
    missed += [f"{v.invariant}: {v.subject}: {v.detail}" for v in audit.violations_of_billing()]
    return [
        Figure(
            part=PART,
            name=f"{callers} calls at once on money for {affordable}, {rounds} rounds",
            goal=f"exactly {affordable} pass",
            reached="; ".join(missed) or f"{affordable} passed in each, and nothing was left or owed",
            is_reached=not missed,
            count=rounds * callers,
            what="calls",
            seed=seed,
            seconds=time.monotonic() - started,
        )
    ]


def race(rng: random.Random, *, engine_id: int, callers: int, affordable: int) -> Round:
    caller = scene.caller()
    prompt, completion, is_cached = rng.randrange(1, 4000), rng.randrange(1, 512), rng.random() < 0.5
    prices = scene.unit_prices()
    price = prompt * prices["prompt", MODEL] + completion * prices["completion", MODEL]
    price += prices["call", FAMILY] if is_cached else 0
    _pay_in(caller, price * affordable, rng)

    def call() -> bool:
        return _call(caller, engine_id, prompt=prompt, completion=completion, is_cached=is_cached)

    works: list[Callable[[], bool]] = [call] * callers
    outcomes = crowd.all_at_once(works)
    purses = LedgerAccount.objects.filter(organization_id=caller.organization_id)
    return Round(
        passed=sum(outcomes),
        refused=callers - sum(outcomes),
        posted=sum((purse.posted for purse in purses), Decimal(0)),
        held=sum((purse.held for purse in purses), Decimal(0)),
    )


def _pay_in(caller: Caller, amount: Decimal, rng: random.Random) -> None:
    """The same money in one purse or in several: a hold then lies across their borders."""
    vouchers = rng.choice([0, 0, 1, 3])
    at = clock.now()
    for hours in range(1, vouchers + 1):
        part = (amount / (vouchers + 1) * Decimal(rng.randrange(50, 100)) / 100).quantize(Decimal("0.000001"))
        _recharge(caller, part, at=at, purse="voucher", expires_at=at + timedelta(hours=hours))
        amount -= part
    _recharge(caller, amount, at=at, purse="cash", expires_at=None)


def _recharge(
    caller: Caller, amount: Decimal, *, at: datetime, purse: str, expires_at: datetime | None
) -> None:
    with transaction.atomic():
        charging.recharge(
            organization_id=caller.organization_id,
            amount=amount,
            purse=purse,
            reason="drill",
            operator="drill",
            idempotency_key=str(uuid.uuid4()),
            at=at,
            expires_at=expires_at,
        )


def _call(caller: Caller, engine_id: int, *, prompt: int, completion: int, is_cached: bool) -> bool:
    """As the gateway does it; it uses exactly what it holds, so that nothing becomes free for others."""
    cached = CACHED_TOKENS if is_cached else 0
    wanted = Wanted(
        call_id=uuid.uuid4(),
        model=MODEL,
        family=FAMILY,
        prompt_tokens=prompt + cached,
        max_tokens=completion,
        prefix=_prefix() if is_cached else None,
        request_id="req-drill",
    )
    accounts.balance(
        caller.organization_id, clock.now()
    )  # as a caller does who looks first: it decides nothing
    try:
        admitted = admission.admit(caller, wanted, gateway_id=uuid.uuid4(), engine_id=engine_id)
    except InsufficientFunds:
        return False
    released = None
    if admitted.lease is not None:
        released = slots.Release(lease=admitted.lease, resident=None, resident_organization="")
    outcome = Outcome(
        usage=Usage(prompt_tokens=prompt + cached, cached_tokens=cached, completion_tokens=completion),
        is_hit=is_cached,
        started_at=admitted.at,
    )
    admission.settle(caller, wanted, outcome, reset_ttl=None, released=released)
    return True


def _prefix() -> Prefix:
    return Prefix(
        cache_id="cache-drill",
        model_family=FAMILY,
        tokens=CACHED_TOKENS,
        messages=[],
        tools=None,
        digest="",
        message_count=1,
        status="active",
        ends_at=datetime.now(UTC) + timedelta(hours=1),
        kv_id=None,
        engine_id=None,
        kv=None,
    )
