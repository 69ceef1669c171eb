"""Undoing entries, each kind of them. After every test the chain and the re-rating of all facts still hold."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from billing.errors import InsufficientFunds, ReversalRefused
from billing.models import EntryKind, LedgerAccount
from tests.domain.billing.conftest import Payer

pytestmark = pytest.mark.django_db


@pytest.fixture
def busy(payer):
    """Entries of every kind."""
    payer.voucher(5, hours=1)
    payer.create("cache-1", tokens=10_000, seconds=600)
    payer.call(prompt=1000, completion=100, subject="cache-1")
    payer.pass_time(hours=2).close("cache-1")
    payer.settle()
    payer.call(prompt=9_000_000, hold="1")
    payer.correct(payer.entries(kind="call")[0])
    assert {entry.kind for entry in payer.entries()} == set(EntryKind.values)
    return payer


def posted(payer: Payer) -> dict[str, Decimal]:
    purses = LedgerAccount.objects.filter(organization_id=payer.organization_id)
    return {purse.kind: purse.posted for purse in purses}


@pytest.mark.parametrize("kind", ["creation", "storage", "prompt", "completion"])
def test_a_charge_of_every_kind_is_undone_once(busy, kind):
    entry = busy.entries(kind=kind)[0]
    before = posted(busy)[entry.purse.kind]
    undone = busy.correct(entry)
    assert posted(busy)[entry.purse.kind] == before + entry.amount == undone.balance_after
    assert (undone.debit_id, undone.credit_id) == (entry.credit_id, entry.debit_id)
    with pytest.raises(ReversalRefused, match="undone already"):
        busy.correct(entry)


@pytest.mark.parametrize("kind", ["reversal", "waiver", "lapse"])
def test_what_is_no_charge_and_no_recharge_is_not_undone(busy, kind):
    before = posted(busy), len(busy.entries())
    with pytest.raises(ReversalRefused, match=f"of a kind that cannot be: {kind}"):
        busy.correct(busy.entries(kind=kind)[0])
    assert (posted(busy), len(busy.entries())) == before


def test_a_charge_that_was_split_is_undone_part_by_part(new_payer):
    payer = new_payer(recharged="5")
    payer.voucher(3, hours=1)
    payer.call(hold="6", prompt=500_000)
    parts = payer.entries(kind="prompt")
    assert [part.amount for part in parts] == [3, 3]
    payer.correct(parts[0])
    assert posted(payer) == {"voucher": 3, "cash": 2}
    payer.correct(parts[1])
    assert posted(payer) == {"voucher": 3, "cash": 5}


def test_the_part_of_a_charge_that_was_paid_can_be_undone_the_waived_one_not(new_payer):
    payer = new_payer(recharged="1")
    payer.call(hold="0.5", prompt=500_000)
    [paid], [waived] = payer.entries(kind="prompt"), payer.entries(kind="waiver")
    assert (paid.amount, waived.amount) == (1, 5)
    payer.correct(paid)
    with pytest.raises(ReversalRefused):
        payer.correct(waived)
    assert payer.available == 1


def test_what_goes_back_to_a_voucher_that_is_over_lapses(payer):
    payer.voucher(5, hours=1)
    payer.call(prompt=100_000, hold="2")
    payer.pass_time(hours=2).settle()
    assert posted(payer) == {"voucher": 0, "cash": 100}
    payer.correct(payer.entries(kind="prompt")[0])
    assert posted(payer)["voucher"] == Decimal("1.2")
    assert payer.available == 100, "it pays for nothing any more"
    payer.settle()
    assert posted(payer)["voucher"] == 0
    assert [entry.amount for entry in payer.entries(kind="lapse")] == [Decimal("3.8"), Decimal("1.2")]


def test_a_recharge_that_is_spent_is_not_undone(payer):
    payer.call(prompt=1_000_000, hold="12")
    with pytest.raises(InsufficientFunds) as refused:
        payer.correct(payer.entries(kind="recharge")[0])
    assert (refused.value.available, refused.value.needed) == (88, 100)
    assert posted(payer) == {"cash": 88}


def test_a_voucher_that_is_spent_is_not_undone_from_the_cash(payer):
    """There is enough money in all, but not in the purse that the recharge went to."""
    given = payer.voucher(5, hours=1)
    payer.call(prompt=100_000, hold="2")
    with pytest.raises(InsufficientFunds) as refused:
        payer.correct(given.entry)
    assert refused.value.available == Decimal("3.8")
    assert posted(payer) == {"voucher": Decimal("3.8"), "cash": 100}


def test_a_recharge_is_undone_twice_by_nobody(payer):
    given = payer.recharge(5)
    payer.correct(given.entry)
    with pytest.raises(ReversalRefused, match="undone already"):
        payer.correct(given.entry)
    assert posted(payer) == {"cash": 100}


def test_a_correction_says_who_and_why(payer):
    payer.pass_time(seconds=1)
    undone = payer.correct(payer.recharge(5).entry)
    assert (undone.reason, undone.operator, undone.created_at) == ("a mistake", "ada", payer.at)
    assert undone.created_at - payer.entries()[0].created_at == timedelta(seconds=1)
