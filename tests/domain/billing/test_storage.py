"""Storage, minute by minute, though nothing is written while time passes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import transaction

from billing import storage
from billing.errors import InsufficientFunds, SegmentClosed, SegmentOpen
from billing.models import BillingAccount, MeterEvent, Price, StorageLine

pytestmark = pytest.mark.django_db

NOON = datetime(2024, 7, 15, 12, tzinfo=UTC)
STORAGE_HALVED = datetime(2024, 8, 6, 16, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MILLION = 1_000_000
"""Tokens that cost ¥10 a minute."""


def lines(payer, subject: str) -> list[tuple[int, int, Decimal]]:
    rows = StorageLine.objects.filter(segment=payer.segments[subject]).order_by("first_minute")
    return [(line.first_minute, line.end_minute, line.amount) for line in rows]


# --- Ends -----------------------------------------------------------------------------------------------------


def test_an_object_deleted_in_its_third_minute_pays_three(payer):
    payer.store("cache-1", tokens=MILLION)
    payer.pass_time(seconds=121)
    assert payer.balance.owed == 30
    assert payer.close("cache-1").billed_minutes == 3
    assert lines(payer, "cache-1") == [(0, 3, 30)]
    assert payer.available == 70


def test_an_object_deleted_at_once_pays_one_minute(payer):
    payer.store("cache-1", tokens=MILLION)
    payer.close("cache-1")
    assert payer.available == 90


def test_an_object_that_ends_with_its_minute_does_not_start_another(payer):
    payer.store("cache-1", tokens=MILLION, seconds=120)
    payer.pass_time(seconds=120)
    assert not payer.is_stored("cache-1")
    assert payer.close("cache-1").billed_minutes == 2


def test_a_late_sweep_does_not_bill_past_the_end(payer):
    payer.store("cache-1", tokens=MILLION, seconds=120)
    payer.pass_time(hours=5)
    assert payer.balance.owed == 20
    assert payer.close("cache-1").closed_at == NOON + timedelta(seconds=120)
    assert payer.available == 80


def test_closing_again_changes_nothing(payer):
    payer.store("cache-1", tokens=MILLION)
    first = payer.close("cache-1")
    again = payer.pass_time(minutes=5).close("cache-1")
    assert (again.closed_at, again.billed_minutes) == (first.closed_at, 1)


def test_a_closed_segment_leaves_no_commitment(payer):
    payer.store("cache-1", tokens=MILLION)
    payer.store("cache-2", tokens=100)
    payer.close("cache-1")
    account = BillingAccount.objects.get(organization_id=payer.organization_id)
    assert account.storage_commitment == Decimal("0.06")
    payer.close("cache-2")
    account.refresh_from_db()
    assert (account.storage_commitment, account.committed_until, account.exhaust_at) == (0, None, None)


def test_bytes_lost_end_it_at_the_last_proof_and_what_was_posted_stays(payer):
    payer.store("cache-1", tokens=MILLION)
    payer.pass_time(seconds=150)
    assert payer.close("cache-1", at=NOON + timedelta(seconds=90)).billed_minutes == 2
    payer.store("cache-2", tokens=MILLION)
    payer.pass_time(seconds=150).settle()
    closed = payer.close("cache-2", at=payer.at - timedelta(seconds=140))
    assert closed.billed_minutes == 3
    assert closed.closed_at == closed.started_at + timedelta(seconds=120) + MICROSECOND


# --- Opening and extending ------------------------------------------------------------------------------------


def test_a_subject_is_stored_once_at_a_time(payer):
    payer.store("cache-1", tokens=10)
    with pytest.raises(SegmentOpen):
        payer.store("cache-1", tokens=10)
    payer.close("cache-1")
    payer.store("cache-1", tokens=10)


def test_a_first_minute_that_cannot_be_paid_is_not_started(new_payer):
    payer = new_payer(recharged="9.999999999")
    with pytest.raises(InsufficientFunds) as refused:
        payer.store("cache-1", tokens=MILLION)
    assert (refused.value.available, refused.value.needed) == (Decimal("9.999999999"), 10)


def test_an_extension_keeps_the_segment_and_its_minutes(payer):
    payer.store("cache-1", tokens=MILLION, seconds=90)
    payer.pass_time(seconds=80)
    payer.extend("cache-1", seconds=60)
    payer.pass_time(seconds=59)
    assert payer.is_stored("cache-1")
    assert payer.pass_time(seconds=1).close("cache-1").billed_minutes == 3


def test_an_end_can_be_moved_closer_but_not_before_now(payer):
    payer.store("cache-1", tokens=MILLION, seconds=3600)
    payer.pass_time(seconds=61).extend("cache-1", seconds=-30)
    assert not payer.is_stored("cache-1")
    assert payer.close("cache-1").billed_minutes == 2


def test_what_has_ended_is_not_extended(payer):
    payer.store("cache-1", tokens=MILLION, seconds=60)
    payer.store("cache-2", tokens=MILLION, seconds=60)
    payer.close("cache-2")
    payer.pass_time(seconds=60)
    for subject in ("cache-1", "cache-2"):
        with pytest.raises(SegmentClosed):
            payer.extend(subject, seconds=60)


# --- Settling -------------------------------------------------------------------------------------------------


def test_settling_often_costs_what_settling_once_does(payer):
    payer.store("cache-1", tokens=12_345)
    payer.store("cache-2", tokens=12_345)
    for _ in range(5):
        payer.pass_time(seconds=47)
        with transaction.atomic():
            account = payer.locked()
            storage.settle(account, at=payer.at)
            storage.settle(account, at=payer.at)
    payer.pass_time(seconds=200)
    totals = []
    for subject in ("cache-1", "cache-2"):
        payer.close(subject)
        totals.append(sum(amount for _, _, amount in lines(payer, subject)))
    assert totals[0] == totals[1] == Decimal("0.12345") * 8


def test_settling_on_the_instant_a_minute_starts_and_closing_there_agree(payer):
    payer.store("cache-1", tokens=MILLION)
    payer.pass_time(seconds=60).settle()
    assert payer.close("cache-1").billed_minutes == 1


def test_a_clock_that_steps_back_unmakes_nothing(payer):
    payer.store("cache-1", tokens=MILLION)
    payer.pass_time(seconds=61).settle()
    payer.pass_time(seconds=-30)
    assert payer.close("cache-1").billed_minutes == 2


def test_what_is_owed_is_the_same_before_and_after_it_is_posted(payer):
    payer.store("cache-1", tokens=MILLION)
    payer.pass_time(seconds=100)
    before = payer.balance
    payer.settle()
    after = payer.balance
    assert (before.owed, after.owed) == (20, 0)
    assert before.available == after.available == 80
    assert before.exhaust_at == after.exhaust_at


# --- Prices that change ---------------------------------------------------------------------------------------


def test_each_minute_has_the_price_in_force_when_it_starts(payer):
    payer.at = STORAGE_HALVED - timedelta(seconds=90)
    payer.store("cache-1", tokens=MILLION, seconds=300)
    payer.pass_time(seconds=300)
    payer.close("cache-1")
    assert lines(payer, "cache-1") == [(0, 2, 20), (2, 5, 15)]
    assert MeterEvent.objects.get(first_minute=2).occurred_at == STORAGE_HALVED + timedelta(seconds=30)


def test_a_quiet_account_runs_out_by_the_price_to_come(new_payer):
    payer = new_payer(recharged="50", at=STORAGE_HALVED - timedelta(minutes=3))
    payer.store("cache-1", tokens=MILLION)
    assert payer.exhaust_at == STORAGE_HALVED + timedelta(minutes=4)


def test_accounts_reckon_with_an_announced_price_after_repricing(payer):
    """The list is shortened behind billing's back, as an announcement would; the same arithmetic follows it."""
    payer.at = datetime(2030, 1, 1, tzinfo=UTC)
    payer.store("cache-1", tokens=MILLION, seconds=600)
    assert payer.balance.exhaust_at is None
    change = payer.at + timedelta(minutes=5)
    current = Price.objects.get(priced_item__meter="storage", valid_to=None)
    Price.objects.filter(pk=current.pk).update(valid_to=change)
    Price.objects.create(priced_item=current.priced_item, per_million=60, valid_from=change)
    storage.reprice()
    assert payer.exhaust_at == change + timedelta(minutes=1)
    assert BillingAccount.objects.get(organization_id=payer.organization_id).storage_commitment == 325


