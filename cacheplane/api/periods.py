"""Query parameters that say when: `start`, `end` and the zone whose days are meant, checked one by one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from django.http import QueryDict
from drf_spectacular.utils import OpenApiParameter

from cacheplane.errors import InvalidRequest

ZONE_DEFAULT = "Asia/Shanghai"
"""UTC+8, by whose days tokens are counted too."""
DAYS_DEFAULT, DAYS_MAX = 30, 400
YEARS = range(1970, 9999)
UNIX_SECONDS = re.compile(r"[0-9]{1,11}")
ISO_8601 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?"
)
TAKEN = "an ISO 8601 date or time such as 2026-11-01 or 2026-11-01T08:00:00+08:00, or unix seconds"

_INSTANT = {"type": "string", "pattern": f"^({UNIX_SECONDS.pattern}|{ISO_8601.pattern})?$"}
ZONE = OpenApiParameter(
    "tz",
    {"type": "string", "default": ZONE_DEFAULT, "examples": ["UTC", "Europe/Berlin"]},
    description="name of the time zone whose days are meant",
)
SPAN = [
    OpenApiParameter("start", _INSTANT, description=f"included; {TAKEN}"),
    OpenApiParameter("end", _INSTANT, description=f"not included; {TAKEN}"),
    ZONE,
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """[start, end), and the name of the zone whose days and hours are meant."""

    start: datetime
    end: datetime
    tz: str


def zone_from(query: QueryDict) -> str:
    name = query.get("tz", "") or ZONE_DEFAULT
    if name not in _zones():
        raise InvalidRequest(
            f"Invalid request: tz: got {name[:40]!r}, takes the name of a time zone such as {ZONE_DEFAULT} or UTC"
        )
    return name


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones() - {"Factory", "localtime"})


def instant_from(query: QueryDict, name: str, *, tz: str) -> datetime | None:
    """The instant that a parameter names, None when it is absent. Raises InvalidRequest naming the parameter."""
    raw = query.get(name, "")
    if not raw:
        return None
    # A plus sign that was not encoded arrives as a space.
    found = _read(raw.replace(" ", "+"), tz=tz)
    if found is None:
        raise InvalidRequest(f"Invalid request: {name}: got {raw[:40]!r}, takes {TAKEN}")
    return found


def _read(raw: str, *, tz: str) -> datetime | None:
    try:
        if UNIX_SECONDS.fullmatch(raw):
            return datetime.fromtimestamp(int(raw), UTC)
        if not ISO_8601.fullmatch(raw):
            return None
        said = datetime.fromisoformat(raw)
    except ValueError:
        return None
    if said.year not in YEARS:
        return None
    return (said if said.tzinfo is not None else said.replace(tzinfo=ZoneInfo(tz))).astimezone(UTC)


def open_period_from(query: QueryDict, *, tz: str) -> tuple[datetime | None, datetime | None]:
    """(start, end), each of which may be absent."""
    start, end = instant_from(query, "start", tz=tz), instant_from(query, "end", tz=tz)
    if start is not None and end is not None and start >= end:
        raise InvalidRequest(
            f"Invalid request: start: got {query['start'][:40]!r}, takes an instant before end {query['end'][:40]!r}"
        )
    return start, end


def period_from(query: QueryDict, *, at: datetime) -> Period:
    """The last DAYS_DEFAULT days unless it is said otherwise, DAYS_MAX at most. Raises InvalidRequest."""
    tz = zone_from(query)
    start, end = open_period_from(query, tz=tz)
    if end is None:
        end = at if start is None or start < at else start + timedelta(days=1)
    if start is None:
        start = end - timedelta(days=DAYS_DEFAULT)
    if end - start > timedelta(days=DAYS_MAX):
        raise InvalidRequest(
            f"Invalid request: start: got a span of {(end - start).days} days, takes {DAYS_MAX} at most"
        )
    return Period(start=start, end=end, tz=tz)
