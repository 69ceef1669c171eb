"""What was used and paid, by hand and by every dimension."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from billing import clock, price_book, price_list, usage
from billing.accounts import Voucher
from billing.models import AccountPriceTier
from tests.domain.billing.conftest import FAMILY, MODEL, NOON, make_payer

pytestmark = pytest.mark.django_db

DAYS = timedelta(days=1)
SHANGHAI, UTC = "Asia/Shanghai", "UTC"


def sums(payer, *group_by: str, tz: str = UTC, start=NOON - DAYS, end=NOON + 9 * DAYS):
    return usage.sums(payer.organization_id, group_by=group_by, start=start, end=end, tz=tz)


@pytest.fixture
def used(payer):
    """At noon and at 17:00 UTC, which is the next day in Shanghai."""
    payer.create("cache-a", tokens=1000, seconds=600)
    payer.call(subject="cache-a", prompt=1100, cached=1000, completion=7)
    payer.pass_time(hours=5)
    payer.close("cache-a")
    payer.call(prompt=500, completion=20, model="moonshot-v1-128k")
    return payer


def test_all_in_one(used):
    [whole] = sums(used)
    assert whole.group == {}
    assert (whole.creation_tokens, whole.storage_token_minutes, whole.calls) == (1000, 10_000, 1)
    assert (whole.prompt_tokens, whole.cached_tokens, whole.completion_tokens) == (600, 1000, 27)
    assert whole.amount == 100 - used.balance.cash
    by_hand = ["0.024", "0.1", "0.02", "0.0012", "0.000084", "0.03", "0.0012"]
    assert whole.amount == sum(map(Decimal, by_hand))
    assert (whole.reversed, whole.waived) == (0, 0)


@pytest.mark.parametrize(
    "group_by", [["day"], ["model"], ["cache"], ["key"], ["meter"], ["day", "meter", "key"]]
)
def test_the_groups_together_are_all(used, group_by):
    [whole] = sums(used)
    groups = sums(used, *group_by)
    assert len(groups) == len({tuple(g.group.values()) for g in groups})
    for name in ("amount", "prompt_tokens", "cached_tokens", "storage_token_minutes", "calls"):
        assert sum(getattr(g, name) for g in groups) == getattr(whole, name)


def test_days_are_those_of_the_zone(used):
    assert [(g.group["day"], g.prompt_tokens) for g in sums(used, "day", tz=UTC)] == [("2024-07-15", 600)]
    assert [(g.group["day"], g.prompt_tokens) for g in sums(used, "day", tz=SHANGHAI)] == [
        ("2024-07-15", 100),
        ("2024-07-16", 500),
    ]


def test_by_model_and_meter(used):
    told = {(g.group["model"], g.group["meter"]): g.amount for g in sums(used, "model", "meter")}
    assert told == {
        (FAMILY, "call"): Decimal("0.02"),
        (FAMILY, "creation"): Decimal("0.024"),
        (FAMILY, "storage"): Decimal("0.1"),
        (MODEL, "prompt"): Decimal("0.0012"),
        (MODEL, "completion"): Decimal("0.000084"),
        ("moonshot-v1-128k", "prompt"): Decimal("0.03"),
        ("moonshot-v1-128k", "completion"): Decimal("0.0012"),
    }


def test_what_is_of_no_object_and_of_no_key_is_told_so(used):
    assert [g.group["cache"] for g in sums(used, "cache")] == [None, "cache-a"]
    assert {g.group["key"]: g.storage_token_minutes for g in sums(used, "key")} == {None: 10_000, "key-1": 0}


def test_a_correction_is_told_beside_what_was_paid(used):
    [fee] = used.entries(kind="call")
    used.correct(fee)
    [whole] = sums(used)
    assert whole.reversed == Decimal("0.02")
    assert whole.amount - whole.reversed == 100 - used.balance.cash


def test_a_charge_that_several_purses_paid_is_counted_once(payer):
    payer.voucher("0.01")
    payer.call(prompt=1000, completion=10)
    [whole] = sums(payer)
    assert (whole.prompt_tokens, whole.completion_tokens) == (1000, 10)
    assert whole.amount == Decimal("0.01212")


def test_what_was_waived_was_not_paid(new_payer):
    poor = new_payer(recharged="0.01")
    poor.call(hold="0.001", prompt=1000)
    [whole] = sums(poor)
    assert (whole.prompt_tokens, whole.amount, whole.waived) == (1000, Decimal("0.01"), Decimal("0.002"))


def test_the_end_is_not_included(used):
    assert sums(used, start=NOON - DAYS, end=NOON)[0].calls == 0
    assert sums(used, start=NOON, end=NOON + timedelta(microseconds=1))[0].calls == 1


def test_nobody_elses_use_is_counted(used):
    assert sums(make_payer(recharged="1"), "meter") == []


# --- What is there, and what things cost -----------------------------------------------------------------------


def test_a_runway_is_what_is_available_over_what_is_burnt(new_payer):
    payer = new_payer(recharged="10")
    assert (payer.balance.storage_per_minute, payer.balance.runway_seconds) == (0, None)
    payer.store("cache-a", tokens=1000, seconds=600)
    payer.store("cache-b", tokens=500, seconds=60)
    # A minute of both is owed; 9.985 lasts 665 minutes and 40 seconds at 0.015 a minute.
    assert payer.balance.storage_per_minute == Decimal("0.015")
    assert payer.balance.runway_seconds == 9_985_000_000 * 60 // 15_000_000 == 39_940
    payer.pass_time(minutes=1)
    assert payer.balance.storage_per_minute == Decimal("0.01"), "the second one has ended by the clock"
    payer.pass_time(hours=1)
    assert payer.balance.runway_seconds is None


def test_nothing_available_is_no_runway(new_payer):
    payer = new_payer(recharged="0.01")
    payer.store("cache-a", tokens=1000, seconds=600)
    assert (payer.available, payer.balance.runway_seconds) == (0, 0)


def test_vouchers_stand_in_the_order_in_which_they_pay(payer):
    payer.voucher("1")
    payer.voucher("2", hours=48)
    payer.voucher("3", hours=24)
    payer.voucher("4", hours=1)
    payer.pass_time(hours=2)
    assert payer.balance.vouchers == (
        Voucher(amount=Decimal(3), expires_at=NOON + timedelta(hours=24)),
        Voucher(amount=Decimal(2), expires_at=NOON + timedelta(hours=48)),
        Voucher(amount=Decimal(1), expires_at=None),
    )


def listed(payer, *, at, currency: str = "CNY"):
    return price_list.listed(payer.organization_id, currency=currency, at=at)


def test_the_price_list_has_what_holds_and_what_is_announced(payer):
    at = clock.now()
    later = at + timedelta(days=2)
    price_book.publish(
        meter="call", model=FAMILY, currency="CNY", per_million=Decimal(30_000), valid_from=later
    )
    calls = [p for p in listed(payer, at=at) if p.meter == "call" and p.model == FAMILY]
    assert [(p.unit_price, p.valid_to, p.is_paid) for p in calls] == [
        (Decimal("0.02"), later, True),
        (Decimal("0.03"), None, False),
    ]
    storage = [p for p in listed(payer, at=at) if p.meter == "storage"]
    assert [(p.per_million, p.unit) for p in storage] == [(5, "token_minute")], "what has ended is not told"
    assert listed(payer, at=at, currency="XXX") == []


def test_a_tiers_own_price_is_told_to_that_tier_alone(payer):
    at = clock.now()
    own = price_book.publish(
        meter="call",
        model=FAMILY,
        currency="CNY",
        per_million=Decimal(10_000),
        valid_from=at + timedelta(days=1),
        tier="gold",
    )
    AccountPriceTier.objects.create(organization_id=payer.organization_id, tier="gold", valid_from=at)
    later = own.valid_from

    def calls(of, *, at):
        return [(p.tier, p.unit_price, p.is_paid) for p in listed(of, at=at) if p.meter == "call"]

    assert calls(payer, at=at) == [("", Decimal("0.02"), True), ("gold", Decimal("0.01"), False)]
    assert calls(payer, at=later) == [("", Decimal("0.02"), False), ("gold", Decimal("0.01"), True)]
    assert calls(make_payer(), at=later) == [("", Decimal("0.02"), True)]
