"""Each message of billing delivered one to five times, in random order, by many hands at once: each counts once."""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal

from django.db import transaction

from billing import audit, charging, clock
from billing.errors import HoldClosed, HoldNotFound, ReversalRefused
from billing.models import Hold, LedgerAccount, LedgerEntry
from cacheplane.access.callers import Caller
from cacheplane.caching import lifecycle
from cacheplane.management.drill import calls, crowd, objects, scene
from cacheplane.management.drill.calls import Call
from cacheplane.management.drill.figures import Advance, Figure, in_silence
from cacheplane.management.drill.payer import FAMILY, MODEL

PART = "duplicates"
MESSAGES_OF_A_KIND = 400
CALLERS = 20
HANDS = 16
DELIVERIES_MAX = 5
MONEY = Decimal(10_000)
DAY_SECONDS = 86_400

Deliver = Callable[[], object]
Refused = (HoldClosed, HoldNotFound, ReversalRefused)
"""What a second delivery may be told."""


@dataclass(kw_only=True)
class Messages:
    """What is to be delivered, and what the ledger must say in the end: per organization, what its cash changes by;
    per message, how many entries it makes. Storage is not among it: it goes on while the drill runs."""

    deliveries: list[Deliver] = field(default_factory=list)
    count: int = 0
    changes: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    entries: dict[str, int] = field(default_factory=dict)
    contested: list[Call] = field(default_factory=list)

    def add(self, rng: random.Random, ways: Sequence[Deliver]) -> None:
        """One message, delivered one to five times, each time by any of these ways."""
        self.count += 1
        self.deliveries += [rng.choice(ways) for _ in range(rng.randint(1, DELIVERIES_MAX))]


def run(
    *, seed: int, messages: int = MESSAGES_OF_A_KIND, callers: int = CALLERS, advance: Advance = in_silence
) -> list[Figure]:
    """`messages` of each kind: activation, settlement, recharge, reversal, void, and settlement against void."""
    started, rng = time.monotonic(), random.Random(seed)
    payers = [_rich_caller() for _ in range(callers)]
    before = _cash(payers)
    told = Messages()
    prices, engine_id = scene.unit_prices(), scene.engine(slots=1).pk
    for kind in KINDS:
        for _ in range(messages):
            kind(told, rng, rng.choice(payers), prices, engine_id)
            advance(1)
    rng.shuffle(told.deliveries)
    crowd.shared_out([_delivered(deliver) for deliver in told.deliveries], threads=HANDS)
    _decide(told, prices)
    wrong = _wrong(payers, before, told)
    wrong += [f"{v.invariant}: {v.subject}: {v.detail}" for v in audit.violations(clock.now())]
    return [
        Figure(
            part=PART,
            name=f"messages told 1 to {DELIVERIES_MAX} times, {len(told.deliveries)} deliveries by {HANDS} hands",
            goal="0 duplicate charges",
            reached=f"{len(wrong)} wrong: {wrong[0]}" if wrong else "0 duplicates, none missing, sums exact",
            is_reached=not wrong,
            count=told.count,
            what="messages",
            seed=seed,
            seconds=time.monotonic() - started,
        )
    ]


def _delivered(deliver: Deliver) -> Deliver:
    def told() -> None:
        try:
            deliver()
        except Refused:
            pass  # it came before, or something that excludes it did

    return told


def _rich_caller() -> Caller:
    caller = scene.caller()
    _pay_in(caller, MONEY, key=str(uuid.uuid4()))
    return caller


def _pay_in(caller: Caller, amount: Decimal, *, key: str) -> None:
    with transaction.atomic():
        charging.recharge(
            organization_id=caller.organization_id,
            amount=amount,
            purse="cash",
            reason="drill",
            operator="drill",
            idempotency_key=key,
            at=clock.now(),
        )


# --- The kinds of messages -------------------------------------------------------------------------------------


Prices = dict[tuple[str, str], Decimal]


def _activation(told: Messages, rng: random.Random, caller: Caller, prices: Prices, engine_id: int) -> None:
    """The fee and the start of storage, by the lifecycle."""
    tokens = rng.randrange(1, 20_000)
    objects.new_pending(caller, tokens=tokens, seconds=DAY_SECONDS)
    claim = objects.claimed()
    saved = objects.saved(claim, engine_id=engine_id, tokens=tokens)
    told.add(rng, [lambda: lifecycle.activate(claim, saved)])
    told.changes[caller.organization_id] -= tokens * prices["creation", FAMILY]
    told.entries[f"{claim.cache_id}:1"] = 1


def _drawn_call(rng: random.Random, caller: Caller) -> Call:
    return Call(
        organization_id=caller.organization_id,
        reference=uuid.uuid4(),
        family=FAMILY,
        model=MODEL,
        subject=rng.choice([None, "cache-drill"]),
        prompt=rng.randrange(10, 5000),
        cached=5,
        completion=rng.randrange(1, 600),
        started_at=clock.now() - timedelta(milliseconds=rng.randrange(1000)),
    )


