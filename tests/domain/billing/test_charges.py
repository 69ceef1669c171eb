"""What a creation and a call cost, once each, and never more than there is."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from billing import charging
from billing.errors import HoldClosed, NoPrice
from billing.models import MeterEvent, Price, PricedItem

pytestmark = pytest.mark.django_db

FAMILY, MODEL = "moonshot-v1", "moonshot-v1-8k"
NOON = datetime(2024, 7, 15, 12, tzinfo=UTC)
STORAGE_HALVED = datetime(2024, 8, 6, 16, tzinfo=UTC)


# --- Quotes ---------------------------------------------------------------------------------------------------


def test_a_creation_is_quoted_with_its_first_minute(db):
    quote = charging.creation_quote(
        organization_id="org-x", model=FAMILY, tokens=35_000, currency="CNY", at=NOON
    )
    assert (quote.fee, quote.first_minute, quote.total) == (Decimal("0.84"), Decimal("0.35"), Decimal("1.19"))
    later = charging.creation_quote(
        organization_id="org-x", model=FAMILY, tokens=35_000, currency="CNY", at=STORAGE_HALVED
    )
    assert (later.fee, later.storage_per_minute) == (Decimal("0.84"), Decimal("0.175"))


def test_a_call_is_quoted_with_and_without_the_fee(db):
    tokens = {"prompt_tokens": 1000, "completion_tokens": 512, "currency": "CNY", "at": NOON}
    tokens["organization_id"] = "org-x"
    plain = charging.call_quote(model="moonshot-v1-128k", **tokens)
    assert plain == Decimal("0.09072")
    assert charging.cached_call_quote(model="moonshot-v1-128k", family=FAMILY, **tokens) == plain + Decimal(
        "0.02"
    )


def test_what_has_no_price_is_not_quoted(db):
    for model, at in [("unheard-of", NOON), (FAMILY, NOON - timedelta(days=30))]:
        with pytest.raises(NoPrice):
            charging.creation_quote(organization_id="org-x", model=model, tokens=1, currency="CNY", at=at)
    with pytest.raises(NoPrice):
        charging.creation_quote(organization_id="org-x", model=FAMILY, tokens=1, currency="USD", at=NOON)


# --- Creation -------------------------------------------------------------------------------------------------


def test_a_creation_is_charged_and_the_rest_of_its_hold_is_free(payer):
    charged = payer.create("cache-1", tokens=35_000)
    assert charged.total == Decimal("0.84")
    assert (payer.balance.held, payer.balance.owed) == (0, Decimal("0.35"))
    [event] = MeterEvent.objects.filter(meter="creation")
    assert (event.quantity, event.unit, event.subject, event.api_key_id) == (
        35_000,
        "token",
        "cache-1",
        "key-1",
    )


def test_the_same_activation_is_charged_once(payer):
    payer.create("cache-1", tokens=35_000)
    payer.close("cache-1")
    again = payer.create("cache-1", tokens=35_000)
    assert again.total == Decimal("0.84")
    assert payer.spent("creation") == Decimal("0.84")
    assert payer.balance.held == 0


def test_the_next_activation_is_charged_again(payer):
    payer.create("cache-1", tokens=35_000)
    payer.close("cache-1")
    payer.create("cache-1", tokens=35_000, key="cache-1:2")
    assert payer.spent("creation") == Decimal("1.68")


# --- Calls ----------------------------------------------------------------------------------------------------


def test_a_call_on_a_cache_object_pays_the_fee_and_what_was_not_cached(payer):
    charged = payer.call(
        prompt=36_000, cached=35_000, completion=500, subject="cache-1", model="moonshot-v1-128k"
    )
    assert [(line.meter, line.quantity, line.amount) for line in charged.lines] == [
        ("call", 1, Decimal("0.02")),
        ("prompt", 1000, Decimal("0.06")),
        ("completion", 500, Decimal("0.03")),
    ]
    assert charged.total == 100 - payer.available == Decimal("0.11")
    assert {entry.credit.kind for entry in payer.entries() if entry.kind != "recharge"} == {
        "revenue_call",
        "revenue_tokens",
    }


def test_a_call_without_a_cache_object_pays_no_fee(payer):
    charged = payer.call(prompt=1000, completion=1)
    assert [line.meter for line in charged.lines] == ["prompt", "completion"]


def test_tokens_that_an_engine_happens_to_remember_are_charged(payer):
    assert payer.call(prompt=1000, cached=900).total == Decimal("0.012")


def test_a_wholly_cached_prompt_and_no_answer_cost_the_fee_alone(payer):
    assert payer.call(prompt=35_000, cached=35_000, subject="cache-1").total == Decimal("0.02")


def test_a_call_that_used_nothing_costs_nothing(payer):
    assert payer.call().lines == ()
    assert payer.available == 100


def test_a_call_is_charged_once(payer):
    reference = payer.hold(1)
    first = payer.settle_call(reference, prompt=1000, completion=10, subject="cache-1")
    again = payer.settle_call(reference, prompt=1000, completion=10, subject="cache-1")
    assert again == first
    assert len(payer.entries()) == 4


def test_a_call_whose_hold_was_voided_is_free(payer):
    reference = payer.hold(1)
    payer.void(reference)
    with pytest.raises(HoldClosed):
        payer.settle_call(reference, prompt=1000)
    assert payer.available == 100
    assert MeterEvent.objects.count() == 0


def test_the_price_is_that_of_the_calls_start(payer):
    priced = {
        meter: PricedItem.objects.create(meter=meter, model="m-new") for meter in ("prompt", "completion")
    }
    for meter, price in [("prompt", 1), ("completion", 2)]:
        Price.objects.create(
            priced_item=priced[meter],
            per_million=price,
            valid_from=NOON - timedelta(days=1),
            valid_to=NOON + timedelta(minutes=1),
        )
        Price.objects.create(
            priced_item=priced[meter], per_million=50, valid_from=NOON + timedelta(minutes=1)
        )
    reference = payer.hold(1)
    payer.pass_time(minutes=5)
    charged = payer.settle_call(reference, prompt=1000, completion=1000, model="m-new", started_at=NOON)
    assert charged.total == Decimal("0.003")


def test_use_beyond_the_hold_is_paid_from_what_is_available(payer):
    charged = payer.call(hold="0.01", prompt=1_000_000)
    assert (charged.total, charged.waived) == (12, 0)


def test_use_beyond_all_money_is_waived_line_by_line(new_payer):
    """¥0.03: the fee and a part of the prompt are paid; the facts stay whole, and the books still agree."""
    payer = new_payer(recharged="0.03")
    charged = payer.call(hold="0.02", prompt=2000, completion=1000, subject="cache-1")
    assert (charged.total, charged.waived) == (Decimal("0.03"), Decimal("0.026"))
    assert [line.amount for line in charged.lines] == [Decimal("0.02"), Decimal("0.01"), 0]
    assert sum(entry.amount for entry in payer.entries(kind="waiver")) == Decimal("0.026")
    assert all(entry.purse is None and entry.debit.kind == "waived" for entry in payer.entries(kind="waiver"))
    assert payer.available == 0


def test_use_beyond_the_hold_leaves_owed_storage_alone(payer):
    payer.store("cache-1", tokens=1_000_000, seconds=600)
    charged = payer.call(hold="1", prompt=9_000_000)
    assert (charged.total, charged.waived) == (90, 18)
    assert payer.close("cache-1").billed_minutes == 1
    assert payer.spent("storage") == 10


def test_one_charge_is_split_over_purses(new_payer):
    payer = new_payer(recharged="5")
    payer.voucher(3, hours=1)
    payer.voucher(2, hours=2)
    charged = payer.call(hold="7", prompt=600_000)
    assert charged.total == Decimal("7.2")
    rows = payer.entries(kind="prompt")
    assert [(row.purse.kind, row.amount, row.quantity) for row in rows] == [
        ("voucher", 3, 600_000),
        ("voucher", 2, 600_000),
        ("cash", Decimal("2.2"), 600_000),
    ]
    assert len({row.meter_event_id for row in rows}) == 1


def test_an_expired_voucher_pays_no_call(payer):
    payer.voucher(50, hours=1)
    payer.pass_time(hours=1)
    payer.call(prompt=100_000, hold=2)
    assert {entry.purse.kind for entry in payer.entries(kind="prompt")} == {"cash"}


def test_a_call_by_the_name_of_another_is_another(payer):
    reference = payer.hold(1)
    payer.settle_call(reference, prompt=1000, call_id="call-1")
    other = payer.settle_call(payer.hold(1), prompt=1000, call_id=f"call-{uuid.uuid4()}")
    assert other.total == Decimal("0.012")


def test_models_have_their_own_prices(payer):
    costs = [payer.call(prompt=1_000_000, hold=60, model=model).total for model in (MODEL, "moonshot-v1-32k")]
    assert costs == [12, 24]
