"""Windows by the clocks of their places: days, midnights, and the nights in which clocks are changed."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from cacheplane.caching import schedules
from cacheplane.caching.schedules import Schedule, Written
from cacheplane.errors import InvalidRequest

SOME_DAY = datetime(2026, 11, 18, 12, tzinfo=UTC)
"""A Wednesday."""


def window(days: str, from_: str, to: str, tz: str = "UTC") -> Written:
    return Written(days=days, from_=from_, to=to, tz=tz)


def schedule(*windows: Written) -> Schedule:
    return schedules.parse(windows, at=SOME_DAY)


def local(tz: str, *about: int, fold: int = 0) -> datetime:
    return datetime(*about, tzinfo=ZoneInfo(tz), fold=fold).astimezone(UTC)  # type: ignore[arg-type, misc]


def test_a_working_week_in_shanghai() -> None:
    week, tz = schedule(window("mon-fri", "09:00", "24:00", "Asia/Shanghai")), "Asia/Shanghai"
    assert week.next_open(local(tz, 2026, 11, 18, 8)) == local(tz, 2026, 11, 18, 9)
    assert not week.is_open(local(tz, 2026, 11, 18, 8, 59))
    assert week.is_open(local(tz, 2026, 11, 18, 9))
    assert week.next_close(local(tz, 2026, 11, 18, 9)) == local(tz, 2026, 11, 19)
    assert not week.is_open(local(tz, 2026, 11, 19))
    assert week.next_open(local(tz, 2026, 11, 18, 9)) == local(tz, 2026, 11, 19, 9)
    assert week.next_open(local(tz, 2026, 11, 20, 9)) == local(tz, 2026, 11, 23, 9), "over the weekend"
    assert week.next_close(local(tz, 2026, 11, 21)) == local(tz, 2026, 11, 24), "the next one's, when closed"


@pytest.mark.parametrize(
    ("days", "found"),
    [
        ("mon-fri", (0, 1, 2, 3, 4)),
        ("sat,sun", (5, 6)),
        ("Mon", (0,)),
        ("fri-mon", (0, 4, 5, 6)),
        ("mon, wed-thu", (0, 2, 3)),
        ("sun-sun", (6,)),
    ],
)
def test_days_are_lists_of_names_and_ranges(days: str, found: tuple[int, ...]) -> None:
    assert schedule(window(days, "09:00", "10:00")).windows[0].days == found


def test_a_window_over_midnight_belongs_to_the_day_it_begins_on() -> None:
    night = schedule(window("fri", "22:00", "06:00"))
    opened = datetime(2026, 11, 20, 22, tzinfo=UTC)
    assert night.next_open(SOME_DAY) == opened
    assert night.next_close(opened) == datetime(2026, 11, 21, 6, tzinfo=UTC)
    assert night.is_open(datetime(2026, 11, 21, 5, 59, tzinfo=UTC))
    assert not night.is_open(datetime(2026, 11, 20, 5, tzinfo=UTC))
    assert night.next_open(opened) == opened + timedelta(days=7)


def test_windows_that_touch_or_overlap_are_one() -> None:
    found = schedule(
        window("wed", "09:00", "12:00"),
        window("wed", "11:00", "14:00"),
        window("wed", "14:00", "15:00"),
        window("wed", "16:00", "17:00"),
    )
    opening = found.opening_at(datetime(2026, 11, 18, 12, tzinfo=UTC))
    assert opening is not None
    assert (opening.opens_at.hour, opening.closes_at.hour) == (9, 15)
    assert found.next_open(opening.opens_at).hour == 16
    days = schedule(window("mon-sat", "00:00", "24:00"))
    assert days.next_close(SOME_DAY) == datetime(2026, 11, 22, tzinfo=UTC)
    assert days.next_open(SOME_DAY) == datetime(2026, 11, 23, tzinfo=UTC)


def test_windows_of_several_places_are_one_schedule() -> None:
    found = schedule(
        window("wed", "09:00", "17:00", "Europe/Berlin"), window("wed", "09:00", "17:00", "America/New_York")
    )
    opening = found.opening_at(local("America/New_York", 2026, 11, 18, 9))
    assert opening is not None
    assert opening.opens_at == local("Europe/Berlin", 2026, 11, 18, 9)
    assert opening.closes_at == local("America/New_York", 2026, 11, 18, 17)


# --- Nights in which clocks are changed -------------------------------------------------------------------------

SPRING = [("Europe/Berlin", (2026, 3, 29)), ("America/New_York", (2026, 3, 8))]
AUTUMN = [("Europe/Berlin", (2026, 10, 25)), ("America/New_York", (2026, 11, 1))]


@pytest.mark.parametrize(("tz", "day"), SPRING)
def test_a_skipped_time_is_the_moment_of_the_change(tz: str, day: tuple[int, int, int]) -> None:
    """In Berlin 02:00 becomes 03:00, in New York too, each at its own moment."""
    found = schedule(window("sun", "02:30", "05:00", tz), window("sun", "01:00", "02:15", tz))
    change = local(tz, *day, 3)
    at = change - timedelta(hours=6)
    opening = found.next_opening(at)
    assert (opening.opens_at, opening.closes_at) == (local(tz, *day, 1), local(tz, *day, 5)), "they touch"
    assert local(tz, *day, 5) - local(tz, *day, 1) == timedelta(hours=3)
    alone = schedule(window("sun", "02:30", "05:00", tz))
    assert alone.next_open(at) == change
    assert alone.next_close(change) - change == timedelta(hours=2)


@pytest.mark.parametrize(("tz", "day"), SPRING)
def test_a_window_that_is_skipped_whole_is_not_opened_that_week(tz: str, day: tuple[int, int, int]) -> None:
    found = schedule(window("sun", "02:10", "02:40", tz))
    change = local(tz, *day, 3)
    at = change - timedelta(hours=6)
    assert found.next_open(at) == local(tz, day[0], day[1], day[2], 2, 10) + timedelta(days=7, hours=-1)
    assert found.next_open(at).astimezone(ZoneInfo(tz)).strftime("%a %H:%M") == "Sun 02:10"


@pytest.mark.parametrize(("tz", "day", "hour"), [(*AUTUMN[0], 2), (*AUTUMN[1], 1)])
def test_a_time_that_comes_twice_opens_at_the_first_and_closes_at_the_second(
    tz: str, day: tuple[int, int, int], hour: int
) -> None:
    found = schedule(window("sun", f"0{hour}:15", f"0{hour}:45", tz))
    first = local(tz, *day, hour, 15)
    opening = found.next_opening(first - timedelta(hours=6))
    assert (opening.opens_at, opening.closes_at) == (first, local(tz, *day, hour, 45, fold=1))
    assert opening.closes_at - opening.opens_at == timedelta(minutes=90)


@pytest.mark.parametrize(("tz", "day"), SPRING + AUTUMN)
def test_a_whole_day_is_as_long_as_the_day_is(tz: str, day: tuple[int, int, int]) -> None:
    found = schedule(window("sun", "00:00", "24:00", tz))
    opening = found.next_opening(local(tz, *day) - timedelta(hours=3))
    lasts = timedelta(hours=23) if (tz, day) in SPRING else timedelta(hours=25)
    assert opening.closes_at - opening.opens_at == lasts


def test_a_day_that_a_place_skipped_has_no_window() -> None:
    """Samoa had no 30 December 2011, a Friday."""
    found = schedule(window("fri", "09:00", "17:00", "Pacific/Apia"))
    at = local("Pacific/Apia", 2011, 12, 29, 12)
    assert found.next_open(at) == local("Pacific/Apia", 2012, 1, 6, 9)


@pytest.mark.parametrize("tz", ["Europe/Berlin", "America/New_York", "Asia/Shanghai", "Australia/Lord_Howe"])
def test_it_agrees_with_the_clock_on_the_wall(tz: str) -> None:
    """Whatever the instant: open is what the clock there says, the next opening and closing are its next changes."""
    chance, zone = random.Random(7), ZoneInfo(tz)
    found = schedule(window("sat-mon", "01:40", "02:20", tz), window("tue-thu", "22:00", "24:00", tz))
    for _ in range(400):
        at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=chance.randrange(365 * 24 * 60))
        wall = at.astimezone(zone)
        minute = wall.hour * 60 + wall.minute
        is_open = (wall.weekday() in (5, 6, 0) and 100 <= minute < 140) or (
            wall.weekday() in (1, 2, 3) and minute >= 22 * 60
        )
        if found.is_open(at) != is_open:
            # Between two equal times the clock shows a time outside once more, and the window stays open.
            assert (
                found.is_open(at)
                and wall.utcoffset() != (at + timedelta(hours=2)).astimezone(zone).utcoffset()
            )
        opens_at = found.next_open(at)
        assert (
            opens_at > at and found.is_open(opens_at) and not found.is_open(opens_at - timedelta(seconds=1))
        )
        closes_at = found.next_close(at)
        assert closes_at > at and not found.is_open(closes_at)
        assert found.is_open(closes_at - timedelta(seconds=1))


# --- What is not taken ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "field", "came"),
    [
        (window("", "09:00", "10:00"), "days", "''"),
        (window("mon-", "09:00", "10:00"), "days", "'mon-'"),
        (window("monday", "09:00", "10:00"), "days", "'monday'"),
        (window("mon", "9:00", "10:00"), "from", "'9:00'"),
        (window("mon", "24:00", "10:00"), "from", "'24:00'"),
        (window("mon", "09:00", "24:01"), "to", "'24:01'"),
        (window("mon", "09:00", "09:00"), "to", "'09:00'"),
        (window("mon", "09:00", "10:60"), "to", "'10:60'"),
        (window("mon", "09:00", "10:00", "Asia"), "tz", "'Asia'"),
        (window("mon", "09:00", "10:00", "../etc/passwd"), "tz", "'../etc/passwd'"),
        (window("mon", "09:00", "10:00", ""), "tz", "''"),
    ],
)
def test_a_refusal_names_the_field_what_came_and_what_is_taken(
    written: Written, field: str, came: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        schedules.parse([window("tue", "09:00", "10:00"), written], at=SOME_DAY)
    sentence = refused.value.message
    assert sentence.startswith(f"Invalid request: schedule.windows[1].{field}: got {came}, takes ")


@pytest.mark.parametrize(
    "windows",
    [[], [window("mon", "09:00", "10:00")] * 17, [window("mon-sun", "00:00", "24:00")]],
    ids=["none", "too many", "no pause"],
)
def test_a_schedule_has_windows_and_a_pause(windows: list[Written]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        schedules.parse(windows, at=SOME_DAY)
    assert refused.value.message.startswith("Invalid request: schedule.windows: got ")
