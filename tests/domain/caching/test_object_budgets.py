"""A cache object's budget: its storage stops before it is passed, and everything that moves the end heeds it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import transaction

from billing import accounts, clock, price_book, price_tiers
from billing.budgets import Budget
from cacheplane.caching import budgets, changes, lifecycle
from cacheplane.caching.lifetimes import Auto, Fixed
from cacheplane.caching.models import ACTIVE, EXPIRED, PENDING
from cacheplane.errors import InvalidRequest
from tests.domain.caching.conftest import CREATION, STORAGE, Owner, at_least
from workers import expiry

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("books")]

MINUTE = timedelta(minutes=1)


def total(minutes: int, *, creations: int = 1, more: str = "0") -> Budget:
    return Budget(amount=creations * CREATION + minutes * STORAGE + Decimal(more), per="total")


@pytest.mark.parametrize("more", ["0", "0.004999999"])
def test_storage_stops_at_the_last_minute_that_it_pays(owner: Owner, more: str) -> None:
    row = owner.active(Fixed(ttl_seconds=3600), budget=total(7, more=more))
    assert owner.lived(row) == 7 * MINUTE
    assert row.wanted_until is not None and row.wanted_until > row.expired_at + timedelta(minutes=50)
    owner.pass_time(row, minutes=20)
    assert owner.status(row) == EXPIRED
    expiry.expire()
    assert owner.spent("creation", "storage") == CREATION + 7 * STORAGE
    [told] = owner.events(row, "budget_reached")
    assert (told["spent"], told["budget_per"]) == ("0.059000000", "total")
    assert "beyond it" in told["why"]


def test_one_that_pays_all_changes_nothing(owner: Owner) -> None:
    row = owner.active(Fixed(ttl_seconds=600), budget=total(10))
    assert row.wanted_until is None
    owner.pass_time(row, minutes=20)
    expiry.expire()
    assert "budget_reached" not in owner.kinds(row)
    assert owner.spent("creation", "storage") == CREATION + 10 * STORAGE


def test_a_creation_that_it_cannot_pay_is_refused(owner: Owner) -> None:
    with pytest.raises(InvalidRequest) as refused:
        owner.pending(budget=Budget(amount=CREATION, per="month"))
    assert refused.value.message == (
        "Invalid request: budget.amount: got 0.024000000 a month, of which 0.000000000 is spent, takes 0.029000000 "
        "more for a creation and its first minute"
    )
    assert owner.pending(budget=total(1)).status == PENDING


def test_a_later_end_is_bound_by_it_too(owner: Owner) -> None:
    row = owner.active(Fixed(ttl_seconds=120), budget=total(7))
    owner.pass_time(row, minutes=1)
    row = owner.change(row, lifetime=Fixed(ttl_seconds=3600))
    assert owner.lived(row) == 7 * MINUTE
    assert owner.events(row, "extended")[-1]["wanted_until"] == row.wanted_until.isoformat()
    row = owner.call(row, reset_seconds=7200)
    assert owner.lived(row) == 7 * MINUTE


def test_a_larger_one_gives_the_wanted_end_back_and_a_smaller_one_takes_it(owner: Owner) -> None:
    row = owner.active(Fixed(ttl_seconds=3600), budget=total(7))
    wanted = row.wanted_until
    row = owner.change(row, budget=total(30))
    assert owner.lived(row) == 30 * MINUTE
    row = owner.change(row, budget=total(600))
    assert (row.expired_at, row.wanted_until) == (wanted, None)
    row = owner.change(row, is_budget_dropped=True)
    assert (row.expired_at, row.budget_amount, row.budget_per) == (wanted, None, "")
    owner.pass_time(row, minutes=10)
    row = owner.change(row, budget=total(3))
    assert row.status_at(clock.now()) == EXPIRED
    expiry.expire()
    assert owner.kinds(row)[-1] == "budget_reached"
    assert owner.spent("storage") == 11 * STORAGE, "what was stored before the budget is owed"


def test_all_its_lives_count(owner: Owner) -> None:
    row = owner.active(Fixed(ttl_seconds=120), budget=total(7, creations=2))
    owner.pass_time(row, minutes=3)
    expiry.expire()
    row = owner.change(row, lifetime=Fixed(ttl_seconds=3600))
    row = owner.compute(row)
    assert owner.lived(row) == 5 * MINUTE
    owner.pass_time(row, minutes=6)
    expiry.expire()
    assert owner.spent("creation", "storage") == 2 * CREATION + 7 * STORAGE
    with pytest.raises(InvalidRequest):
        owner.change(row, lifetime=Fixed(ttl_seconds=60))
    assert owner.status(row) == EXPIRED


def test_lost_bytes_do_not_renew_it(owner: Owner) -> None:
    row = owner.active(Fixed(ttl_seconds=3600), budget=total(7))
    assert row.kv_state_id is not None
    lifecycle.kv_lost(owner.organization_id, row.id, kv_id=row.kv_state_id, reason="test", actor="test")
    row = owner.compute(row)
    assert owner.lived(row) == 6 * MINUTE, "the first life has taken a minute"
    assert row.wanted_until is not None


def test_auto_is_bound_by_it(owner: Owner) -> None:
    row = owner.active(Auto(cap_seconds=86_400), budget=total(6))
    assert owner.lived(row) == 5 * MINUTE
    owner.pass_time(row, minutes=3)
    row = owner.call(row)
    assert owner.lived(row) == 6 * MINUTE
    for _ in range(2):
        owner.pass_time(row, minutes=1)
        assert owner.lived(owner.call(row)) == 6 * MINUTE
    owner.pass_time(row, minutes=5)
    expiry.expire()
    assert owner.kinds(row)[-1] == "budget_reached"
    assert owner.spent("creation", "storage") == CREATION + 6 * STORAGE


def test_money_that_runs_out_first_is_no_matter_of_the_budget(new_owner: Callable[..., Owner]) -> None:
    poor = new_owner(money=str(CREATION + 3 * STORAGE))
    row = poor.active(Fixed(ttl_seconds=3600), budget=total(7))
    poor.pass_time(row, minutes=10)
    expiry.expire()
    assert poor.spent("storage") == 3 * STORAGE
    assert "budget_reached" not in poor.kinds(row)
    [told] = poor.events(row, "expired")
    assert "balance" in told["why"]
    assert told["ended_at"] == (poor.read(row).activated_at + 3 * MINUTE).isoformat()


def test_a_price_that_was_announced_moves_the_end_before_it_holds(owner: Owner) -> None:
    at = clock.now()
    for meter, price in (("creation", "24"), ("storage", "5")):
        price_book.publish(
            meter=meter, model="other", currency="CNY", per_million=Decimal(price), valid_from=at
        )
    row = owner.active(Fixed(ttl_seconds=7200), model="other", budget=total(20))
    assert owner.lived(row) == 20 * MINUTE
    assert changes.keep_to_budgets() == 1, "the book has just been written"
    assert owner.kinds(row)[-1] == "active"
    with transaction.atomic():
        price_book.publish(
            meter="storage",
            model="other",
            currency="CNY",
            per_million=Decimal(50),
            valid_from=clock.now() + timedelta(seconds=310),
        )
    from billing import storage

    storage.reprice()
    expiry.keep_to_budgets()
    row = owner.read(row)
    # Six minutes start before the new price; what is left pays one of ten times the price.
    assert owner.lived(row) == 7 * MINUTE
    assert "price of storage" in owner.events(row, "repriced")[0]["why"]
    assert row.status == ACTIVE


def test_a_tier_with_a_price_of_its_own_moves_the_end_when_it_is_given(owner: Owner) -> None:
    at = clock.now()
    earlier, later = at - timedelta(hours=1), at + timedelta(seconds=310)
    for meter, price, tier, begins in (
        ("creation", "24", "", earlier),
        ("storage", "5", "", earlier),
        ("storage", "50", "tier4", later),
    ):
        price_book.publish(
            meter=meter,
            model="other",
            currency="CNY",
            tier=tier,
            per_million=Decimal(price),
            valid_from=begins,
        )
    row = owner.active(Fixed(ttl_seconds=7200), model="other", budget=total(20))
    assert owner.lived(row) == 20 * MINUTE
    owner.pass_time(row, minutes=4.5)
    with transaction.atomic():
        account = accounts.lock(owner.organization_id)
        price_tiers.change(account, tier="tier4", at=account.locked_at)
    expiry.keep_to_budgets()
    # Ten minutes start before the tier's price holds, at 9:40; the other ten pay one of ten times the price.
    assert owner.lived(owner.read(row)) == 11 * MINUTE


def test_what_was_spent_is_told_to_the_minute(owner: Owner) -> None:
    row = owner.active(Fixed(ttl_seconds=3600), budget=total(30))
    owner.pass_time(row, minutes=4.5)
    with transaction.atomic():
        account = accounts.lock(owner.organization_id)
        found = budgets.reached(account, owner.read(row), at=account.locked_at)
    assert found is not None and found.spent == CREATION + 5 * STORAGE
    assert at_least(clock.now(), owner.read(row).activated_at + timedelta(minutes=4.5))
