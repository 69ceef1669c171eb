"""Weekly windows in which an object is open, by the clocks of the places that they name. Pure, but for the rules of
time zones, which `zoneinfo` knows.

A window is open while the clock on the wall there stands between `from` and `to`. So where a clock is put forward, a
time that it skips is the moment of the change; where it is put back, a window opens at the first and closes at the
second of two equal times. Windows that touch or overlap are one.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from cacheplane.errors import InvalidRequest

WINDOWS_MAX = 16
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_PER_DAY = 24 * 60
DAY, SECOND = timedelta(days=1), timedelta(seconds=1)
AHEAD_DAYS = 16
"""Far enough to see two openings of a window on one day of the week, also where a change of clocks skips one."""
ENDLESS = timedelta(days=7)
FIELD = "schedule.windows"
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)|24:00")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """`days` count from Monday, 0. Minutes are of the day; a `to_minute` not after `from_minute` is the next day's."""

    days: tuple[int, ...]
    from_minute: int
    to_minute: int
    zone: ZoneInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Open at `opens_at`, no longer at `closes_at`; both in UTC."""

    opens_at: datetime
    closes_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    windows: tuple[Window, ...]

    def opening_at(self, at: datetime) -> Opening | None:
        """The one that is open at `at`."""
        found = self.openings(at)
        return found[0] if found and found[0].opens_at <= at else None

    def is_open(self, at: datetime) -> bool:
        return self.opening_at(at) is not None

    def next_opening(self, at: datetime) -> Opening:
        """The first that opens after `at`."""
        return next(one for one in self.openings(at) if one.opens_at > at)

    def next_open(self, at: datetime) -> datetime:
        return self.next_opening(at).opens_at

    def next_close(self, at: datetime) -> datetime:
        """When the one that is open closes, or the next one where none is."""
        return self.openings(at)[0].closes_at

    def openings(self, at: datetime) -> list[Opening]:
        """Those that are not over at `at`, in order, for some days."""
        spans: list[tuple[datetime, datetime]] = []
        for window in self.windows:
            today = at.astimezone(window.zone).date()
            for days in range(-9, AHEAD_DAYS):
                day = today + days * DAY
                if day.weekday() in window.days and (span := _span(window, day)):
                    spans.append(span)
        return [one for one in _merged(spans) if one.closes_at > at]


def _span(window: Window, day: date) -> tuple[datetime, datetime] | None:
    """What a window is on one day; None where the clock skips all of it."""
    lasts_to = window.to_minute + (MINUTES_PER_DAY if window.to_minute <= window.from_minute else 0)
    midnight = datetime.combine(day, time())
    opens_at = _instant(midnight + timedelta(minutes=window.from_minute), window.zone, fold=0)
    closes_at = _instant(midnight + timedelta(minutes=lasts_to), window.zone, fold=1)
    return (opens_at, closes_at) if opens_at < closes_at else None


def _instant(wall: datetime, zone: ZoneInfo, *, fold: int) -> datetime:
    """When the clock shows `wall`: the first time (fold 0) or the last one; if never, when it jumps over it."""
    early, late = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if early <= late:
        return late if fold else early
    # Skipped: read with the offset of before the change it is too late, with the one of after too early.
    before, after = late, early
    offset = before.astimezone(zone).utcoffset()
    while after - before > SECOND:
        middle = before + (after - before) // SECOND // 2 * SECOND
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after


def _merged(spans: Iterable[tuple[datetime, datetime]]) -> list[Opening]:
    found: list[Opening] = []
    for opens_at, closes_at in sorted(spans):
        if found and opens_at <= found[-1].closes_at:
            last = found.pop()
            opens_at, closes_at = last.opens_at, max(last.closes_at, closes_at)
        found.append(Opening(opens_at=opens_at, closes_at=closes_at))
    return found


# --- As callers write them --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A window in a caller's words."""

    days: str
    from_: str
    to: str
    tz: str


def parse(windows: Sequence[Written], *, at: datetime) -> Schedule:
    """Raises InvalidRequest naming the field, what came and what is taken."""
    if not 1 <= len(windows) <= WINDOWS_MAX:
        raise _refuse(FIELD, f"{len(windows)} windows", f"1 to {WINDOWS_MAX}")
    found = read(windows)
    opening = found.opening_at(at) or found.next_opening(at)
    if opening.closes_at - max(opening.opens_at, at) > ENDLESS:
        raise _refuse(FIELD, "windows that never close", "at least one pause in a week")
    return found


def read(windows: Sequence[Written]) -> Schedule:
    return Schedule(windows=tuple(_window(one, f"{FIELD}[{i}]") for i, one in enumerate(windows)))


def as_json(windows: Sequence[Written]) -> dict[str, Any]:
    """As it is kept and shown."""
    return {"windows": [{"days": w.days, "from": w.from_, "to": w.to, "tz": w.tz} for w in windows]}


def as_written(kept: dict[str, Any]) -> list[Written]:
    return [Written(days=w["days"], from_=w["from"], to=w["to"], tz=w["tz"]) for w in kept["windows"]]


def _window(written: Written, field: str) -> Window:
    from_minute = _minute(written.from_, f"{field}.from")
    to_minute = _minute(written.to, f"{field}.to")
    if from_minute == MINUTES_PER_DAY:
        raise _refuse(f"{field}.from", written.from_, "00:00 to 23:59")
    if from_minute == to_minute:
        raise _refuse(f"{field}.to", written.to, "another time than from; a whole day is from 00:00 to 24:00")
    return Window(
        days=_days(written.days, f"{field}.days"),
        from_minute=from_minute,
        to_minute=to_minute,
        zone=_zone(written.tz, f"{field}.tz"),
    )


def _days(text: str, field: str) -> tuple[int, ...]:
    found: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = (name.strip() for name in part.partition("-"))
        if first not in DAYS or (dash and last not in DAYS):
            raise _refuse(field, text[:80], "days like mon-fri, or sat,sun, of mon tue wed thu fri sat sun")
        start = DAYS.index(first)
        found.update((start + more) % 7 for more in range((DAYS.index(last or first) - start) % 7 + 1))
    return tuple(sorted(found))


def _minute(text: str, field: str) -> int:
    if not _TIME.fullmatch(text):
        raise _refuse(field, text[:80], "HH:MM, from 00:00 to 24:00")
    return int(text[:2]) * 60 + int(text[3:])


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    # "localtime" is another zone on each machine, "Factory" is none.
    return frozenset(zoneinfo.available_timezones() - {"localtime", "Factory"})


def _zone(name: str, field: str) -> ZoneInfo:
    if name not in _zones():
        raise _refuse(field, name[:80], "a name of the IANA time zones like Asia/Shanghai")
    return ZoneInfo(name)


def _refuse(field: str, came: object, taken: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid request: {field}: got {came!r}, takes {taken}")
