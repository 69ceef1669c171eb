"""What use must cost by the published price list, worked out here by hand, and what the ledger says it did cost."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol

MILLION = Decimal(1_000_000)
CREATION = Decimal(24) / MILLION
"""¥ for a token that is put into a cache object."""
STORAGE = Decimal(5) / MILLION
"""¥ for a token that is kept for a started minute."""
CALL = Decimal("0.02")
"""¥ for a call that hits."""
TOKENS = {
    "moonshot-v1-8k": Decimal(12) / MILLION,
    "moonshot-v1-32k": Decimal(24) / MILLION,
    "moonshot-v1-128k": Decimal(60) / MILLION,
}
"""¥ for a token that goes in or comes out."""


class Caller(Protocol):
    organization: str


def call_price(usage: dict[str, Any], *, is_hit: bool, model: str = "moonshot-v1-8k") -> Decimal:
    """Tokens that were not cached at the model's price, and the fee of a hit."""
    tokens = usage["prompt_tokens"] - usage["cached_tokens"] + usage["completion_tokens"]
    return tokens * TOKENS[model] + (CALL if is_hit else 0)


def started_minutes(*, from_: datetime, to: datetime) -> int:
    lived = to - from_
    whole = lived // timedelta(minutes=1)
    return max(1, whole + (1 if lived % timedelta(minutes=1) else 0))


def spent(caller: Caller) -> dict[str, Decimal]:
    """What the ledger has charged so far, by kind of entry; recharges are left out."""
    from billing.models import LedgerEntry

    found: dict[str, Decimal] = defaultdict(Decimal)
    for entry in LedgerEntry.objects.filter(organization_id=caller.organization).exclude(kind="recharge"):
        found[entry.kind] += entry.amount
    return dict(found)


def counted(caller: Caller, meter: str) -> list[int]:
    """Quantities of the facts of one meter, in order."""
    from billing.models import MeterEvent

    facts = MeterEvent.objects.filter(organization_id=caller.organization, meter=meter)
    return list(facts.order_by("recorded_at", "id").values_list("quantity", flat=True))


def purse(caller: Caller) -> tuple[Decimal, Decimal]:
    """(posted, held) of all purses together."""
    from billing.models import LedgerAccount

    rows = LedgerAccount.objects.filter(organization_id=caller.organization)
    return sum((r.posted for r in rows), Decimal(0)), sum((r.held for r in rows), Decimal(0))


def is_idle(caller: Caller) -> bool:
    """No call of this organization is in flight, holds money, or keeps a slot."""
    from billing.models import Hold
    from cacheplane.access.models import CallInFlight, RateState

    calls = CallInFlight.objects.filter(organization_id=caller.organization).count()
    places = RateState.objects.get(organization_id=caller.organization).in_flight
    held = Hold.objects.filter(organization_id=caller.organization, kind="call", state="open").count()
    return calls == places == held == 0
