"""A scheduled object's life: closed, computed ahead of its opening, closed again; and what stands in its way."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import transaction

from billing import clock
from billing.budgets import Budget
from billing.models import Hold
from cacheplane.access import gates
from cacheplane.access.models import Organization, Tier
from cacheplane.caching import lifecycle
from cacheplane.caching.lifetimes import Auto, Fixed, Scheduled
from cacheplane.caching.models import ACTIVE, EXPIRED, PENDING, CacheObject
from cacheplane.caching.schedules import Written
from tests.domain.caching.conftest import CREATION, STORAGE, Owner, at_least
from workers import expiry

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("books")]

LEAD = timedelta(seconds=60)


class Day:
    """One instant, to which all windows and ends of a test are relative: a minute may end while it runs."""

    def __init__(self) -> None:
        self.at = clock.now()

    def window(self, opens_in: float, closes_in: float) -> Scheduled:
        """Each day from some hours from now to some hours from now, in whole minutes."""
        opens_at, closes_at = (f"{self.minute(hours):%H:%M}" for hours in (opens_in, closes_in))
        return Scheduled(windows=(Written(days="mon-sun", from_=opens_at, to=closes_at, tz="UTC"),))

    def minute(self, hours: float) -> datetime:
        """The whole minute that far from now."""
        return (self.at + timedelta(hours=hours)).replace(second=0, microsecond=0)


@pytest.fixture
def day() -> Day:
    return Day()


@pytest.fixture
def opens_soon(settings: Any) -> Callable[[], None]:
    """What opens within hours is due: as if it were a minute before."""

    def do() -> None:
        settings.CACHE_SCHEDULE_LEAD_SECONDS = 4 * 3600

    return do


def due(owner: Owner, row: CacheObject) -> None:
    """The tick's next look finds it, as it does when its time has come."""
    CacheObject.objects.filter(id=row.id).update(reopen_at=clock.now())


def test_outside_its_windows_nothing_is_computed_and_nothing_costs(owner: Owner, day: Day) -> None:
    row = owner.pending(day.window(3, 5))
    opens_at = day.minute(3)
    assert (row.status, row.hold_reference, row.reopen_at) == (EXPIRED, None, opens_at - LEAD)
    [told] = owner.events(row, "schedule_closed")
    assert datetime.fromisoformat(told["next_open_at"]) == opens_at
    assert "storage ends" in told["why"]
    for _ in range(2):
        expiry.open_scheduled()
        expiry.expire()
    assert owner.status(row) == EXPIRED
    assert owner.kinds(row) == ["schedule_closed"]
    assert not Hold.objects.filter(organization_id=owner.organization_id).exists()
    assert owner.spent("creation", "storage") == 0


def test_within_a_window_it_lives_until_that_closes(owner: Owner, day: Day) -> None:
    row = owner.pending(day.window(-1, 2))
    closes_at = day.minute(2)
    assert (row.status, row.expired_at) == (PENDING, closes_at)
    row = owner.compute(row)
    assert (row.status, row.expired_at) == (ACTIVE, closes_at)
    assert row.segment is not None and row.segment.ends_at == closes_at
    assert row.reopen_at == day.minute(23) - LEAD
    assert row.precompute_seconds is not None


def test_ahead_of_an_opening_it_is_computed_and_paid_again(
    owner: Owner, opens_soon: Callable[[], None], day: Day
) -> None:
    row = owner.pending(day.window(3, 5))
    opens_soon()
    due(owner, row)
    for _ in range(2):
        expiry.open_scheduled()
    row = owner.read(row)
    closes_at = day.minute(5)
    assert (row.status, row.expired_at) == (PENDING, closes_at)
    [told] = owner.events(row, "schedule_opened")
    assert told["closes_at"] == closes_at.isoformat()
    assert (told["recreation_cost"], "computed in time" in told["why"]) == ("0.024000000", True)
    row = owner.compute(row)
    assert (row.status, row.expired_at) == (ACTIVE, closes_at)
    assert owner.spent("creation") == CREATION
    assert row.reopen_at == day.minute(27) - timedelta(hours=4)


def test_at_the_close_it_ends_and_its_storage_with_it(owner: Owner, day: Day) -> None:
    row = owner.active(day.window(-1, 2))
    for _ in range(2):
        # As if the window had just closed.
        owner.pass_time(row, minutes=120)
        assert owner.status(row) == EXPIRED
        expiry.expire()
        row = owner.read(row)
        assert row.status == EXPIRED
        [told] = owner.events(row, "schedule_closed")[-1:]
        assert datetime.fromisoformat(told["next_open_at"]) > clock.now()
    assert owner.kinds(row).count("schedule_closed") == 1
    assert owner.spent("storage") % STORAGE == 0
    assert owner.spent("storage") > 0


