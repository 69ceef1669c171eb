"""Putting money in, and taking a mistake back."""

from __future__ import annotations

import decimal
from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import transaction

from billing import accounts, charging
from billing.errors import AccountNotFound, IdempotencyConflict, InsufficientFunds, ReversalRefused
from billing.models import AccountKind, LedgerAccount, LedgerEntry

pytestmark = pytest.mark.django_db


def test_a_recharge_is_one_entry_from_funding_to_the_purse(payer):
    [entry] = payer.entries()
    assert (entry.kind, entry.amount, entry.balance_after, entry.purse_sequence) == ("recharge", 100, 100, 1)
    assert (entry.debit.kind, entry.credit.kind) == (AccountKind.FUNDING_CASH, AccountKind.CASH)
    assert (entry.reason, entry.operator, entry.created_at) == ("test", "ada", payer.at)
    assert payer.balance.cash == payer.available == 100


def test_repeated_with_its_key_it_changes_nothing(payer):
    first = payer.recharge(5, idempotency_key="order-7")
    again = payer.recharge(5, idempotency_key="order-7")
    assert (first.is_new, again.is_new, again.entry) == (True, False, first.entry)
    assert payer.balance.cash == 105


@pytest.mark.parametrize("change", [{"amount": 6}, {"amount": 5, "purse": "voucher"}])
def test_the_key_with_other_contents_is_refused(payer, change):
    payer.recharge(5, idempotency_key="order-7")
    with pytest.raises(IdempotencyConflict):
        payer.recharge(**change, idempotency_key="order-7")


def test_anothers_key_is_refused(payer, new_payer):
    payer.recharge(5, idempotency_key="order-7")
    with pytest.raises(IdempotencyConflict):
        new_payer().recharge(5, idempotency_key="order-7")


@pytest.mark.parametrize("amount", ["0", "-1", "0.0000000001"])
def test_nothing_less_than_nothing_and_a_tenth_place_are_refused(payer, amount):
    with pytest.raises((ValueError, decimal.Inexact)):
        payer.recharge(amount)


def test_only_vouchers_expire_and_only_in_the_future(payer):
    with pytest.raises(ValueError, match="voucher"):
        payer.recharge(1, expires_at=payer.at + timedelta(days=1))
    with pytest.raises(ValueError, match="future"):
        payer.recharge(1, purse="voucher", expires_at=payer.at)


def test_a_recharge_says_who_and_why(payer):
    for missing in ({"reason": ""}, {"operator": ""}):
        arguments = {"reason": "r", "operator": "o", "idempotency_key": "k", **missing}
        with pytest.raises(ValueError, match="reason"), transaction.atomic():
            charging.recharge(
                organization_id=payer.organization_id,
                amount=Decimal(1),
                purse="cash",
                at=payer.at,
                **arguments,
            )


def test_vouchers_of_one_expiry_share_a_purse(payer):
    payer.voucher(3, hours=5)
    payer.voucher(4, hours=5)
    payer.voucher(5, hours=6)
    payer.voucher(6)
    purses = LedgerAccount.objects.filter(organization_id=payer.organization_id, kind="voucher")
    assert sorted(purse.posted for purse in purses) == [5, 6, 7]
    assert payer.balance.voucher == 18


def test_an_account_is_opened_once_and_in_one_currency(payer):
    accounts.open_account(payer.organization_id, currency="USD")
    assert payer.balance.currency == "CNY"
    assert LedgerAccount.objects.filter(organization_id=payer.organization_id).count() == 1


def test_without_an_account_there_is_no_balance(db, payer):
    with pytest.raises(AccountNotFound):
        accounts.balance("org-nobody", payer.at)
    with pytest.raises(AccountNotFound), transaction.atomic():
        accounts.lock("org-nobody")


# --- Corrections ----------------------------------------------------------------------------------------------


def test_a_charge_is_undone_by_its_mirror_image(payer):
    payer.call(prompt=1_000_000, hold=12)
    [charge] = payer.entries(kind="prompt")
    reversal = payer.correct(charge)
    assert (reversal.debit_id, reversal.credit_id, reversal.amount) == (charge.credit_id, charge.debit_id, 12)
    assert (reversal.reverses, reversal.reason, reversal.operator) == (charge, "a mistake", "ada")
    assert payer.available == 100


def test_a_recharge_is_undone_while_the_money_is_there(payer):
    again = payer.recharge(50)
    payer.correct(again.entry)
    assert payer.available == 100
    payer.hold(1)
    with pytest.raises(InsufficientFunds):
        payer.correct(payer.entries()[0])
    assert payer.balance.cash == 100


def test_a_recharge_is_not_undone_below_what_storage_owes(payer):
    payer.store("cache-1", tokens=1_000_000)
    with pytest.raises(InsufficientFunds):
        payer.correct(payer.entries()[0])


def test_an_entry_is_undone_once_and_an_undoing_never(payer):
    payer.call(prompt=1000)
    [charge] = payer.entries(kind="prompt")
    reversal = payer.correct(charge)
    for entry in (charge, reversal):
        with pytest.raises(ReversalRefused):
            payer.correct(entry)


def test_anothers_entry_is_not_found(payer, new_payer):
    with pytest.raises(LedgerEntry.DoesNotExist):
        new_payer().correct(payer.entries()[0])


def test_a_correction_moves_the_end_of_money(payer):
    payer.call(prompt=1_000_000, hold=12)
    payer.store("cache-1", tokens=1_000_000, seconds=900)
    assert payer.exhaust_at == payer.at + timedelta(minutes=8)
    payer.correct(payer.entries(kind="prompt")[0])
    assert payer.exhaust_at == payer.at + timedelta(minutes=10)
