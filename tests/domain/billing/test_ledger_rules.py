"""The database itself refuses to rewrite the ledger, to overdraw a purse, to overlap prices or minutes."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import IntegrityError, connection, transaction

from billing import audit, clock
from billing.models import AccountKind, LedgerAccount, Price, PricedItem, StorageLine

pytestmark = pytest.mark.django_db

APPEND_ONLY = {
    "billing_ledgerentry": "reason = 'another story'",
    "billing_meterevent": "quantity = 1",
    "billing_storageline": "amount = 0",
}


@pytest.fixture
def busy(payer):
    """A payer with rows in every table."""
    payer.create("cache-1", tokens=10_000)
    payer.call(prompt=100, completion=10, subject="cache-1")
    payer.pass_time(minutes=5).settle()
    return payer


def refused(statement: str, match: str) -> None:
    with (
        pytest.raises(IntegrityError, match=match),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)


@pytest.mark.parametrize("table", APPEND_ONLY)
def test_rows_are_neither_changed_nor_deleted(busy, table):
    refused(f"UPDATE {table} SET {APPEND_ONLY[table]}", "append-only: UPDATE is refused")
    refused(f"UPDATE {table} SET id = id", "append-only")
    refused(f"DELETE FROM {table}", "append-only: DELETE is refused")


@pytest.mark.parametrize("table", [*APPEND_ONLY, "billing_ledgeraccount", "billing_price"])
def test_tables_are_not_emptied(busy, table):
    """The test database lifts this refusal to tidy up after itself; here it is put back."""
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER {table}_is_never_emptied")
    refused(f"TRUNCATE {table} CASCADE", "append-only: TRUNCATE is refused")


def test_a_purse_is_not_deleted(payer):
    refused("DELETE FROM billing_ledgeraccount", "append-only: DELETE is refused")


def test_a_purse_is_never_overdrawn_nor_held_beyond_what_it_has(payer):
    purse = f"WHERE organization_id = '{payer.organization_id}'"
    refused(f"UPDATE billing_ledgeraccount SET posted = -1 {purse}", "posted_covers_held_covers_zero")
    refused(
        f"UPDATE billing_ledgeraccount SET held = 100.000000001 {purse}", "posted_covers_held_covers_zero"
    )
    refused(f"UPDATE billing_ledgeraccount SET held = -1 {purse}", "posted_covers_held_covers_zero")


def test_an_entry_has_two_sides_and_an_amount(busy):
    columns = (
        "debit_id, credit_id, amount, organization_id, currency, purse_id, purse_sequence, balance_after,"
        " idempotency_key, kind, reason, operator, request_id, created_at"
    )
    next_one = "(SELECT max(purse_sequence) + 1 FROM billing_ledgerentry)"
    values = (
        f"organization_id, currency, purse_id, {next_one}, 1, 'k', kind, reason, operator, '', created_at"
    )
    source = "FROM billing_ledgerentry WHERE kind = 'recharge'"
    one_sided = (
        f"INSERT INTO billing_ledgerentry ({columns}) SELECT credit_id, credit_id, 1, {values} {source}"
    )
    of_nothing = (
        f"INSERT INTO billing_ledgerentry ({columns}) SELECT debit_id, credit_id, 0, {values} {source}"
    )
    elsewhere = f"INSERT INTO billing_ledgerentry ({columns}) SELECT debit_id, gen_random_uuid(), 1, {values} {source}"
    refused(one_sided, "entry_has_two_sides")
    refused(of_nothing, "entry_moves_something")
    refused(elsewhere, "entry_touches_its_purse")


def test_the_same_key_is_booked_once_by_the_database_too(busy):
    entry = busy.entries(kind="prompt")[0]
    entry.pk, entry.purse_sequence = None, len(busy.entries()) + 1
    with pytest.raises(IntegrityError, match="idempotency_key"), transaction.atomic():
        entry.save(force_insert=True)


def test_an_entry_comes_after_the_one_before_it(busy):
    """A number that leaves a gap has nothing to be chained to."""
    entry = busy.entries(kind="prompt")[0]
    entry.pk, entry.purse_sequence, entry.idempotency_key = None, len(busy.entries()) + 2, "another"
    with pytest.raises(IntegrityError, match="without the one before it"), transaction.atomic():
        entry.save(force_insert=True)


def test_system_accounts_hold_no_sums(payer):
    system = LedgerAccount.objects.get(kind=AccountKind.REVENUE_CALL, currency="CNY")
    refused(
        f"UPDATE billing_ledgeraccount SET posted = 1 WHERE id = '{system.pk}'", "purses_belong_to_somebody"
    )


def test_prices_that_overlap_are_refused(db):
    item = PricedItem.objects.get(meter="creation", model="moonshot-v1")
    existing = item.prices.get()
    for valid_from, valid_to in [
        (existing.valid_from, None),
        (existing.valid_from + timedelta(days=1), existing.valid_from + timedelta(days=2)),
        (existing.valid_from - timedelta(days=1), existing.valid_from + timedelta(microseconds=1)),
    ]:
        with pytest.raises(IntegrityError, match="prices_do_not_overlap"), transaction.atomic():
            Price.objects.create(
                priced_item=item, per_million=Decimal(1), valid_from=valid_from, valid_to=valid_to
            )


def test_a_minute_is_charged_once_by_the_database_too(busy):
    line = StorageLine.objects.get()
    assert (line.first_minute, line.end_minute) == (0, 5)
    refused(
        "INSERT INTO billing_storageline (segment_id, first_minute, end_minute, price_id, unit_price, amount,"
        f" meter_event_id) SELECT segment_id, 4, 6, price_id, unit_price, amount, '{busy.entries()[-2].meter_event_id}'"
        " FROM billing_storageline",
        "a_minute_is_charged_once",
    )


# --- The audit itself finds what is wrong ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "invariant"),
    [
        ("UPDATE billing_ledgeraccount SET posted = posted + 1 WHERE kind = 'cash'", audit.POSTED),
        ("UPDATE billing_ledgeraccount SET posted = posted + 1 WHERE kind = 'cash'", audit.BALANCED),
        ("UPDATE billing_ledgeraccount SET entry_count = 99 WHERE kind = 'cash'", audit.POSTED),
        ("UPDATE billing_ledgeraccount SET held = held + 1 WHERE kind = 'cash'", audit.HELD),
        ("UPDATE billing_hold SET state = 'open', closed_at = NULL", audit.HELD),
        ("DELETE FROM billing_ledgerentry WHERE kind = 'prompt'", audit.POSTED),
        ("DELETE FROM billing_ledgerentry WHERE kind = 'prompt'", audit.RERATED),
        ("UPDATE billing_ledgerentry SET balance_after = 1 WHERE kind = 'prompt'", audit.POSTED),
        ("UPDATE billing_ledgerentry SET amount = amount + 1 WHERE kind = 'storage'", audit.RERATED),
        ("UPDATE billing_ledgerentry SET unit_price = 1 WHERE kind = 'call'", audit.RERATED),
        ("UPDATE billing_ledgerentry SET quantity = quantity + 1 WHERE kind = 'prompt'", audit.EXPLAINED),
        (
            "UPDATE billing_ledgerentry SET debit_id = gen_random_uuid() WHERE kind = 'recharge'",
            audit.EXPLAINED,
        ),
        ("UPDATE billing_meterevent SET quantity = 99 WHERE meter = 'prompt'", audit.RERATED),
        ("UPDATE billing_meterevent SET model = 'unknown' WHERE meter = 'prompt'", audit.EXPLAINED),
        ("UPDATE billing_meterevent SET quantity = 10001 WHERE meter = 'creation'", audit.RERATED),
        ("UPDATE billing_storageline SET end_minute = 4", audit.TILED),
        ("UPDATE billing_storagesegment SET billed_minutes = 4", audit.TILED),
        ("UPDATE billing_storagesegment SET billed_minutes = 6, closed_at = ends_at", audit.TILED),
        (
            "UPDATE billing_storagesegment SET started_at = '2024-08-06T15:58:00Z', ends_at = '2024-08-09Z'",
            audit.RERATED,
        ),
        ("UPDATE billing_billingaccount SET storage_commitment = 1", audit.RECKONING),
        ("UPDATE billing_billingaccount SET exhaust_at = now()", audit.RECKONING),
    ],
)
def test_the_audit_finds_damage(busy, damage, invariant):
    """Done with every guard lifted, and undone again."""
    broken = None
    with pytest.raises(ZeroDivisionError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        for table in APPEND_ONLY:
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        cursor.execute(damage)
        assert cursor.rowcount > 0
        broken = {violation.invariant for violation in audit.violations(clock.now())}
        raise ZeroDivisionError
    assert invariant in broken
    assert audit.violations(clock.now()) == []


def test_whoever_knows_more_adds_a_check(monkeypatch):
    at = clock.now()
    with monkeypatch.context() as patched:
        patched.setattr(audit, "_registered", {})
        audit.register("I6 x", lambda at: [audit.Violation(invariant="I6 x", subject="x", detail=str(at))])
        assert [violation.detail for violation in audit.violations(at)] == [str(at)]
        assert audit.names()[-1] == "I6 x"