# --- Money that runs out --------------------------------------------------------------------------------------


def test_money_runs_out_at_the_right_minute_although_nothing_is_written(payer):
    payer.store("cache-1", tokens=MILLION, seconds=7200)
    end = NOON + timedelta(minutes=10)
    assert payer.exhaust_at == end
    payer.at = end - MICROSECOND
    assert payer.is_stored("cache-1")
    assert (payer.balance.owed, payer.available) == (100, 0)
    payer.at = end
    assert not payer.is_stored("cache-1")
    payer.pass_time(hours=3)
    assert (payer.balance.owed, payer.available) == (100, 0)
    assert payer.close("cache-1").closed_at == end
    assert (payer.balance.cash, payer.spent("storage")) == (0, 100)


def test_every_object_ends_with_the_first_minute_that_cannot_be_paid(payer):
    """40 at once, 30 half a minute later: the second 40 would make 110. The 30 that are left stay."""
    payer.store("cache-1", tokens=4 * MILLION)
    payer.pass_time(seconds=30)
    payer.store("cache-2", tokens=3 * MILLION)
    end = NOON + timedelta(seconds=60)
    assert payer.exhaust_at == end
    payer.pass_time(hours=1)
    with transaction.atomic():
        cut = storage.cut_exhausted(payer.locked(), at=payer.at)
    assert sorted((c.subject, c.ended_at) for c in cut) == [("cache-1", end), ("cache-2", end)]
    assert (payer.spent("storage"), payer.available) == (70, 30)


