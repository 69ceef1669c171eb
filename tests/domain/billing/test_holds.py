"""Money set aside: never more than there is, given back once, and never in the way of what can be paid."""

from __future__ import annotations

import decimal
import uuid
from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import transaction

from billing import holds
from billing.errors import HoldClosed, HoldExists, HoldNotFound, InsufficientFunds
from billing.models import Hold

pytestmark = pytest.mark.django_db


def test_what_is_held_is_not_available(payer):
    payer.hold(30)
    assert (payer.balance.cash, payer.balance.held, payer.available) == (100, 30, 70)


def test_all_there_is_can_be_held_and_no_more(payer):
    payer.hold(100)
    with pytest.raises(InsufficientFunds) as refused:
        payer.hold("0.000000001")
    assert (refused.value.available, refused.value.needed) == (0, Decimal("0.000000001"))


def test_a_hold_is_given_back_once(payer):
    reference = payer.hold(30)
    assert payer.void(reference) is True
    assert payer.void(reference) is False
    assert (payer.balance.held, payer.available) == (0, 100)


def test_a_settled_hold_is_not_given_back(payer):
    reference = payer.hold(30)
    payer.settle_call(reference, prompt=1000)
    assert payer.void(reference) is False


def test_a_reference_is_used_once(payer):
    reference = payer.hold(1)
    with pytest.raises(HoldExists):
        payer.hold(1, reference=reference)
    payer.void(reference)
    with pytest.raises(HoldExists):
        payer.hold(1, reference=reference)


def test_a_hold_that_was_never_placed_is_not_found(payer):
    with pytest.raises(HoldNotFound):
        payer.void(uuid.uuid4())
    with pytest.raises(HoldNotFound):
        payer.settle_call(uuid.uuid4())


def test_anothers_hold_is_not_found(payer, new_payer):
    other, reference = new_payer(recharged="10"), payer.hold(1)
    with pytest.raises(HoldNotFound):
        other.void(reference)
    with pytest.raises(HoldNotFound):
        other.settle_call(reference)


def test_a_hold_of_nothing_can_be_closed_like_any_other(payer):
    reference = payer.hold(0)
    assert payer.settle_call(reference, prompt=1000).waived == 0
    assert payer.void(payer.hold(0)) is True


def test_a_negative_hold_is_refused(payer):
    with pytest.raises(ValueError, match="negative"):
        payer.hold(-1)


def test_a_hold_in_finer_steps_than_money_is_refused_not_rounded(payer):
    with pytest.raises(decimal.Inexact):
        payer.hold("0.0000000001")


def test_a_hold_takes_vouchers_first_and_the_first_to_expire_before_others(payer):
    payer.voucher(3, hours=9)
    payer.voucher(2, hours=5)
    payer.voucher(4)
    reference = payer.hold(12)
    parts = [(p.purse.expires_at, p.purse.kind, p.amount) for p in Hold.objects.filter(reference=reference)]
    hours = {
        at and (at - payer.at) / timedelta(hours=1): (kind, amount)
        for at, kind, amount in parts
        if kind == "voucher"
    }
    assert hours == {5: ("voucher", 2), 9: ("voucher", 3), None: ("voucher", 4)}
    assert [amount for _, kind, amount in parts if kind == "cash"] == [3]


def test_an_expired_voucher_is_not_held(payer):
    payer.voucher(50, hours=1)
    payer.pass_time(hours=1)
    with pytest.raises(InsufficientFunds):
        payer.hold(101)
    payer.hold(100)


def test_a_hold_outlives_its_voucher(new_payer):
    payer = new_payer()
    payer.voucher(5, hours=1)
    reference = payer.hold(4)
    payer.pass_time(hours=2)
    assert payer.settle_call(reference, prompt=250_000).total == 3
    assert payer.available == 0


def test_a_hold_given_back_to_an_expired_voucher_is_lost(new_payer):
    payer = new_payer()
    payer.voucher(5, hours=1)
    reference = payer.hold(4)
    payer.pass_time(hours=2)
    payer.void(reference)
    assert payer.available == 0
    payer.settle()
    assert payer.spent("lapse") == 5


def test_a_hold_grows_with_the_stream(payer):
    payer.voucher(5)
    reference = payer.hold(4)
    for _ in range(3):
        with transaction.atomic():
            holds.extend(
                payer.locked(), reference=reference, kind="call", subject="", amount=Decimal(2), at=payer.at
            )
    assert sorted(Hold.objects.filter(reference=reference).values_list("amount", flat=True)) == [5, 5]
    assert payer.settle_call(reference, prompt=750_000).total == 9
    with pytest.raises(HoldClosed), transaction.atomic():
        holds.extend(
            payer.locked(), reference=reference, kind="call", subject="", amount=Decimal(2), at=payer.at
        )


def test_a_refused_growth_leaves_the_hold_as_it_was(payer):
    reference = payer.hold(60)
    with pytest.raises(InsufficientFunds), transaction.atomic():
        holds.extend(
            payer.locked(), reference=reference, kind="call", subject="", amount=Decimal(41), at=payer.at
        )
    assert payer.balance.held == 60


def test_storage_that_is_owed_cannot_be_held_but_storage_to_come_can(payer):
    """¥10 a minute, ten minutes planned: all money is committed, yet a call goes first and storage ends sooner."""
    payer.store("cache-1", tokens=1_000_000, seconds=600)
    payer.pass_time(seconds=61)
    assert payer.available == 80
    payer.hold(75)
    with pytest.raises(InsufficientFunds):
        payer.hold(6)
    assert payer.exhaust_at == payer.at + timedelta(seconds=59)
    assert payer.is_stored("cache-1")


def test_an_owed_minute_is_protected_to_the_last_instant(payer):
    payer.store("cache-1", tokens=1_000_000, seconds=600)
    payer.pass_time(seconds=59).hold(90)
    payer.pass_time(seconds=1)
    assert not payer.is_stored("cache-1")
    assert payer.available == 0


def test_a_voided_hold_gives_storage_its_time_back_unless_that_is_over(payer):
    payer.store("cache-1", tokens=1_000_000, seconds=600)
    reference = payer.hold(80)
    assert payer.exhaust_at == payer.at + timedelta(minutes=2)
    payer.void(reference)
    assert payer.exhaust_at is None
    late = payer.hold(80)
    payer.pass_time(minutes=2)
    payer.void(late)
    assert not payer.is_stored("cache-1")
    assert payer.available == 80


def test_forgotten_holds_are_found_oldest_first(payer):
    old = payer.hold(1)
    payer.pass_time(minutes=8)
    payer.hold(1)
    creation = payer.hold(1, kind="creation")
    payer.pass_time(minutes=3)
    assert holds.stale(kind="call", at=payer.at, older_than_seconds=600, limit=10) == [
        (payer.organization_id, old)
    ]
    assert len(holds.stale(kind="call", at=payer.at, older_than_seconds=60, limit=10)) == 2
    assert len(holds.stale(kind="call", at=payer.at, older_than_seconds=60, limit=1)) == 1
    assert holds.stale(kind="creation", at=payer.at, older_than_seconds=60, limit=1)[0][1] == creation
