"""Statements: all that happened in a period, opening where the one before closed, and provable far from here."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from django.core.management import call_command

from billing import chain, clock, invoicing, money, statements, verification
from billing.errors import AccountNotFound, StatementRefused
from billing.periods import ZONE, day_at, months
from billing.statement_document import Statement
from billing.verification import StatementWrong
from tests.domain.billing.conftest import MODEL, Payer

pytestmark = pytest.mark.django_db

JULY = {"start": date(2024, 7, 1), "end": date(2024, 8, 1)}
AUGUST = {"start": date(2024, 8, 1), "end": date(2024, 9, 1)}
REPOSITORY = Path(__file__).resolve().parents[3]


def statement(payer: Payer, **period: date) -> Statement:
    return statements.statement(payer.organization_id, **(period or JULY))


def as_json(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


@pytest.fixture
def busy(payer):
    """Two purses, a call split over both, one with a waiver, storage, a refund, a voucher that lapsed; invoiced."""
    payer.voucher("0.25", hours=1)
    payer.create("cache-1", tokens=10_000, seconds=600)
    payer.call(prompt=1000, completion=100, subject="cache-1")
    payer.voucher("3", hours=1)
    payer.pass_time(minutes=30).close("cache-1")
    payer.pass_time(hours=1).settle()
    payer.correct(payer.entries(kind="call")[0])
    payer.call(prompt=10_000_000, completion=7, hold="1")
    payer.pass_time(hours=24 * 20).recharge(9)
    payer.call(prompt=2000)
    invoicing.make(payer.organization_id, at=payer.at + timedelta(days=60))
    return payer


# --- What stands on it --------------------------------------------------------------------------------------------


def test_it_holds_every_entry_of_the_period_in_order(busy):
    made = statement(busy)
    july = [entry for entry in busy.entries() if entry.created_at < made.period.ends_at]
    assert [line.entry.id for line in made.lines] == [e.pk for e in july if e.purse_id is not None]
    assert [line.id for line in made.waived] == [e.pk for e in july if e.purse_id is None]
    assert len(made.waived) == 2
    assert made.is_final


def test_its_sums_are_those_of_its_lines(busy):
    """By hand: see `busy`. The refund of ¥0.01 went to a voucher that was over, and lapses in August."""
    made = statement(busy)
    assert (made.opening, made.closing) == (0, Decimal("0.01"))
    assert made.sums == {
        "creation": Decimal("-0.24"),
        "storage": Decimal("-1"),
        "call": Decimal("-0.02"),
        "prompt": -Decimal("0.012") - Decimal("99.9768"),
        "completion": Decimal("-0.0012"),
        "recharge": Decimal("103.25"),
        "reversal": Decimal("0.01"),
        "lapse": Decimal("-2"),
    }
    assert sum(made.sums.values()) == made.closing
    meters = {meter.meter: meter for meter in made.meters}
    assert meters["storage"].quantity == 10_000 * 10
    assert meters["prompt"].quantity == 10_001_000
    assert meters["prompt"].model == MODEL
    assert meters["prompt"].paid + meters["prompt"].waived == 10_001_000 * Decimal("0.000012")
    assert made.spent == sum(meter.paid for meter in made.meters) - Decimal("0.01") == Decimal("101.24")


def test_it_opens_where_the_one_before_closed(busy):
    july, august = statement(busy), statement(busy, **AUGUST)
    days = [
        statement(busy, start=day, end=day + timedelta(days=1))
        for day in (date(2024, 7, 15), date(2024, 7, 16))
    ]
    for before, after in ((july, august), days):
        for closed, opened in zip(before.purses, after.purses, strict=True):
            assert (closed.closing, closed.closing_sequence, closed.closing_chain) == (
                *(opened.opening, opened.opening_sequence, opened.opening_chain),
            )
    assert august.closing == Decimal("8.976")
    assert [line.entry.kind for line in august.lines] == ["lapse", "recharge", "prompt"]


def test_any_days_tile_the_whole(busy):
    whole = statement(busy, start=date(2024, 7, 1), end=date(2024, 9, 1))
    parts = [statement(busy, start=m.start, end=m.end) for m in months(date(2024, 7, 1), date(2024, 8, 31))]
    assert [line for part in parts for line in part.lines] == list(whole.lines)


def test_a_day_begins_at_midnight_of_utc_8(new_payer):
    payer = new_payer(at=datetime(2024, 7, 31, 23, 59, 59, 999999, tzinfo=ZONE))
    payer.recharge(1)
    payer.at += timedelta(microseconds=1)
    payer.recharge(2)
    assert statement(payer).closing == 1
    assert statement(payer, **AUGUST).closing == 3


def test_before_anything_happened_it_is_empty(payer):
    made = statement(payer, start=date(2024, 6, 1), end=date(2024, 7, 1))
    assert (made.opening, made.closing, made.lines, made.invoice) == (0, 0, (), None)
    assert verification.verify(as_json(made.as_document())).entries == 0


def test_another_organizations_money_is_not_on_it(busy, new_payer):
    made = statement(new_payer(recharged="7"))
    assert [line.entry.change for line in made.lines] == [7]
    assert made.waived == ()


def test_a_period_that_is_not_over_is_settled_up_to_now(new_payer):
    payer = new_payer(recharged="100", at=clock.now() - timedelta(minutes=5, seconds=30))
    payer.store("cache-1", tokens=10_000, seconds=3600)
    assert payer.entries(kind="storage") == []
    today = day_at(clock.now())
    made = statement(payer, start=today - timedelta(days=1), end=today + timedelta(days=1))
    assert made.sums["storage"] == -6 * Decimal("0.05")
    assert not made.is_final
    assert not made.as_document()["final"]


def test_a_period_that_is_over_is_only_read(payer):
    payer.store("cache-1", tokens=10_000, seconds=3600)
    statement(payer)
    assert payer.entries(kind="storage") == []


@pytest.mark.parametrize(
    ("period", "why"),
    [
        ({"start": date(2024, 8, 1), "end": date(2024, 8, 1)}, "comes after"),
        ({"start": date(2024, 8, 1), "end": date(2024, 7, 1)}, "comes after"),
        ({"start": date(2999, 1, 1), "end": date(2999, 2, 1)}, "has not begun"),
    ],
)
def test_a_period_that_is_none_is_refused(payer, period, why):
    with pytest.raises(StatementRefused, match=why):
        statement(payer, **period)


def test_more_entries_than_fit_are_refused(busy, monkeypatch):
    monkeypatch.setattr(statements, "STATEMENT_ENTRIES_MAX", 3)
    with pytest.raises(StatementRefused, match="more than 3 entries"):
        statement(busy)
    assert len(statement(busy, **AUGUST).lines) == 3


def test_without_an_account_there_is_none(db):
    with pytest.raises(AccountNotFound):
        statements.statement("org-nobody", **JULY)


def test_the_invoice_of_a_month_is_on_it(busy):
    july, august = statement(busy), statement(busy, **AUGUST)
    assert (july.invoice.number, july.invoice.spent) == (1, july.spent)
    assert (august.invoice.number, august.invoice.spent_to_date) == (2, july.spent + august.spent)
    assert statement(busy, start=date(2024, 7, 1), end=date(2024, 7, 31)).invoice is None


# --- CSV --------------------------------------------------------------------------------------------------------------


def test_csv_has_a_mark_a_head_and_a_row_per_entry(busy):
    made = statement(busy)
    text = made.as_csv()
    assert text.encode().startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"))))
    assert [Decimal(row["amount"]) for row in rows] == [line.entry.change for line in made.lines]
    assert rows[-1]["chain"] == made.lines[-1].chain.hex()
    assert {row["purse"] for row in rows} == {"cash", "voucher"}


def test_a_text_is_no_formula_in_a_spreadsheet(payer):
    reversal = payer.correct(payer.entries()[0])
    assert reversal.reason == "a mistake"
    payer.recharge(1, purse="cash")
    line = statement(payer).lines[0]
    for text in ("=1+1", "+1", "-1", "@x"):
        risky = replace(line, entry=replace(line.entry, reason=text))
        made = replace(statement(payer), lines=(risky,))
        [row] = csv.DictReader(io.StringIO(made.as_csv().removeprefix("\ufeff")))
        assert row["reason"] == f"'{text}"


# --- Proving it -------------------------------------------------------------------------------------------------------


def test_a_statement_proves_itself(busy):
    proof = verification.verify(as_json(statement(busy).as_document()))
    assert (proof.entries, proof.purses, proof.invoice) == (12, 2, 1)
    assert str(proof).endswith("all sums, invoice 1: 0.000000000 to 0.010000000 CNY, proved")


def test_statements_in_a_row_prove_that_nothing_is_between_them(busy):
    june = statement(busy, start=date(2024, 6, 1), end=date(2024, 7, 1))
    texts = [as_json(each.as_document()) for each in (june, statement(busy), statement(busy, **AUGUST))]
    assert len(verification.verify_all(texts)) == 3
    with pytest.raises(StatementWrong, match="does not begin where"):
        verification.verify_all([texts[0], texts[2]])


def test_statements_in_a_row_are_of_one_organization_and_one_history(busy, new_payer):
    july, august = statement(busy).as_document(), statement(busy, **AUGUST).as_document()
    other = statement(new_payer(recharged="100")).as_document()
    with pytest.raises(StatementWrong, match="another organization"):
        verification.verify_all([as_json(other), as_json(august)])
    without = statement(busy, start=date(2024, 7, 1), end=date(2024, 7, 15)).as_document()
    rest = statement(busy, start=date(2024, 7, 15), end=date(2024, 8, 1)).as_document()
    verification.verify_all([as_json(each) for each in (without, rest, august)])
    july["invoice"]["spent_to_date"] = "111.240000000"
    with pytest.raises(StatementWrong, match="does not go on from the invoice before"):
        verification.verify_all([as_json(july), as_json(august)])


def test_a_purse_that_does_not_go_on_is_found(busy):
    july, august = statement(busy).as_document(), statement(busy, **AUGUST).as_document()
    for entry in july["entries"]:
        if entry["kind"] == "recharge":
            entry["reason"] = "another story"
    relink(july)
    assert verification.verify(as_json(july)), "by itself it cannot be told from the true one"
    with pytest.raises(StatementWrong, match="does not open where it closed"):
        verification.verify_all([as_json(july), as_json(august)])


def first(document: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(entry for entry in document["entries"] if entry["kind"] == kind)


def relink(document: dict[str, Any]) -> None:
    """As a forger would: every balance and link made anew, so that the chain is whole again."""
    heads = {p["id"]: (Decimal(p["opening"]), bytes.fromhex(p["opening_chain"])) for p in document["purses"]}
    for raw in document["entries"]:
        balance, head = heads[raw["purse"]]
        balance = money.add(balance, Decimal(raw["amount"]))
        raw["balance_after"] = money.text(balance)
        entry = verification._chained(
            msgspec.convert(raw, verification._Entry, strict=False),
            organization=document["organization"],
            currency=document["currency"],
        )
        head = chain.following(head, entry)
        raw["chain"], heads[raw["purse"]] = head.hex(), (balance, head)
    for purse in document["purses"]:
        balance, head = heads[purse["id"]]
        purse["closing"], purse["closing_chain"] = money.text(balance), head.hex()
    document["closing"] = money.text(money.total(balance for balance, _ in heads.values()))


FORGERIES = {
    "an amount": lambda d: first(d, "prompt").update(amount="-0.011000000"),
    "a quantity": lambda d: first(d, "prompt").update(quantity=999),
    "whose it is": lambda d: d.update(organization="org-other"),
    "a currency": lambda d: d.update(currency="USD"),
    "a reason": lambda d: first(d, "recharge").update(reason="a gift"),
    "a time": lambda d: first(d, "prompt").update(created_at="2024-07-15T12:00:00.000001Z"),
    "a time of nowhere": lambda d: first(d, "prompt").update(created_at="2024-07-15T12:00:00"),
    "who did it": lambda d: first(d, "recharge").update(sealed="0" * 64),
    "a row left out": lambda d: d["entries"].pop(3),
    "the last row left out": lambda d: d["entries"].pop(),
    "two rows swapped": lambda d: d["entries"].insert(2, d["entries"].pop(3)),
    "a row twice": lambda d: d["entries"].insert(2, d["entries"][2]),
    "an opening balance": lambda d: d["purses"][0].update(opening="1.000000000"),
    "an opening head": lambda d: d["purses"][0].update(opening_chain="0" * 64),
    "a closing head": lambda d: d["purses"][0].update(closing_chain="0" * 64),
    "a closing balance": lambda d: d.update(closing="1.000000000"),
    "a sum": lambda d: d["sums"].update(call="0.000000000"),
    "a sum left out": lambda d: d["sums"].pop("call"),
    "a meter": lambda d: d["meters"][0].update(quantity=1),
    "a meter left out": lambda d: d["meters"].pop(),
    "what was spent": lambda d: d.update(spent="1.000000000"),
    "what was waived": lambda d: d["waived"][0].update(amount="1.000000000"),
    "a waiver left out": lambda d: d["waived"].pop(),
    "the period": lambda d: d.update(end="2024-08-02", ends_at="2024-08-01T16:00:00.000000Z"),
    "its being final": lambda d: d.update(final=False),
    "an invoice": lambda d: d["invoice"].update(amount="1.00"),
    "an invoice's sum": lambda d: d["invoice"].update(spent_to_date="0.000000000"),
    "another format": lambda d: d.update(format=2),
    "a float": lambda d: d.update(opening=0.1 + 0.2),
    "a tenth place": lambda d: first(d, "prompt").update(amount="-0.0120000001"),
    "no number": lambda d: first(d, "prompt").update(amount="NaN"),
    "an unknown member": lambda d: d.update(note="trust me"),
    "a member left out": lambda d: first(d, "prompt").pop("sealed"),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_what_was_changed_is_found(busy, what):
    document = statement(busy).as_document()
    FORGERIES[what](document)
    with pytest.raises(StatementWrong):
        verification.verify(as_json(document))


def test_the_first_line_that_is_off_is_named(busy):
    document = statement(busy).as_document()
    for entry in document["entries"][2:4]:
        entry["reason"] = "another story"
    with pytest.raises(StatementWrong) as wrong:
        verification.verify(as_json(document))
    assert wrong.value.where == f"entry {document['entries'][2]['id']}"


RELINKED = {
    "a price": (lambda d: first(d, "creation").update(unit_price="0.000023000"), "quantity × unit price"),
    "an amount": (lambda d: first(d, "creation").update(amount="-0.230000000"), "quantity × unit price"),
    "a part of a split": (
        lambda d: first(d, "call").update(quantity=2),
        "quantity × unit price|says otherwise",
    ),
    "a kind": (lambda d: first(d, "creation").update(kind="storage"), "not what was used"),
    "a charge without a fact": (
        lambda d: first(d, "creation").update(event=None, used=None),
        "names its event",
    ),
    "a refund of more": (lambda d: first(d, "reversal").update(amount="0.020000000"), "mirror image"),
    "a refund of nothing": (lambda d: first(d, "reversal").update(reverses=None), "names an entry"),
    "an overdraft": (lambda d: first(d, "recharge").update(amount="0.100000000"), "overdrawn"),
}


@pytest.mark.parametrize("what", RELINKED)
def test_what_was_changed_and_chained_anew_still_has_to_add_up(busy, what):
    """Without an outside anchor a forger can make a chain. He cannot make quantity × price another number."""
    document = statement(busy).as_document()
    relink(document)
    verification.verify(as_json(document))
    change, why = RELINKED[what]
    change(document)
    relink(document)
    with pytest.raises(StatementWrong, match=why):
        verification.verify(as_json(document))


# --- The command, without anything running ----------------------------------------------------------------------------


def verify_offline(*files: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process whose database cannot be reached."""
    kept = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    nowhere = {"DATABASE_URL": "postgres://nobody@127.0.0.1:1/none", "DATA_DIR": str(folder / "none")}
    return subprocess.run(
        [sys.executable, "manage.py", "verify_statement", *map(str, files)],
        cwd=REPOSITORY,
        env=kept | nowhere,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_needs_nothing_but_the_file(busy, tmp_path):
    document = statement(busy).as_document()
    file = tmp_path / "statement.json"
    file.write_bytes(as_json(document))
    done = verify_offline(file, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    [line] = done.stdout.splitlines()
    assert line == str(verification.verify(as_json(document)))
    document["entries"][1]["quantity"] = 1
    file.write_bytes(as_json(document))
    done = verify_offline(file, folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"not proved: entry {document['entries'][1]['id']}: ")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"object": "balance"}', b"\xff"])
def test_what_is_no_statement_is_not_proved(tmp_path, content, capsys):
    file = tmp_path / "statement.json"
    file.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        call_command("verify_statement", str(file))
    assert ended.value.code == 1
    assert "not proved: the document: " in capsys.readouterr().err
