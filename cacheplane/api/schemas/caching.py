"""`/v1/caching`: what creates and what changes a cache object."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cacheplane.api.schemas.decoding import refuse
from cacheplane.api.schemas.messages import MESSAGES_MAX, TOOLS_MAX, ChatMessage, ToolDeclaration
from cacheplane.errors import InvalidRequest

INT64_MAX = 2**63 - 1
TAGS_MAX = 16
WINDOWS_MAX = 16
AUTO = "auto"

_AMOUNT = r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,9})?"

Seconds = Annotated[int, Meta(ge=-INT64_MAX, le=INT64_MAX)]
Auto = Annotated[str, Meta(extra_json_schema={"enum": [AUTO]})]


class Window(msgspec.Struct, rename={"from_": "from"}):
    """Open on these days between two times of the clock in `tz`; a `to` not after `from` is the next day's."""

    days: Annotated[str, Meta(max_length=64, description="mon-fri, or sat,sun")]
    from_: Annotated[str, Meta(max_length=16, description="HH:MM")]
    to: Annotated[str, Meta(max_length=16, description="HH:MM, also 24:00")]
    tz: Annotated[str, Meta(max_length=64, description="a name of the IANA time zones")] = "UTC"


class WeeklySchedule(msgspec.Struct):
    windows: Annotated[list[Window], Meta(min_length=1, max_length=WINDOWS_MAX)]


class SpendingBudget(msgspec.Struct):
    """What creations and storage may cost; an amount of null takes the budget away."""

    amount: Annotated[str, Meta(extra_json_schema={"pattern": f"^{_AMOUNT}$"})] | None
    per: Literal["month", "total"] = "total"


class CreateCache(msgspec.Struct):
    model: Annotated[str, Meta(max_length=128)]
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MESSAGES_MAX)]
    tools: Annotated[list[ToolDeclaration], Meta(max_length=TOOLS_MAX)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    description: Annotated[str, Meta(max_length=512)] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    ttl: Seconds | Auto | None = None
    ttl_cap: Annotated[int, Meta(ge=1, le=INT64_MAX)] | None = None
    expired_at: Seconds | None = None
    schedule: WeeklySchedule | None = None
    budget: SpendingBudget | None = None
    tags: Annotated[list[str], Meta(max_length=TAGS_MAX)] | None = None


class UpdateCache(msgspec.Struct):
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    ttl: Seconds | Auto | None = None
    ttl_cap: Annotated[int, Meta(ge=1, le=INT64_MAX)] | None = None
    expired_at: Seconds | None = None
    schedule: WeeklySchedule | None = None
    budget: SpendingBudget | None = None


def check_metadata(metadata: dict[str, str] | None) -> None:
    for key, value in (metadata or {}).items():
        if len(key) > 64:
            raise refuse("metadata", key[:80], "keys of at most 64 characters")
        if len(value) > 512:
            raise refuse(f"metadata.{key}", f"{len(value)} characters", "at most 512")


def check_lifetime(wanted: CreateCache | UpdateCache) -> tuple[int | None, int | None]:
    """(ttl, expired_at) in seconds, with zero and negative values taken as not given. Raises InvalidRequest when more
    than one thing is to decide the end."""
    if isinstance(wanted.ttl, str) and wanted.ttl != AUTO:
        raise refuse("ttl", wanted.ttl[:40], f'seconds, or "{AUTO}"')
    ttl = wanted.ttl if isinstance(wanted.ttl, int) and wanted.ttl > 0 else None
    expired_at = wanted.expired_at if wanted.expired_at is not None and wanted.expired_at > 0 else None
    said = {"ttl": AUTO if wanted.ttl == AUTO else ttl, "expired_at": expired_at}
    given = {name: value for name, value in said.items() if value is not None}
    if wanted.schedule is not None and given:
        name, value = next(iter(given.items()))
        raise refuse(name, value, "none beside a schedule")
    if len(given) == 2:
        raise InvalidRequest(
            f"Invalid request: ttl: got {given['ttl']} beside expired_at {expired_at}, takes one of the two"
        )
    if wanted.ttl_cap is not None and wanted.ttl != AUTO:
        raise refuse("ttl_cap", wanted.ttl_cap, 'one beside "ttl": "auto" alone')
    return ttl, expired_at


def check_budget(budget: SpendingBudget | None) -> None:
    if budget is None or budget.amount is None:
        return
    if not re.fullmatch(_AMOUNT, budget.amount) or not budget.amount.strip("0."):
        raise refuse(
            "budget.amount",
            budget.amount[:40],
            'an amount above 0 like "12.5", of at most 9 decimal places, or null for none',
        )
