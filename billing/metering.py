"""Meter events: immutable facts of use, each named by `(source, source_key)` and told once. They carry no price."""

from __future__ import annotations

import secrets
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime

from billing.models import Meter, MeterEvent

UNITS = {
    Meter.CREATION: "token",
    Meter.STORAGE: "token_minute",
    Meter.CALL: "call",
    Meter.PROMPT: "token",
    Meter.COMPLETION: "token",
}


def new_event_id() -> uuid.UUID:
    """A UUID of version 7: sortable by the time it was made, so that its index grows at one end."""
    stamp_ms = time.time_ns() // 1_000_000
    random = secrets.randbits(74)
    return uuid.UUID(int=stamp_ms << 80 | 7 << 76 | (random >> 62) << 64 | 2 << 62 | random & ((1 << 62) - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One fact, to be written by `ledger.Journal` together with what it costs.

    `cached_tokens` and `called_model` are told of a call on a cache object alone: what it spared, and on which model.
    """

    meter: str
    source_key: str
    subject: str
    model: str
    quantity: int
    occurred_at: datetime
    minutes: tuple[int, int] | None = None
    api_key_id: str = ""
    request_id: str = ""
    cached_tokens: int | None = None
    called_model: str = ""
    id: uuid.UUID = field(default_factory=new_event_id)

    @property
    def source(self) -> str:
        """Which kind of work told it: a call, a creation, or storage."""
        return "call" if self.meter in (Meter.CALL, Meter.PROMPT, Meter.COMPLETION) else self.meter

    @property
    def unit(self) -> str:
        return UNITS[Meter(self.meter)]


def recorded(*, source: str, source_key: str) -> MeterEvent | None:
    return MeterEvent.objects.filter(source=source, source_key=source_key).first()
