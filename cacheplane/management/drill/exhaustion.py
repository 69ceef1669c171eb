"""Objects whose owner's money ends: when the last caller was served, when the sweep wrote it down, what was billed."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from django.db import transaction

from billing import accounts, audit, charging, clock, storage
from billing.models import LedgerAccount, StorageSegment
from cacheplane.access.callers import Caller
from cacheplane.caching import lifecycle
from cacheplane.caching.models import ACTIVE, CacheObjectEvent
from cacheplane.gateway import matching
from cacheplane.gateway.matching import Reference
from cacheplane.management.drill import objects, scene
from cacheplane.management.drill.figures import Advance, Figure, in_silence
from cacheplane.management.drill.payer import FAMILY

PART = "exhaustion"
OBJECTS = 200
SPREAD_SECONDS = 8.0
LEAD_SECONDS = 3.0
LEAD_SECONDS_PER_OBJECT = 0.02
"""All are made ready before the first one ends, also where others use the machine."""
SWEEP_SECONDS = 1.0
"""The period of `expire` in the beat table."""
LOOK_SECONDS = 0.2
LATE_SECONDS_MAX = 2.0
SWEEP_BATCH_OBJECTS = 500
TTL_SECONDS = 7200
MINUTE = timedelta(minutes=1)


@dataclass(slots=True, kw_only=True)
class Watched:
    """One object, and the instant at which its owner's money ends, reckoned by hand: the start of the first minute
    that is not paid. `minutes` are paid, `left` is what cannot pay another one. `served_at`: last seen as active."""

    caller: Caller
    cache_id: str
    ends_at: datetime
    minutes: int
    left: Decimal
    served_at: datetime | None = None


def run(
    *,
    seed: int,
    count: int = OBJECTS,
    lead_seconds: float = LEAD_SECONDS,
    spread_seconds: float = SPREAD_SECONDS,
    advance: Advance = in_silence,
) -> list[Figure]:
    """The sweep's own function on its own period, and a caller that asks for each object again and again."""
    started, rng = time.monotonic(), random.Random(seed)
    engine_id = scene.engine(slots=1).pk
    pairs = []
    for _ in range(count):
        pairs.append(_stored(rng, engine_id))
        advance(1)
    first_end = clock.now() + timedelta(seconds=lead_seconds + count * LEAD_SECONDS_PER_OBJECT)
    watched = []
    for number, (caller, cache_id, tokens) in enumerate(pairs):
        ends_at = first_end + timedelta(seconds=spread_seconds * number / count)
        watched.append(_moved_back(rng, caller, cache_id, tokens, ends_at=ends_at))
    _watch(watched, until=first_end + timedelta(seconds=spread_seconds + LATE_SECONDS_MAX + 1))
    return [_judged(watched, seed=seed, seconds=time.monotonic() - started)]


def _stored(rng: random.Random, engine_id: int) -> tuple[Caller, str, int]:
    """An active object of a new caller with money for its creation, and a little more."""
    caller, tokens = scene.caller(), rng.randrange(1000, 30_000)
    prices = scene.unit_prices()
    fee, minute = tokens * prices["creation", FAMILY], tokens * prices["storage", FAMILY]
    minutes = rng.choice([1, 1, 2, 7])
    left = (minute * rng.randrange(1000) / 1000).quantize(Decimal("0.000000001"))
    with transaction.atomic():
        charging.recharge(
            organization_id=caller.organization_id,
            amount=fee + minute * minutes + left,
            purse="cash",
            reason="drill",
            operator="drill",
            idempotency_key=str(uuid.uuid4()),
            at=clock.now(),
        )
    cache_id = objects.new_pending(caller, tokens=tokens, seconds=TTL_SECONDS)
    claim = objects.claimed()
    is_active = lifecycle.activate(claim, objects.saved(claim, engine_id=engine_id, tokens=tokens))
    assert is_active, "nobody else is at it"
    return caller, cache_id, tokens


