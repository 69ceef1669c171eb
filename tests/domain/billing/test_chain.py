"""The hash chain of each purse: every way of writing has it, and whoever rewrites the ledger is found."""

from __future__ import annotations

import hashlib
import uuid
from contextlib import contextmanager
from decimal import Decimal
from importlib import import_module

import pytest
from django.db import IntegrityError, connection, transaction

from billing import audit, chain, charging, clock
from tests.domain.billing.conftest import Payer, make_payer
from tests.domain.billing.test_plain_calls import known_prices, way_of_hold, way_of_settling

pytestmark = pytest.mark.django_db


def heads(payer: Payer) -> list[bytes]:
    """As stored, in the order of the one purse's sequence."""
    return [bytes(entry.chain) for entry in payer.entries(purse__isnull=False)]


def recomputed(payer: Payer) -> list[bytes]:
    entries = payer.entries(purse__isnull=False)
    head, found = chain.genesis(str(entries[0].purse_id)), []
    for entry in entries:
        head = chain.following(head, entry.chained)
        found.append(head)
    return found


# --- It is there ------------------------------------------------------------------------------------------------


def test_an_entrys_head_by_hand(payer):
    """What the docs say, done without our own code."""
    [entry] = payer.entries()
    purse, funding = entry.purse_id, entry.debit_id
    genesis = hashlib.sha256(f"billing purse {purse}".encode()).digest()
    sealed = hashlib.sha256(
        f'["{funding}", "{purse}", "{entry.idempotency_key}", null, "ada"]'.encode()
    ).hexdigest()
    contents = (
        f'[{entry.pk}, "{payer.organization_id}", "CNY", "{purse}", 1, "recharge", "100.000000000", "100.000000000",'
        f' null, null, null, null, "test", "", 1721044800000000, "{sealed}"]'
    )
    assert bytes(entry.chain) == hashlib.sha256(genesis + contents.encode()).digest()


def test_rows_of_one_statement_are_chained_to_each_other(payer):
    """The long way writes a call's three entries with one INSERT."""
    payer.call(prompt=1000, completion=100, subject="cache-1")
    assert len(heads(payer)) == 4
    assert len(set(heads(payer))) == 4
    assert heads(payer) == recomputed(payer)


def test_the_short_way_is_chained_as_well():
    payer, reference = make_payer(recharged="10", at=clock.now()), uuid.uuid4()
    known_prices(payer)
    way_of_hold(payer, reference, Decimal("0.5"))[1]()
    way_of_settling(payer, reference, subject="cache-x", prompt=1_000, completion=10)[1]()
    assert [entry.kind for entry in payer.entries()] == ["recharge", "call", "prompt", "completion"]
    assert heads(payer) == recomputed(payer)


def test_texts_of_every_kind_are_chained_as_python_writes_them(payer):
    """Quotes, escapes, control characters, letters beyond the first plane: JSON in PostgreSQL and in Python agree."""
    texts = [
        '"quoted"',
        "back\\slash",
        "a\nb\tc\rd\be\ff\x1f\x7f",
        "缓存 é 🐫",
        "\u2028 </script>",
        "a|b, null]",
    ]
    for text in texts:
        with transaction.atomic():
            charging.recharge(
                organization_id=payer.organization_id,
                amount=Decimal("0.000000001"),
                purse="cash",
                reason=text,
                operator=text,
                idempotency_key=text,
                at=payer.at,
            )
    assert heads(payer) == recomputed(payer)


def test_each_purse_has_its_own(payer):
    payer.voucher(5, hours=1)
    first, second = payer.entries()
    assert second.purse_sequence == 1
    assert bytes(second.chain) == chain.following(chain.genesis(str(second.purse_id)), second.chained)


def test_what_is_waived_is_in_no_chain(new_payer):
    payer = new_payer(recharged="0.03")
    payer.call(hold="0.02", prompt=3000)
    assert [entry.chain for entry in payer.entries(kind="waiver")] == [None]


def test_the_chain_is_the_databases_word_not_the_writers(payer):
    entry = payer.entries()[0]
    entry.pk, entry.purse_sequence, entry.idempotency_key = None, 2, "another"
    entry.balance_after, entry.chain = Decimal(200), b"\0" * 32
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        entry.save(force_insert=True)
        entry.refresh_from_db()
        assert bytes(entry.chain) == chain.following(heads(payer)[0], entry.chained)
        raise ZeroDivisionError


def test_an_entry_is_not_booked_before_the_one_before_it(payer):
    """A clock that was set back does not write into a period that is over."""
    before = payer.at
    payer.pass_time(minutes=-5).recharge(1)
    assert payer.entries()[-1].created_at == before


