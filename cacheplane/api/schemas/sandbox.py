"""`/v1/sandbox/clock`: how far a sandbox's clock is set forward. Pure; every refusal names the field."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from cacheplane.api.schemas.decoding import refuse
from cacheplane.errors import InvalidRequest

ADVANCE_SECONDS_MAX = 366 * 86_400
UNIX_SECONDS_MAX = 253_402_300_799
"""The end of the year 9999."""

Seconds = Annotated[int, Meta(ge=1, le=ADVANCE_SECONDS_MAX, description="so many seconds forward")]
UnixSeconds = Annotated[int, Meta(ge=0, le=UNIX_SECONDS_MAX)]
Instant = Annotated[str, Meta(max_length=40, description="ISO 8601 with an offset, or unix seconds")]


class AdvanceClock(msgspec.Struct):
    """One of the two."""

    advance: Seconds | None = None
    to: UnixSeconds | Instant | None = None


def instant_of(wanted: AdvanceClock) -> datetime | None:
    """`to` as an instant. Raises InvalidRequest when it is none, and unless exactly one of the two fields is there."""
    if (wanted.advance is None) == (wanted.to is None):
        which = "neither" if wanted.to is None else "both"
        raise InvalidRequest(f"Invalid request: advance: got {which} of advance and to, takes one of the two")
    if wanted.to is None:
        return None
    if isinstance(wanted.to, int):
        return datetime.fromtimestamp(wanted.to, UTC)
    try:
        instant = datetime.fromisoformat(wanted.to)
    except ValueError:
        raise refuse("to", wanted.to, "an ISO 8601 time with an offset, or unix seconds") from None
    if instant.utcoffset() is None:
        raise refuse(
            "to", wanted.to, "an ISO 8601 time with an offset, for example 2026-01-01T00:00:00+08:00"
        )
    return instant