def _moved_back(
    rng: random.Random, caller: Caller, cache_id: str, tokens: int, *, ends_at: datetime
) -> Watched:
    """Its storage begins so much earlier that the money ends at `ends_at`: nothing of it is billed yet.

    What the rows say is then reckoned afresh by billing itself, as a price change would have it.
    """
    minute = tokens * scene.unit_prices()["storage", FAMILY]
    [purse] = LedgerAccount.objects.filter(organization_id=caller.organization_id)
    minutes = int((purse.posted - purse.held) // minute)
    StorageSegment.objects.filter(organization_id=caller.organization_id).update(
        started_at=ends_at - minutes * MINUTE
    )
    with transaction.atomic():
        account = accounts.lock(caller.organization_id)
        storage.settle(account, at=account.locked_at)
    left = purse.posted - purse.held - minutes * minute
    return Watched(caller=caller, cache_id=cache_id, ends_at=ends_at, minutes=minutes, left=left)


def _watch(watched: Sequence[Watched], *, until: datetime) -> None:
    """Sweeps when it is time, and asks in between, as a call does, whether each object is still served.

    Until all is written down, or else `until`.
    """
    next_sweep = time.monotonic()
    of = [one.caller.organization_id for one in watched]
    while clock.now() < until and _is_any_open(of):
        if time.monotonic() >= next_sweep:
            next_sweep += SWEEP_SECONDS
            while lifecycle.expire_due(limit=SWEEP_BATCH_OBJECTS) == SWEEP_BATCH_OBJECTS:
                pass
        for one in watched:
            if time.monotonic() >= next_sweep:
                break
            _ask(one)
        time.sleep(min(LOOK_SECONDS, max(0.0, next_sweep - time.monotonic())))


def _is_any_open(organization_ids: Sequence[str]) -> bool:
    return StorageSegment.objects.filter(
        organization_id__in=organization_ids, closed_at__isnull=True
    ).exists()


def _ask(one: Watched) -> None:
    """Only around its end: before that there is no doubt."""
    at = clock.now()
    if abs((at - one.ends_at).total_seconds()) > LATE_SECONDS_MAX + 1:
        return
    if matching.find(one.caller, Reference(cache_id=one.cache_id)).status == ACTIVE:
        one.served_at = at


def _judged(watched: list[Watched], *, seed: int, seconds: float) -> Figure:
    written, wrong = [], []
    for one in watched:
        segment = StorageSegment.objects.get(organization_id=one.caller.organization_id)
        event = CacheObjectEvent.objects.filter(cache_id=one.cache_id, kind="expired").first()
        if event is None or segment.closed_at is None:
            wrong.append(f"{one.cache_id} was not ended")
            continue
        written.append((event.at - one.ends_at).total_seconds())
        if one.served_at is not None and one.served_at >= one.ends_at:
            late = (one.served_at - one.ends_at).total_seconds()
            if late > LATE_SECONDS_MAX:
                wrong.append(f"{one.cache_id} was served {late:.3f} s after its money had ended")
        [purse] = LedgerAccount.objects.filter(organization_id=one.caller.organization_id)
        billed = (segment.billed_minutes, segment.closed_at, purse.posted)
        if billed != (one.minutes, one.ends_at, one.left):
            expected = (one.minutes, one.ends_at, one.left)
            wrong.append(f"{one.cache_id}: minutes, end and rest are {billed} instead of {expected}")
    wrong += [f"{v.invariant}: {v.subject}: {v.detail}" for v in audit.violations(clock.now())]
    served = [(one.served_at - one.ends_at).total_seconds() for one in watched if one.served_at is not None]
    is_late = bool(written) and max(written) > LATE_SECONDS_MAX
    reached = (
        f"last seen active {max(served, default=0.0):+.3f} s, written down by the sweep after "
        f"{min(written, default=0.0):.2f} to {max(written, default=0.0):.2f} s; to the minute and the fen"
    )
    return Figure(
        part=PART,
        name="balances that end while something is stored",
        goal=f"enforced <= {LATE_SECONDS_MAX:.0f} s late, no minute beyond",
        reached=f"{len(wrong)} wrong: {wrong[0]}" if wrong else reached,
        is_reached=not wrong and not is_late,
        count=len(watched),
        what="objects",
        seed=seed,
        seconds=seconds,
    )
