"""Invoices: once a month is over, to fen, and together what the ledger says."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction

from billing import accounts, audit, clock, invoicing
from billing.errors import InvoiceRefused
from billing.models import Invoice
from billing.periods import ZONE, day_at, month_of
from billing.rounding import invoice_amount, to_fen
from cacheplane.access.models import Organization
from tests.domain.billing.conftest import Payer

pytestmark = pytest.mark.django_db

JULY, AUGUST, SEPTEMBER = (month_of(date(2024, month, 1)) for month in (7, 8, 9))
LATER = datetime(2024, 12, 15, tzinfo=UTC)


def made(payer: Payer, at: datetime = LATER) -> list[tuple[str, int, Decimal]]:
    return [
        (f"{invoice.month:%Y-%m}", invoice.number, invoice.amount)
        for invoice in invoicing.make(payer.organization_id, at=at)
    ]


def spend(payer: Payer, tokens: int) -> None:
    """Prompt tokens at ¥12 a million."""
    payer.call(prompt=tokens)


# --- Rounding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exact", "rounded"), [("0.005", "0.01"), ("0.004999999", "0.00"), ("0.015", "0.02"), ("2.675", "2.68")]
)
def test_half_a_fen_is_rounded_up(exact, rounded):
    assert to_fen(Decimal(exact)) == Decimal(rounded)


def test_what_rounding_leaves_is_on_the_next_invoice():
    """Three times ¥0.004: ¥0.00, ¥0.01, ¥0.00, and not three times nothing."""
    to_date = [Decimal("0.004"), Decimal("0.008"), Decimal("0.012")]
    assert [invoice_amount(spent=Decimal("0.004"), spent_to_date=sum_) for sum_ in to_date] == [
        Decimal("0.00"),
        Decimal("0.01"),
        Decimal("0.00"),
    ]


# --- Making -----------------------------------------------------------------------------------------------------


def test_each_month_with_spending_has_one(payer):
    spend(payer, 1_000_000)
    payer.pass_time(hours=24 * 62)  # September; in August nothing happens
    spend(payer, 500_000)
    assert made(payer) == [("2024-07", 1, Decimal("12.00")), ("2024-09", 2, Decimal("6.00"))]
    assert made(payer) == [], "what is made is made"
    first, second = Invoice.objects.order_by("number")
    assert (first.spent, first.spent_to_date, second.spent_to_date) == (12, 12, 18)
    [july, september] = payer.entries(kind="prompt")
    [purse] = first.heads
    assert (purse["sequence"], purse["chain"]) == (july.purse_sequence, bytes(july.chain).hex())
    assert second.heads[0]["chain"] == bytes(september.chain).hex()


def test_small_sums_add_up_to_the_rounded_ledger(payer):
    """¥0.004008 a month: to date 0.004, 0.008, 0.012 and 0.016, which is 0.02 in the end."""
    for _ in range(4):
        spend(payer, 334)
        payer.pass_time(hours=24 * 31)
    amounts = [amount for _, _, amount in made(payer)]
    assert amounts == [Decimal("0.00"), Decimal("0.01"), Decimal("0.00"), Decimal("0.01")]
    last = Invoice.objects.latest("number")
    assert sum(amounts) == to_fen(last.spent_to_date) == Decimal("0.02")


def test_recharges_and_lapses_are_no_spending(payer):
    payer.voucher(5, hours=1)
    payer.pass_time(hours=2).settle()
    assert [entry.kind for entry in payer.entries()] == ["recharge", "recharge", "lapse"]
    assert made(payer) == []


def test_a_refund_is_taken_off_and_may_make_an_invoice_negative(payer):
    spend(payer, 1_000_000)
    payer.pass_time(hours=24 * 31)
    payer.correct(payer.entries(kind="prompt")[0])
    payer.correct(payer.entries(kind="recharge")[0])
    assert made(payer) == [("2024-07", 1, Decimal("12.00")), ("2024-08", 2, Decimal("-12.00"))]


def test_a_month_begins_at_midnight_of_utc_8(new_payer):
    payer = new_payer(recharged="100", at=datetime(2024, 7, 31, 23, 59, 59, tzinfo=ZONE))
    spend(payer, 1_000_000)
    payer.pass_time(seconds=1)
    spend(payer, 2_000_000)
    assert made(payer) == [("2024-07", 1, Decimal("12.00")), ("2024-08", 2, Decimal("24.00"))]


def test_a_month_is_not_invoiced_before_it_is_over_by_an_hour(payer):
    spend(payer, 1_000_000)
    ready = JULY.ends_at + timedelta(hours=1)
    assert made(payer, at=ready - timedelta(microseconds=1)) == []
    with pytest.raises(InvoiceRefused, match="2024-07 is invoiced from 2024-08-01 01:00"):
        invoicing.make(payer.organization_id, at=JULY.ends_at, month=JULY)
    assert made(payer, at=ready) == [("2024-07", 1, Decimal("12.00"))]


def test_up_to_a_month(payer):
    for _ in range(3):
        spend(payer, 1_000_000)
        payer.pass_time(hours=24 * 31)
    until_august = invoicing.make(payer.organization_id, at=LATER, month=AUGUST)
    assert [invoice.number for invoice in until_august] == [1, 2]
    assert made(payer) == [("2024-09", 3, Decimal("12.00"))]


def test_an_entry_belongs_to_the_month_it_was_booked_in(payer):
    """Ten minutes of July that are booked in August, because no settlement came between, are August's."""
    payer.at = JULY.ends_at - timedelta(minutes=30)
    payer.store("cache-1", tokens=10_000, seconds=3600)
    payer.pass_time(minutes=20).settle()
    payer.pass_time(minutes=40).close("cache-1")
    assert made(payer) == [("2024-07", 1, Decimal("2.00")), ("2024-08", 2, Decimal("4.00"))]