def test_entries_from_before_the_chain_are_chained_by_the_migration(payer):
    payer.call(prompt=1000, completion=100, subject="cache-1")
    payer.voucher(5, hours=1)
    before = [entry.chain for entry in payer.entries()]
    with unguarded() as cursor:
        cursor.execute("ALTER TABLE billing_ledgerentry DROP CONSTRAINT entry_of_a_purse_is_chained")
        cursor.execute("UPDATE billing_ledgerentry SET chain = NULL")
        cursor.execute("ALTER TABLE billing_ledgerentry ENABLE TRIGGER USER")
        cursor.execute(import_module("billing.migrations.0005_hash_chain").BACK_FILL)
        assert [entry.chain for entry in payer.entries()] == before
        cursor.execute("SAVEPOINT guarded")
        with pytest.raises(IntegrityError, match="append-only"):
            cursor.execute("UPDATE billing_ledgerentry SET chain = NULL")
        cursor.execute("ROLLBACK TO guarded")


# --- Who rewrites it is found -----------------------------------------------------------------------------------


@contextmanager
def unguarded():
    """As the owner of the tables could write; undone afterwards."""
    with pytest.raises(ZeroDivisionError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE billing_ledgerentry DISABLE TRIGGER USER")
        yield cursor
        raise ZeroDivisionError


@pytest.fixture
def busy(payer):
    """Numbers 1 to 5: a recharge, a call's fee, prompt and completion, and another prompt."""
    payer.call(prompt=1000, completion=100, subject="cache-1")
    payer.call(prompt=3000)
    return payer


COLUMNS = {
    "amount": "amount + 0.000000001",
    "balance_after": "balance_after + 1",
    "kind": "'storage'",
    "quantity": "quantity + 1",
    "unit_price": "unit_price * 2",
    "reason": "'another story'",
    "operator": "'bob'",
    "request_id": "'req-2'",
    "idempotency_key": "idempotency_key || 'x'",
    "created_at": "created_at + interval '1 microsecond'",
    "credit_id": "gen_random_uuid()",
    "price_id": "price_id + 1",
    "organization_id": "'org-other'",
    "currency": "'USD'",
    "id": "id + 1000000",
}


@pytest.mark.parametrize("column", COLUMNS)
def test_a_changed_column_is_found(busy, column):
    with unguarded() as cursor:
        cursor.execute(
            f"UPDATE billing_ledgerentry SET {column} = {COLUMNS[column]} WHERE purse_sequence = 3 RETURNING id"
        )
        [(entry_id,)] = cursor.fetchall()
        [broken] = chain_breaks()
        assert broken.subject == str(busy.entries()[0].purse_id)
        assert f"breaks at number 3, entry {entry_id}" in broken.detail


def test_a_row_removed_in_the_middle_is_found(busy):
    with unguarded() as cursor:
        cursor.execute("DELETE FROM billing_ledgerentry WHERE purse_sequence = 3")
        [broken] = chain_breaks()
        assert "number 3 is missing" in broken.detail


def test_a_row_removed_in_the_middle_and_the_rest_moved_up_is_found(busy):
    with unguarded() as cursor:
        cursor.execute("DELETE FROM billing_ledgerentry WHERE purse_sequence = 3")
        for number in (4, 5):
            cursor.execute(
                f"UPDATE billing_ledgerentry SET purse_sequence = {number - 1} WHERE purse_sequence = {number}"
            )
        [broken] = chain_breaks()
        assert "breaks at number 3" in broken.detail


def test_rows_swapped_are_found(busy):
    with unguarded() as cursor:
        for old, new in [(3, 99), (4, 3), (99, 4)]:
            cursor.execute(
                f"UPDATE billing_ledgerentry SET purse_sequence = {new} WHERE purse_sequence = {old}"
            )
        [broken] = chain_breaks()
        assert "breaks at number 3" in broken.detail


def test_a_row_put_in_between_is_found(busy):
    with unguarded() as cursor:
        cursor.execute("UPDATE billing_ledgerentry SET purse_sequence = 6 WHERE purse_sequence = 5")
        entry = busy.entries()[3]
        entry.pk, entry.purse_sequence, entry.idempotency_key = None, 5, "another"
        entry.save(force_insert=True)
        [broken] = chain_breaks()
        assert "breaks at number 5" in broken.detail


def test_a_cut_tail_is_found_by_the_count(busy):
    """The chain that is left is whole; that there were more entries, the purse knows."""
    with unguarded() as cursor:
        cursor.execute("DELETE FROM billing_ledgerentry WHERE purse_sequence = 5")
        broken = [violation.detail for violation in violations(audit.POSTED)]
        assert "5 entries counted, 4 found, the last is number 4" in broken


def chain_breaks() -> list[audit.Violation]:
    return [violation for violation in violations(audit.POSTED) if "chain breaks" in violation.detail]


def violations(invariant: str) -> list[audit.Violation]:
    return [violation for violation in audit.violations(clock.now()) if violation.invariant == invariant]
