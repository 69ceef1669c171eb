"""An organization's budget: everything it keeps ends before creations and storage cost more."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from io import StringIO

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from billing import clock
from billing.budgets import Budget
from cacheplane.access.models import AuditEntry
from cacheplane.caching import changes
from cacheplane.caching.lifetimes import Auto, Fixed
from cacheplane.caching.models import ACTIVE, EXPIRED, CacheObject, OrganizationBudget
from cacheplane.errors import InvalidRequest
from tests.domain.caching.conftest import CREATION, STORAGE, Owner
from workers import expiry

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("books")]

MINUTE = timedelta(minutes=1)
HOUR = Fixed(ttl_seconds=3600)


def allow(owner: Owner, *, creations: int, minutes: int, per: str = "total") -> None:
    amount = creations * CREATION + minutes * STORAGE
    budget = Budget(amount=amount, per=per)
    changes.set_organization_budget(owner.organization_id, budget, operator="ada", reason="test")


def minutes(owner: Owner, row: CacheObject) -> int:
    return -(-owner.lived(row) // MINUTE)


@pytest.mark.parametrize("per", ["total", "month"])
def test_each_object_is_planned_within_what_the_others_leave(owner: Owner, per: str) -> None:
    allow(owner, creations=2, minutes=100, per=per)
    first = owner.active(HOUR)
    assert minutes(owner, first) == 60
    second = owner.active(HOUR)
    assert owner.lived(second) == 40 * MINUTE
    with pytest.raises(InvalidRequest) as refused:
        owner.pending(HOUR)
    assert refused.value.message.startswith("The organization's budget is 0.548000000 ")
    owner.pass_time(first, minutes=70)
    owner.pass_time(second, minutes=70)
    expiry.expire()
    assert owner.spent("creation", "storage") == 2 * CREATION + 100 * STORAGE
    assert "budget_reached" not in owner.kinds(first)
    [told] = owner.events(second, "budget_reached")
    assert told["spent"] == told["budget"] == "0.548000000"
    assert told["why"].startswith("Its organization's creations and storage")
    with pytest.raises(InvalidRequest):
        owner.change(second, lifetime=HOUR)
    assert owner.status(second) == EXPIRED


def test_what_waits_for_its_creation_is_reckoned_with(owner: Owner) -> None:
    allow(owner, creations=2, minutes=2)
    first, second = owner.pending(HOUR), owner.pending(HOUR)
    with pytest.raises(InvalidRequest):
        owner.pending(HOUR)
    for row in (first, second):
        row = owner.compute(row)
        assert (row.status, owner.lived(row)) == (ACTIVE, MINUTE)


def test_a_budget_that_comes_later_ends_all_within_the_minute_that_it_is_reached(owner: Owner) -> None:
    rows = [owner.active(HOUR) for _ in range(3)]
    wanted = [row.expired_at for row in rows]
    allow(owner, creations=3, minutes=30)
    assert [minutes(owner, row) for row in rows] == [10, 10, 10]
    assert [owner.read(row).wanted_until for row in rows] == wanted
    for row in rows:
        owner.pass_time(row, minutes=15)
        assert owner.status(row) == EXPIRED
    expiry.expire()
    assert owner.spent("creation", "storage") == 3 * CREATION + 30 * STORAGE
    assert [owner.kinds(row)[-1] for row in rows] == ["budget_reached"] * 3


def test_a_larger_one_or_none_gives_ends_back(owner: Owner) -> None:
    rows = [owner.active(HOUR) for _ in range(2)]
    wanted = [row.expired_at for row in rows]
    allow(owner, creations=2, minutes=10)
    allow(owner, creations=2, minutes=80)
    assert sorted(minutes(owner, row) for row in rows) == [20, 60]
    changes.set_organization_budget(owner.organization_id, None, operator="ada", reason="test")
    assert [owner.read(row).expired_at for row in rows] == wanted
    assert not OrganizationBudget.objects.exists()
    assert AuditEntry.objects.filter(action="organization.set_budget").count() == 3


def test_the_tighter_of_two_budgets_binds(owner: Owner) -> None:
    allow(owner, creations=1, minutes=20)
    row = owner.active(HOUR, budget=Budget(amount=CREATION + 5 * STORAGE, per="total"))
    assert owner.lived(row) == 5 * MINUTE
    row = owner.change(row, budget=Budget(amount=Decimal(10), per="total"))
    assert owner.lived(row) == 20 * MINUTE


def test_auto_is_bound_by_it(owner: Owner) -> None:
    allow(owner, creations=1, minutes=6)
    row = owner.active(Auto(cap_seconds=86_400))
    owner.pass_time(row, minutes=4)
    assert owner.lived(owner.call(row)) == 6 * MINUTE


def test_somebody_else_s_money_is_no_matter(owner: Owner, new_owner) -> None:
    allow(owner, creations=1, minutes=5)
    other = new_owner()
    assert minutes(other, other.active(HOUR)) == 60
    assert owner.lived(owner.active(HOUR)) == 5 * MINUTE


def test_an_operator_sets_it_by_a_command(owner: Owner) -> None:
    said = StringIO()
    call_command("set_budget", owner.organization_id, "12.5", "--reason", "pilot", stdout=said)
    assert said.getvalue() == f"{owner.organization_id} may spend 12.500000000 per month.\n"
    row = OrganizationBudget.objects.get(organization_id=owner.organization_id)
    assert (row.amount, row.per) == (Decimal("12.5"), "month")
    assert row.set_at <= clock.now()
    call_command("set_budget", owner.organization_id, "none", "--reason", "over", stdout=said)
    assert not OrganizationBudget.objects.exists()
    for wrong in (["org-nobody", "1", "--reason", "x"], [owner.organization_id, "1", "--reason", " "]):
        with pytest.raises(CommandError):
            call_command("set_budget", *wrong)