def test_every_organization_has_its_own_numbers(payer, new_payer):
    other = new_payer(recharged="9")
    for each in (payer, other):
        spend(each, 100_000)
    assert made(payer) == made(other) == [("2024-07", 1, Decimal("1.20"))]


# --- The database refuses what is not an invoice ------------------------------------------------------------------


@pytest.fixture
def invoiced(payer):
    spend(payer, 1_000_000)
    invoicing.make(payer.organization_id, at=LATER)
    return payer


@pytest.mark.parametrize(
    "change",
    [
        {"number": 3},
        {"month": date(2024, 6, 1)},
        {"month": date(2024, 8, 2)},
        {"spent_to_date": Decimal("12.5")},
        {"amount": Decimal("0.99")},
    ],
)
def test_an_invoice_that_does_not_follow_is_refused(invoiced, change):
    right = {
        "organization_id": invoiced.organization_id,
        "month": date(2024, 8, 1),
        "number": 2,
        "currency": "CNY",
        "spent": Decimal(1),
        "spent_to_date": Decimal(13),
        "amount": Decimal(1),
        "heads": [],
        "made_at": LATER,
    }
    with pytest.raises(IntegrityError, match=r"does not follow|invoice_is_of_a_month"), transaction.atomic():
        Invoice.objects.create(**right | change)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Invoice.objects.create(**right)
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "statement", ["UPDATE billing_invoice SET amount = 1", "DELETE FROM billing_invoice"]
)
def test_an_invoice_is_never_changed(invoiced, statement):
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(statement)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE billing_invoice SET spent_to_date = spent_to_date + 1",
        "UPDATE billing_invoice SET amount = amount + 1",
        "UPDATE billing_invoice SET number = 2",
        "UPDATE billing_invoice SET heads = jsonb_set(heads, '{0,chain}', '\"00\"')",
        "UPDATE billing_ledgerentry SET created_at = '2024-06-01Z' WHERE kind = 'prompt'",
        "UPDATE billing_ledgerentry SET created_at = '2024-08-01Z' WHERE kind = 'prompt'",
        "DELETE FROM billing_ledgerentry WHERE kind = 'prompt'",
    ],
)
def test_the_audit_finds_what_does_not_fit(invoiced, damage):
    broken = None
    with pytest.raises(ZeroDivisionError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        for table in ("billing_ledgerentry", "billing_invoice"):
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        cursor.execute(damage)
        assert cursor.rowcount == 1
        broken = {violation.invariant for violation in audit.violations(clock.now())}
        raise ZeroDivisionError
    assert audit.INVOICED in broken


# --- The command --------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_made(payer, capsys):
    spend(payer, 1_000_000)
    call_command("make_invoices", month="2024-07")
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{payer.organization_id} 2024-07 number 1: 12.00 CNY", "1 invoices made"]
    call_command("make_invoices")
    assert capsys.readouterr().out.splitlines() == ["0 invoices made"]


@pytest.mark.parametrize("month", ["2024", "July", "2024-13", "2999-01"])
def test_the_command_refuses_what_is_no_month_or_not_over(payer, month):
    with pytest.raises(CommandError, match="written like|is invoiced from"):
        call_command("make_invoices", month=month)


def test_the_command_makes_for_each_what_is_over_by_its_own_clock(payer, capsys):
    """A sandbox's month may be over while everybody else's is not."""
    organization = Organization.objects.create(name="Rehearsal", tier_id="tier0", kind="sandbox")
    accounts.open_account(organization.id)
    sandbox = Payer(organization_id=organization.id, at=clock.now())
    sandbox.recharge("100")
    spend(sandbox, 1_000_000)
    month = month_of(day_at(clock.now()))
    with pytest.raises(CommandError, match="is invoiced from"):
        call_command("make_invoices", month=f"{month.start:%Y-%m}")
    with transaction.atomic():
        accounts.advance_clock(accounts.lock(organization.id), to=month.ends_at + timedelta(hours=2))
    call_command("make_invoices", month=f"{month.start:%Y-%m}")
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{organization.id} {month.start:%Y-%m} number 1: 12.00 CNY", "1 invoices made"]
