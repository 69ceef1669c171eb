"""`/v1/webhooks`, field by field. Pure, like the dialect's schemas: every refusal names the field."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cacheplane.errors import InvalidRequest

EventType = Literal[
    "cache.active", "cache.error", "cache.expiring", "cache.expired", "cache.deleted", "balance.low"
]
Events = Annotated[list[EventType], Meta(min_length=1, max_length=16)]
Url = Annotated[str, Meta(min_length=1, max_length=2048)]
Description = Annotated[str, Meta(max_length=512)]
LeadSeconds = Annotated[int, Meta(ge=1, le=7 * 86_400, description="for cache.expiring; default 300")]
Threshold = Annotated[Decimal, Meta(description="for balance.low, in ¥, exact; default 10")]

THRESHOLD_BELOW, THRESHOLD_DECIMALS = Decimal(10) ** 15, 9


class CreateWebhook(msgspec.Struct):
    url: Url
    events: Events
    description: Description | None = None
    expiring_lead_seconds: LeadSeconds | None = None
    balance_threshold: Threshold | None = None


class UpdateWebhook(msgspec.Struct):
    url: Url | None = None
    events: Events | None = None
    description: Description | None = None
    expiring_lead_seconds: LeadSeconds | None = None
    balance_threshold: Threshold | None = None
    enabled: bool | None = None


def check_threshold(threshold: Decimal | None) -> None:
    """Raise InvalidRequest for an amount that is none, or finer than the ledger."""
    if threshold is None:
        return
    exponent = threshold.as_tuple().exponent
    is_amount = isinstance(exponent, int) and 0 <= threshold < THRESHOLD_BELOW
    if not is_amount or -int(exponent) > THRESHOLD_DECIMALS:
        raise InvalidRequest(
            f"Invalid request: balance_threshold: got {str(threshold)[:40]!r}, takes an amount from 0 with at most "
            f"{THRESHOLD_DECIMALS} decimals"
        )
