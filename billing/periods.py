"""Days and months as bills know them: of UTC+8, where the prices are made. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone

ZONE = timezone(timedelta(hours=8), "UTC+8")
DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """Whole days from `start` up to, and without, `end`."""

    start: date
    end: date

    @property
    def starts_at(self) -> datetime:
        return midnight(self.start)

    @property
    def ends_at(self) -> datetime:
        return midnight(self.end)

    @property
    def is_month(self) -> bool:
        return self == month_of(self.start)


def midnight(day: date) -> datetime:
    """The instant at which a day begins."""
    return datetime.combine(day, time(), tzinfo=ZONE)


def day_at(at: datetime) -> date:
    """The day that it is at an instant."""
    return at.astimezone(ZONE).date()


def month_of(day: date) -> Period:
    """The calendar month that a day belongs to."""
    start = day.replace(day=1)
    return Period(start=start, end=(start + 31 * DAY).replace(day=1))


def months(first: date, last: date) -> list[Period]:
    """The months of both days and all between, oldest first."""
    found = []
    month = month_of(first)
    while month.start <= last:
        found.append(month)
        month = month_of(month.end)
    return found