def _price(call: Call, prices: Prices) -> Decimal:
    is_cached = call.subject is not None
    price = (call.prompt - (call.cached if is_cached else 0)) * prices["prompt", call.model]
    price += call.completion * prices["completion", call.model]
    return price + (prices["call", call.family] if is_cached else 0)


def _settlement(told: Messages, rng: random.Random, caller: Caller, prices: Prices, engine_id: int) -> None:
    call = _drawn_call(rng, caller)
    calls.hold(call)
    told.add(rng, [lambda: calls.settle(call)])
    told.changes[caller.organization_id] -= _price(call, prices)
    _count_entries(told, call, times=1)


def _count_entries(told: Messages, call: Call, *, times: int) -> None:
    meters = ["prompt", "completion", *(["call"] if call.subject is not None else [])]
    told.entries |= {f"{call.reference}:{meter}": times for meter in meters}


def _recharge(told: Messages, rng: random.Random, caller: Caller, prices: Prices, engine_id: int) -> None:
    amount, key = Decimal(rng.randrange(1, 10_000)) / 1000, str(uuid.uuid4())
    told.add(rng, [lambda: _pay_in(caller, amount, key=key)])
    told.changes[caller.organization_id] += amount
    told.entries[f"recharge:{key}"] = 1


def _reversal(told: Messages, rng: random.Random, caller: Caller, prices: Prices, engine_id: int) -> None:
    """Of the tokens of a call that was settled before: they come back once."""
    call = _drawn_call(rng, caller)
    calls.hold(call)
    calls.settle(call)
    entry = LedgerEntry.objects.get(
        meter_event__source="call", meter_event__source_key=f"{call.reference}:prompt"
    )

    def undo() -> None:
        with transaction.atomic():
            charging.correct(
                organization_id=caller.organization_id,
                entry_id=entry.pk,
                reason="drill",
                operator="drill",
                at=clock.now(),
            )

    told.add(rng, [undo])
    told.changes[caller.organization_id] -= _price(call, prices) - entry.amount
    _count_entries(told, call, times=1)
    told.entries[f"reversal:{entry.pk}"] = 1


def _void(told: Messages, rng: random.Random, caller: Caller, prices: Prices, engine_id: int) -> None:
    call = _drawn_call(rng, caller)
    calls.hold(call)
    told.add(rng, [lambda: calls.void(call)])
    _count_entries(told, call, times=0)


def _contest(told: Messages, rng: random.Random, caller: Caller, prices: Prices, engine_id: int) -> None:
    """A settlement and a void of one call: whichever comes first is right, and the only one."""
    call = _drawn_call(rng, caller)
    calls.hold(call)
    told.add(rng, [lambda: calls.settle(call), lambda: calls.void(call)])
    told.contested.append(call)


KINDS = (_activation, _settlement, _recharge, _reversal, _void, _contest)


# --- What the ledger says --------------------------------------------------------------------------------------


def _cash(payers: Sequence[Caller]) -> dict[str, Decimal]:
    of = [payer.organization_id for payer in payers]
    rows = LedgerAccount.objects.filter(organization_id__in=of).values_list("organization_id", "posted")
    cash: dict[str, Decimal] = {}
    for organization_id, posted in rows:
        cash[str(organization_id)] = cash.get(str(organization_id), Decimal(0)) + posted
    return cash


def _decide(told: Messages, prices: Prices) -> None:
    """How a contest ended stands in its hold: the entries must say the same."""
    for call in told.contested:
        state = Hold.objects.get(reference=call.reference).state
        _count_entries(told, call, times=1 if state == Hold.State.SETTLED else 0)
        if state == Hold.State.SETTLED:
            told.changes[call.organization_id] -= _price(call, prices)


def _wrong(payers: Sequence[Caller], before: dict[str, Decimal], told: Messages) -> list[str]:
    """Messages with too many or too few entries; organizations whose cash is not what was told of it."""
    of = [payer.organization_id for payer in payers]
    found: Counter[str] = Counter()
    storage: dict[str, Decimal] = {}
    entries = LedgerEntry.objects.filter(organization_id__in=of).select_related("meter_event")
    for entry in entries:
        if entry.kind == "storage":
            storage[entry.organization_id] = storage.get(entry.organization_id, Decimal(0)) + entry.amount
        event = entry.meter_event
        found[event.source_key if event is not None else entry.idempotency_key] += 1
    wrong = [
        f"{key}: {found[key]} entries instead of {times}"
        for key, times in told.entries.items()
        if found[key] != times
    ]
    after = _cash(payers)
    for organization_id in of:
        expected = before[organization_id] + told.changes[organization_id] - storage.get(organization_id, 0)
        if after[organization_id] != expected:
            wrong.append(f"{organization_id} has {after[organization_id]} instead of {expected}")
    return wrong