def test_each_opening_is_paid_once_and_the_bill_is_that_of_its_minutes(owner: Owner, day: Day) -> None:
    row = owner.active(day.window(-1, 2))
    for lives in (1, 2, 3):
        assert owner.spent("creation") == lives * CREATION
        lived = owner.lived(row)
        owner.pass_time(row, minutes=125)
        before = owner.spent("storage")
        expiry.expire()
        assert owner.spent("storage") - before == -(-lived // timedelta(minutes=1)) * STORAGE
        due(owner, row)
        expiry.open_scheduled()
        row = owner.compute(row)


def test_a_window_that_went_by_while_no_worker_ran_is_not_made_up_for(owner: Owner, day: Day) -> None:
    row = owner.pending(day.window(3, 5))
    due(owner, row)
    expiry.open_scheduled()
    row = owner.read(row)
    assert row.status == EXPIRED
    assert row.reopen_at == day.minute(3) - LEAD
    assert owner.kinds(row) == ["schedule_closed"]


def test_in_the_middle_of_a_window_a_late_worker_opens_it_until_the_same_close(
    owner: Owner, day: Day
) -> None:
    row = owner.active(day.window(-1, 2))
    lifecycle.expire_now(owner.organization_id, row.id, actor="ada")
    expiry.open_scheduled()
    assert owner.status(row) == EXPIRED, "who ended it by hand ended this window"
    due(owner, row)
    expiry.open_scheduled()
    row = owner.read(row)
    assert (row.status, row.expired_at) == (PENDING, day.minute(2))


def test_without_money_it_stays_closed_says_so_and_waits(new_owner: Callable[..., Owner], day: Day) -> None:
    poor = new_owner(money="0.03")
    row = poor.active(day.window(-1, 2))
    poor.pass_time(row, minutes=121)
    expiry.expire()
    for _ in range(3):
        due(poor, row)
        expiry.open_scheduled()
        expiry.open_scheduled()
    row = poor.read(row)
    assert row.status == EXPIRED
    told = poor.events(row, "schedule_refused")
    assert len(told) == 3, "each time once: the next look waits"
    assert row.reopen_at is not None
    assert at_least(row.reopen_at + timedelta(seconds=4), clock.now() + timedelta(seconds=600))
    assert told[-1]["retry_at"] == row.reopen_at.isoformat()
    assert told[-1]["why"].startswith("It could not be opened: 0.029")
    poor.recharge("10")
    due(poor, row)
    expiry.open_scheduled()
    assert poor.compute(row).status == ACTIVE


@pytest.mark.parametrize("way", ["suspended", "gate", "room", "budget"])
def test_what_a_creation_would_not_be_allowed_is_not_opened(owner: Owner, way: str, day: Day) -> None:
    budget = Budget(amount=CREATION + STORAGE, per="total") if way == "budget" else None
    row = owner.active(day.window(-1, 2), budget=budget)
    owner.pass_time(row, minutes=121)
    expiry.expire()
    organization = Organization.objects.get(id=owner.organization_id)
    if way == "suspended":
        Organization.objects.filter(id=organization.id).update(state="suspended")
    if way == "gate":
        gates.close_for(organization, feature="context_caching", reason="test", operator="ada")
    if way == "room":
        Tier.objects.filter(slug="tier5").update(cached_tokens_max=999)
    due(owner, row)
    expiry.open_scheduled()
    assert owner.status(row) == EXPIRED
    [told] = owner.events(row, "schedule_refused")
    words = {"suspended": "not active", "gate": "not open", "room": "too long", "budget": "budget.amount"}
    assert words[way] in told["why"]
    assert owner.spent("creation") == CREATION


def test_a_refusal_near_the_close_waits_for_the_next_window(owner: Owner, day: Day) -> None:
    row = owner.active(day.window(-1, 2))
    owner.pass_time(row, minutes=121)
    expiry.expire()
    owner.change(row, lifetime=day.window(-1, 0.1))
    expiry_row = owner.read(row)
    assert expiry_row.status == PENDING
    lifecycle.expire_now(owner.organization_id, row.id, actor="ada")
    Organization.objects.filter(id=owner.organization_id).update(state="suspended")
    due(owner, row)
    expiry.open_scheduled()
    row = owner.read(row)
    assert row.reopen_at is not None and row.reopen_at - clock.now() > timedelta(hours=22)


def test_a_call_moves_no_end_of_a_schedule(owner: Owner, day: Day) -> None:
    row = owner.active(day.window(-1, 2))
    until = row.expired_at
    assert owner.call(row, reset_seconds=9000).expired_at == until
    owner.pass_time(row, minutes=121)
    assert owner.call(row, is_hit=False, reset_seconds=9000).status_at(clock.now()) == EXPIRED


def test_put_gives_a_schedule_and_takes_it_away(owner: Owner, day: Day) -> None:
    row = owner.active(Fixed(ttl_seconds=3600))
    row = owner.change(row, lifetime=day.window(3, 5))
    assert (row.status, row.ttl_policy) == (EXPIRED, "schedule")
    assert owner.kinds(row)[-2:] == ["expired", "schedule_closed"]
    row = owner.change(row, lifetime=day.window(-1, 2))
    assert (row.status, row.expired_at) == (PENDING, day.minute(2))
    row = owner.change(owner.compute(row), lifetime=day.window(-2, 1))
    assert (row.status, row.expired_at) == (ACTIVE, day.minute(1))
    row = owner.change(row, lifetime=Auto(cap_seconds=3600))
    assert (row.schedule, row.reopen_at, row.ttl_policy) == (None, None, "auto")
    owner.pass_time(row, minutes=30)
    expiry.expire()
    expiry.open_scheduled()
    assert owner.status(row) == EXPIRED


def test_deleting_ends_its_openings(owner: Owner, opens_soon: Callable[[], None], day: Day) -> None:
    row = owner.pending(day.window(3, 5))
    with transaction.atomic():
        lifecycle.delete(owner.organization_id, row.id, actor="ak-1")
    opens_soon()
    expiry.open_scheduled()
    assert not CacheObject.objects.filter(id=row.id).exists()
    assert owner.spent("creation") == Decimal(0)


def test_a_long_precompute_is_begun_sooner(owner: Owner, day: Day) -> None:
    row = owner.pending(day.window(3, 5))
    CacheObject.objects.filter(id=row.id).update(precompute_seconds=1200)
    due(owner, row)
    expiry.open_scheduled()
    row = owner.read(row)
    assert row.reopen_at == day.minute(3) - LEAD - timedelta(minutes=20)