def test_money_that_comes_too_late_revives_nothing(payer):
    payer.store("cache-1", tokens=MILLION, seconds=7200)
    payer.pass_time(hours=1)
    recharged = payer.recharge(50)
    assert [(cut.subject, cut.ended_at) for cut in recharged.cut] == [
        ("cache-1", NOON + timedelta(minutes=10))
    ]
    assert not payer.is_stored("cache-1")
    assert payer.available == 50
    assert payer.exhaust_at is None


def test_money_that_comes_in_time_moves_the_end(payer):
    payer.store("cache-1", tokens=MILLION, seconds=7200)
    payer.pass_time(minutes=9).recharge(50)
    assert payer.exhaust_at == NOON + timedelta(minutes=15)
    assert lines(payer, "cache-1") == [(0, 9, 90)]


@pytest.mark.parametrize(
    "operation", ["hold", "void", "settle_call", "extend", "close", "settle", "store", "recharge"]
)
def test_whatever_comes_after_the_end_of_money_finds_storage_ended(payer, operation):
    payer.voucher(10)
    reference = payer.hold(10)
    payer.store("cache-1", tokens=MILLION, seconds=7200)
    end = payer.exhaust_at
    payer.pass_time(hours=1)
    try:
        {
            "hold": lambda: payer.hold("0.5"),
            "void": lambda: payer.void(reference),
            "settle_call": lambda: payer.settle_call(reference, prompt=1000),
            "extend": lambda: payer.extend("cache-1", seconds=60),
            "close": lambda: payer.close("cache-1"),
            "settle": payer.settle,
            "store": lambda: payer.store("cache-2", tokens=1),
            "recharge": lambda: payer.recharge(1),
        }[operation]()
    except (InsufficientFunds, SegmentClosed):
        payer.settle()
    segment = payer.segments["cache-1"]
    segment.refresh_from_db()
    assert (segment.closed_at, segment.billed_minutes) == (end, 10)
    assert payer.spent("storage") == 100


# --- Vouchers that expire -------------------------------------------------------------------------------------


def test_a_voucher_pays_the_minutes_before_it_expires_however_late_they_are_posted(payer):
    payer.voucher(45, hours=0.05)
    payer.store("cache-1", tokens=MILLION, seconds=600)
    payer.pass_time(minutes=10)
    payer.close("cache-1")
    by_kind = {
        kind: sum(e.amount for e in payer.entries(kind="storage", purse__kind=kind))
        for kind in ("voucher", "cash")
    }
    assert by_kind == {"voucher": 30, "cash": 70}
    payer.settle()
    assert payer.spent("lapse") == 15
    assert (payer.balance.cash, payer.balance.voucher) == (30, 0)


def test_the_end_of_money_reckons_with_the_end_of_a_voucher(new_payer):
    payer = new_payer(recharged="20")
    payer.voucher(100, hours=0.05)
    payer.store("cache-1", tokens=MILLION, seconds=3600)
    assert payer.exhaust_at == NOON + timedelta(minutes=5)
    payer.pass_time(minutes=4)
    assert (payer.balance.owed, payer.available) == (20, 0)
    payer.pass_time(hours=1).close("cache-1")
    assert payer.balance.cash == 0


def test_a_voucher_that_outlives_storage_is_as_good_as_cash(new_payer):
    payer = new_payer()
    payer.voucher(100, hours=1)
    payer.store("cache-1", tokens=MILLION, seconds=600)
    assert payer.exhaust_at is None


def test_new_money_pays_for_nothing_of_the_past(new_payer):
    payer = new_payer(recharged="100")
    payer.store("cache-1", tokens=MILLION, seconds=600)
    payer.pass_time(minutes=3).voucher(50, hours=10)
    payer.pass_time(minutes=7).close("cache-1")
    assert sum(e.amount for e in payer.entries(kind="storage", purse__kind="voucher")) == 50
    assert sum(e.amount for e in payer.entries(kind="storage", purse__kind="cash")) == 50
