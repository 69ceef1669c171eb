"""Who and what a drill needs beside money: callers whom no limit stops, an engine with free slots, prices as numbers.

The engine is a row that nothing runs behind: a drill moves money, and computes nothing.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from decimal import Decimal

from billing import accounts
from billing.models import Price
from cacheplane.access import api_keys, rate_limits
from cacheplane.access.callers import Caller
from cacheplane.access.models import Organization, Project
from cacheplane.engines.models import Engine, EngineSlot

BOUNDLESS = 10**12
FINGERPRINT = "drill"


def caller() -> Caller:
    """A new organization with a key, an account without money, and limits beyond any drill."""
    organization = Organization.objects.create(name="Drill", tier_id="tier0")
    accounts.open_account(organization.id)
    rate_limits.open_state(organization_id=organization.id)
    project = Project.objects.create(organization=organization, name="default")
    found = api_keys.authenticate(api_keys.issue(project=project, name="drill", operator="drill").secret)
    tier = replace(
        found.tier,
        concurrency=BOUNDLESS,
        requests_per_minute=BOUNDLESS,
        tokens_per_minute=BOUNDLESS,
        tokens_per_day=None,
    )
    return replace(found, tier=tier)


def engine(*, slots: int) -> Engine:
    name = f"drill-{uuid.uuid4().hex[:8]}"
    made = Engine.objects.create(
        name=name,
        kind="llamacpp",
        url="http://127.0.0.1:9",
        kv_dir="",
        model=name,
        build="",
        fingerprint=FINGERPRINT,
        total_slots=slots,
        window_tokens=131_072,
        persist=True,
    )
    EngineSlot.objects.bulk_create(EngineSlot(engine=made, index=index) for index in range(slots))
    return made


def unit_prices() -> dict[tuple[str, str], Decimal]:
    """(meter, model) → the open price per unit in CNY, straight from the rows: nothing of billing's is asked."""
    rows = Price.objects.filter(valid_to__isnull=True, priced_item__currency="CNY").values_list(
        "priced_item__meter", "priced_item__model", "per_million"
    )
    return {(meter, model): per_million / Decimal(1_000_000) for meter, model, per_million in rows}
