"""A tier's own prices, whose they are from when on, and that what was used keeps its price."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import IntegrityError, connection, transaction

from billing import audit, charging, clock, plain_calls, price_book
from billing.errors import NoPrice, PriceRefused
from billing.models import AccountPriceTier, BillingAccount, Price, PricedItem, StorageLine
from tests.domain.billing.conftest import FAMILY, MODEL, Payer, make_payer

pytestmark = pytest.mark.django_db

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@pytest.fixture(autouse=True)
def _nothing_is_remembered():
    price_book.forget()
    yield
    price_book.forget()


def announce(meter: str, per_million: str, *, tier: str, start, model: str = FAMILY) -> Price:
    return price_book.publish(
        meter=meter,
        model=model,
        currency="CNY",
        tier=tier,
        per_million=Decimal(per_million),
        valid_from=start,
    )


@pytest.fixture
def start(db):
    """An hour ahead, from when on tier3 pays half for storage, calls and prompts."""
    start = clock.now() + HOUR
    announce("storage", "2.5", tier="tier3", start=start)
    announce("call", "10000", tier="tier3", start=start)
    announce("prompt", "6", tier="tier3", start=start, model=MODEL)
    return start


@pytest.fixture
def rich(start) -> Payer:
    payer = make_payer(recharged="100", at=clock.now())
    payer.change_tier("tier3")
    return payer


@pytest.fixture
def poor(start) -> Payer:
    return make_payer(recharged="100", at=clock.now())


def price(payer: Payer, meter: str, at, model: str = FAMILY) -> Decimal:
    found = price_book.price_at(
        organization_id=payer.organization_id, meter=meter, model=model, currency="CNY", at=at
    )
    return found.per_million


# --- Which price ----------------------------------------------------------------------------------------------


def test_the_tiers_price_wins_from_its_start_on_and_for_that_tier_alone(rich, poor, start):
    before = start - timedelta(microseconds=1)
    assert [price(rich, "storage", at) for at in (before, start)] == [5, Decimal("2.5")]
    assert [price(poor, "storage", at) for at in (before, start)] == [5, 5]
    assert price(rich, "creation", start) == 24


def test_what_a_tier_pays_follows_the_tier_and_the_past_stays(rich, start):
    rich.change_tier("tier4", at=start + HOUR)
    rich.change_tier("tier3", at=start + 2 * HOUR)
    assert [price(rich, "call", start + hours * HOUR) for hours in (0, 1, 2)] == [10_000, 20_000, 10_000]


def test_quotes_and_charges_are_at_the_callers_own_price(rich, poor, start):
    for payer, fee, prompt in ((rich, "0.01", "0.000006"), (poor, "0.02", "0.000012")):
        payer.at = start + MINUTE
        quoted = charging.cached_call_quote(
            organization_id=payer.organization_id,
            model=MODEL,
            family=FAMILY,
            currency="CNY",
            prompt_tokens=1000,
            completion_tokens=0,
            at=payer.at,
        )
        payer.call(prompt=1000, subject="cache-1")
        assert payer.spent("call") == Decimal(fee)
        assert quoted == payer.spent("call") + payer.spent("prompt") == Decimal(fee) + 1000 * Decimal(prompt)


def test_a_call_pays_the_price_of_the_tier_that_it_started_on(rich, start):
    rich.at = start + MINUTE
    reference = rich.hold("1")
    rich.change_tier("tier4", at=start + 2 * MINUTE)
    began, rich.at = rich.at, start + 3 * MINUTE
    rich.settle_call(reference, subject="cache-1", started_at=began)
    assert rich.spent("call") == Decimal("0.01")


# --- Announcing -----------------------------------------------------------------------------------------------


def test_a_tiers_first_price_is_announced_like_any_change():
    with pytest.raises(PriceRefused, match="ahead"):
        announce("storage", "2.5", tier="tier3", start=clock.now() + timedelta(seconds=299))
    item = PricedItem.objects.create(meter="storage", model=FAMILY, currency="CNY", tier="tier3")
    with pytest.raises(IntegrityError, match="300 seconds ahead"), transaction.atomic():
        Price.objects.create(priced_item=item, per_million=1, valid_from=clock.now())


def test_what_is_new_to_all_may_start_at_once_for_a_tier():
    payer = make_payer(at=clock.now())
    payer.change_tier("tier3")
    at = clock.now()
    announce("prompt", "3", tier="tier3", start=at, model="brand-new")
    assert price(payer, "prompt", at, "brand-new") == 3
    stranger = make_payer(at=at)
    with pytest.raises(NoPrice):
        price(stranger, "prompt", at, "brand-new")


def test_a_tiers_price_that_ends_gives_way_to_the_price_for_all(rich, start):
    [storage] = Price.objects.filter(priced_item__meter="storage", priced_item__tier="tier3")
    for refused in (clock.now() + timedelta(seconds=299), start):
        with pytest.raises(PriceRefused):
            price_book.end(storage, at=refused)
    price_book.end(storage, at=start + 2 * MINUTE)
    rich.at = start
    rich.store("cache-1", tokens=1_000_000, seconds=300)
    assert commitment(rich) == 2 * Decimal("2.5") + 3 * 5
    assert price(rich, "storage", start + 2 * MINUTE) == 5
    announce("storage", "1", tier="tier3", start=start + 10 * MINUTE)
    assert price(rich, "storage", start + 10 * MINUTE) == 1


# --- What is remembered ---------------------------------------------------------------------------------------


def remembered(at) -> bool:
    return price_book.remembered(meter="call", model=FAMILY, currency="CNY", at=at) is not None


def test_a_price_for_all_is_remembered_until_a_tiers_own_begins_and_not_after(rich, poor, start):
    price(poor, "call", start - MINUTE)
    assert not remembered(start - MINUTE), "nobody can know yet what is announced until then"
    price(poor, "call", clock.now())
    assert remembered(clock.now())
    for payer in (rich, poor):
        price(payer, "call", start + MINUTE)
        assert not remembered(start + MINUTE)


def test_a_tiers_price_that_is_near_ends_what_is_remembered():
    start = clock.now() + price_book.NOTICE + timedelta(seconds=2)
    announce("call", "10000", tier="tier3", start=start)
    payer = make_payer(at=clock.now())
    price(payer, "call", clock.now())
    known = price_book.remembered(meter="call", model=FAMILY, currency="CNY", at=clock.now())
    assert known is not None and known.known_until < start


def test_a_call_is_plain_without_prices_of_tiers_and_never_with_them(rich, poor, start):
    for payer in (rich, poor):
        payer.locked()
        for at, is_plain in ((clock.now(), True), (start + MINUTE, False)):
            for meter, model in (("prompt", MODEL), ("completion", MODEL)):
                price(payer, meter, at, model)
            quote = plain_calls.quote(
                payer.organization_id,
                model=MODEL,
                fee_of_family=None,
                prompt_tokens=10,
                completion_tokens=10,
                at=at,
            )
            assert (quote is not None) == is_plain


# --- Storage --------------------------------------------------------------------------------------------------


def lines(payer: Payer) -> list[tuple[int, int, Decimal]]:
    rows = StorageLine.objects.filter(segment__organization_id=payer.organization_id)
    return list(rows.order_by("first_minute").values_list("first_minute", "end_minute", "unit_price"))


def commitment(payer: Payer) -> Decimal:
    return BillingAccount.objects.get(organization_id=payer.organization_id).storage_commitment


def test_storage_changes_price_as_the_tier_changes(rich, start):
    rich.at = start
    rich.store("cache-1", tokens=1_000_000, seconds=600)
    assert commitment(rich) == 25
    rich.change_tier("tier4", at=start + 3 * MINUTE + timedelta(seconds=1))
    assert commitment(rich) == 4 * Decimal("2.5") + 6 * 5, "the minute that has begun keeps its price"
    rich.pass_time(minutes=7).close("cache-1")
    assert lines(rich) == [(0, 4, Decimal("0.0000025")), (4, 7, Decimal("0.000005"))]
    assert rich.spent("storage") == 25


def test_the_end_of_an_override_is_reckoned_with_before_it_comes(rich, start):
    rich.at = start
    rich.change_tier("tier3", at=start, hours=1, then="tier0")
    rich.store("cache-1", tokens=1_000_000, seconds=2 * 3600)
    assert rich.exhaust_at is None or rich.exhaust_at > start
    assert commitment(rich) == 60 * Decimal("2.5") + 60 * 5
    minutes = 40
    assert rich.exhaust_at == start + minutes * MINUTE, "100 pays 40 minutes at 2.5"


def test_a_better_tier_makes_the_money_last_longer(poor, start):
    poor.at = start
    poor.store("cache-1", tokens=1_000_000, seconds=3600)
    assert poor.exhaust_at == start + 20 * MINUTE
    poor.change_tier("tier3", at=start + 10 * MINUTE)
    assert poor.exhaust_at == start + 30 * MINUTE
    poor.pass_time(hours=1).settle()
    assert poor.spent("storage") == 100


def test_a_change_of_tier_after_the_money_ran_out_revives_nothing(poor, start):
    poor.at = start
    poor.store("cache-1", tokens=1_000_000, seconds=3600)
    poor.change_tier("tier3", at=start + 25 * MINUTE)
    poor.pass_time(minutes=25)
    assert not poor.is_stored("cache-1")
    assert poor.spent("storage") == 100


def test_a_line_is_of_one_tier_also_where_no_tier_has_a_price_of_its_own():
    payer = make_payer(recharged="100", at=clock.now() - 10 * MINUTE)
    payer.store("cache-1", tokens=1_000, seconds=3600)
    payer.change_tier("tier3")
    payer.at = clock.now() + 10 * MINUTE
    payer.close("cache-1")
    assert [(first, end) for first, end, _ in lines(payer)][0][0] == 0
    assert len(lines(payer)) == 2


# --- The history ----------------------------------------------------------------------------------------------


def history(payer: Payer) -> list[str]:
    rows = AccountPriceTier.objects.filter(organization_id=payer.organization_id).order_by("valid_from")
    return [row.tier for row in rows]


def test_the_same_tier_again_changes_nothing_and_a_plan_is_replaced(payer):
    assert payer.change_tier("tier3")
    assert not payer.change_tier("tier3")
    assert payer.change_tier("tier3", hours=1, then="tier0")
    assert history(payer) == ["tier3", "tier3", "tier0"]
    assert payer.change_tier("tier4")
    assert history(payer) == ["tier3", "tier3", "tier4"]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE billing_accountpricetier SET tier = 'tier5'",
        "UPDATE billing_accountpricetier SET valid_from = valid_from - interval '1 day'",
        "UPDATE billing_accountpricetier SET valid_to = now() - interval '1 day'",
        "DELETE FROM billing_accountpricetier",
    ],
)
def test_the_database_refuses_to_rewrite_what_tier_an_account_had(payer, change):
    AccountPriceTier.objects.create(
        organization_id=payer.organization_id, tier="tier1", valid_from=clock.now() - 2 * 24 * HOUR
    )
    with pytest.raises(IntegrityError, match="never changed"), transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(change)


def test_an_account_has_one_tier_at_a_time_and_others_have_theirs(payer, new_payer):
    payer.change_tier("tier3")
    other = new_payer()
    other.change_tier("tier4")
    with pytest.raises(IntegrityError, match="price_tiers_do_not_overlap"), transaction.atomic():
        AccountPriceTier.objects.create(
            organization_id=payer.organization_id, tier="tier1", valid_from=clock.now() + HOUR
        )


def test_a_charge_at_another_tiers_price_is_found(rich, start):
    rich.at = start + MINUTE
    rich.call(subject="cache-1")
    rich.store("cache-1", tokens=1_000, seconds=600)
    rich.pass_time(minutes=5).close("cache-1")
    assert audit.violations(clock.now()) == []
    assert found_after(rich, "tier = 'tier4'") == {audit.RERATED}
    assert found_after(rich, f"valid_to = '{start + 3 * MINUTE}'") == {audit.RERATED}


def found_after(payer: Payer, change: str) -> set[str]:
    """The promises that are broken by such a change to the history, which is then undone."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE billing_accountpricetier DISABLE TRIGGER USER")
        cursor.execute(f"UPDATE billing_accountpricetier SET {change}")
        found = {violation.invariant for violation in audit.violations(clock.now())}
        transaction.set_rollback(True)
    return found
