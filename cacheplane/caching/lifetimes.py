"""What decides an object's end: a time, its use, or the clock of a weekly schedule."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings

from cacheplane.caching import schedules
from cacheplane.caching.models import AUTO, FIXED, SCHEDULED, CacheObject
from cacheplane.caching.schedules import Opening, Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """At most one of both; neither is `CACHE_DEFAULT_TTL_SECONDS`."""

    ttl_seconds: int | None = None
    expired_at: datetime | None = None

    def until(self, at: datetime) -> datetime:
        if self.expired_at is not None:
            return self.expired_at
        return at + timedelta(seconds=self.ttl_seconds or settings.CACHE_DEFAULT_TTL_SECONDS)

    def columns(self, at: datetime) -> dict[str, Any]:
        return COLUMNS | {"ttl_policy": FIXED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Auto:
    """Kept while it earns, at most `cap_seconds` from when this was asked for; None: as long as the tier allows."""

    cap_seconds: int | None = None

    def until(self, at: datetime) -> datetime:
        """Where it must end. While it is pending nothing is paid, so nothing has to be earned."""
        assert self.cap_seconds is not None
        return at + timedelta(seconds=self.cap_seconds)

    def columns(self, at: datetime) -> dict[str, Any]:
        return COLUMNS | {
            "ttl_policy": AUTO,
            "cap_seconds": self.cap_seconds,
            "cap_at": self.until(at),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    windows: tuple[schedules.Written, ...]

    def until(self, at: datetime) -> datetime | None:
        """When the window closes that is open, or soon will be; None: it is closed."""
        opening = due_opening(self._schedule(), at=at, lead=lead(None))
        return opening.closes_at if opening is not None else None

    def columns(self, at: datetime) -> dict[str, Any]:
        return COLUMNS | {
            "ttl_policy": SCHEDULED,
            "schedule": schedules.as_json(self.windows),
            "reopen_at": reopen_at(self._schedule(), at=at, lead=lead(None)),
        }

    def _schedule(self) -> Schedule:
        return schedules.read(self.windows)


Lifetime = Fixed | Auto | Scheduled

COLUMNS: dict[str, Any] = {
    "wanted_until": None,
    "used_at": None,
    "kept_minutes": None,
    "cap_seconds": None,
    "cap_at": None,
    "schedule": None,
    "reopen_at": None,
}


def lead(row: CacheObject | None) -> timedelta:
    """How long before an opening an object is computed: some time for the queue, and what it took last."""
    known = (row.precompute_seconds or 0) if row is not None else 0
    return timedelta(seconds=settings.CACHE_SCHEDULE_LEAD_SECONDS + known)


def due_opening(schedule: Schedule, *, at: datetime, lead: timedelta) -> Opening | None:
    """The one that is open at `at`, or else the next one when it is no further away than the lead."""
    if (opening := schedule.opening_at(at)) is not None:
        return opening
    following = schedule.next_opening(at)
    return following if following.opens_at - lead <= at else None


def reopen_at(schedule: Schedule, *, at: datetime, lead: timedelta) -> datetime:
    """When to compute for the first opening that is not due at `at`."""
    opening = due_opening(schedule, at=at, lead=lead)
    return schedule.next_open(opening.opens_at if opening is not None else at) - lead
