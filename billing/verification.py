"""Checking a statement by nothing but itself: no database, no clock, no trust in who made it. Pure.

What it proves: every charge is quantity × unit price, every balance follows from the one before, every entry is the
one that was chained, the sums are those of the entries, and the invoice is the rounded sum. What it cannot prove alone:
that the opening heads are those of the statement before, which is why several statements can be checked in a row, and
that the head it ends with is still the ledger's, which is why heads are worth keeping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal, DecimalException
from itertools import pairwise
from typing import Annotated, Any, Literal

import msgspec

from billing import chain, money
from billing.chain import ChainedEntry
from billing.money import ZERO
from billing.periods import Period
from billing.rounding import invoice_amount
from billing.statement_document import FORMAT

METERS = ("creation", "storage", "call", "prompt", "completion")


class StatementWrong(Exception):
    """`where` names the first line that is off, `detail` says how."""

    def __init__(self, where: str, detail: str) -> None:
        super().__init__(f"{where}: {detail}")
        self.where = where
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was found to be true of one statement."""

    organization: str
    period: Period
    entries: int
    purses: int
    opening: Decimal
    closing: Decimal
    currency: str
    invoice: int | None

    def __str__(self) -> str:
        """With nothing in it that a terminal would act on: the organization is what the file says."""
        invoiced = "" if self.invoice is None else f", invoice {self.invoice}"
        return (
            f"{_printable(self.organization)} from {self.period.start} to {self.period.end}: {self.entries} entries of"
            f" {self.purses} purses, each amount, balance and chain link, all sums{invoiced}:"
            f" {money.text(self.opening)} to {money.text(self.closing)} {self.currency}, proved"
        )


# --- The document, as it must be -----------------------------------------------------------------------------------


At = Annotated[datetime, msgspec.Meta(tz=True)]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class _Used(_Part, frozen=True):
    meter: Literal["creation", "storage", "call", "prompt", "completion"]
    model: str
    subject: str
    occurred_at: At
    minutes: tuple[int, int] | None


class _Entry(_Part, frozen=True):
    id: int
    created_at: At
    purse: str
    sequence: int
    kind: str
    amount: Decimal
    balance_after: Decimal
    quantity: int | None
    unit_price: Decimal | None
    event: str | None
    used: _Used | None
    reverses: int | None
    reason: str
    request_id: str
    sealed: str
    chain: str


class _Waived(_Part, frozen=True):
    id: int
    created_at: At
    amount: Decimal
    quantity: int
    unit_price: Decimal
    event: str
    used: _Used


class _Meter(_Part, frozen=True):
    meter: str
    model: str
    quantity: int
    paid: Decimal
    waived: Decimal


class _Purse(_Part, frozen=True):
    id: str
    kind: str
    expires_at: At | None
    opening: Decimal
    closing: Decimal
    opening_sequence: int
    closing_sequence: int
    opening_chain: str
    closing_chain: str


class _Invoice(_Part, frozen=True):
    number: int
    spent: Decimal
    spent_to_date: Decimal
    amount: Decimal


class _Document(_Part, frozen=True):
    object: Literal["billing.statement"]
    format: int
    organization: str
    currency: str
    start: date
    end: date
    starts_at: At
    ends_at: At
    read_at: At
    final: bool
    opening: Decimal
    closing: Decimal
    spent: Decimal
    sums: dict[str, Decimal]
    meters: list[_Meter]
    purses: list[_Purse]
    entries: list[_Entry]
    waived: list[_Waived]
    invoice: _Invoice | None


def _read(text: bytes) -> _Document:
    try:
        document = msgspec.json.decode(text, type=_Document)
    except msgspec.MsgspecError as error:
        raise StatementWrong("the document", str(error)) from error
    if document.format != FORMAT:
        raise StatementWrong("the document", f"its format is {document.format}, this reads {FORMAT}")
    return document


# --- The proof -------------------------------------------------------------------------------------------------------


def verify(text: bytes) -> Proof:
    """Recompute a statement from its JSON. Raises StatementWrong at the first thing that is off."""
    return _proved(_read(text))


def _proved(document: _Document) -> Proof:
    try:
        return _verify(document)
    except (DecimalException, OverflowError, ValueError) as error:
        raise StatementWrong("the document", f"a figure is none: {error!r}") from error


def verify_all(texts: Sequence[bytes]) -> list[Proof]:
    """The same for statements that follow each other: each must open where the one before it closed."""
    documents = [_read(text) for text in texts]
    proofs = [_proved(document) for document in documents]
    for number, (before, after) in enumerate(pairwise(documents), start=2):
        _follows(before, after, where=f"statement {number}")
    return proofs


def _follows(before: _Document, after: _Document, *, where: str) -> None:
    _same(where, "it is of another organization", before.organization, after.organization)
    _same(where, "it does not begin where the one before it ends", before.end, after.start)
    closed = {purse.id: purse for purse in before.purses}
    for purse in after.purses:
        last = closed.pop(purse.id, None)
        head = (last.closing, last.closing_sequence, last.closing_chain) if last else _beginning(purse.id)
        opened = (purse.opening, purse.opening_sequence, purse.opening_chain)
        _same(where, f"purse {purse.id} does not open where it closed", head, opened)
    if closed:
        raise StatementWrong(where, f"purse {min(closed)} is gone")
    if before.invoice is not None and after.invoice is not None:
        invoiced = money.subtract(after.invoice.spent_to_date, after.invoice.spent)
        what = "its invoice does not go on from the invoice before"
        _same(where, what, before.invoice.spent_to_date, invoiced)


def _verify(document: _Document) -> Proof:
    period = Period(start=document.start, end=document.end)
    read_after_end = document.read_at >= period.ends_at
    _same("the document", "`starts_at` is not `start`", period.starts_at, document.starts_at)
    _same("the document", "`ends_at` is not `end`", period.ends_at, document.ends_at)
    _same("the document", "`final` is not what `read_at` says", read_after_end, document.final)
    _verify_entries(document)
    _verify_charges(document)
    _verify_sums(document)
    if document.invoice is not None:
        _verify_invoice(document, document.invoice, period)
    return Proof(
        organization=document.organization,
        period=period,
        entries=len(document.entries),
        purses=len(document.purses),
        opening=document.opening,
        closing=document.closing,
        currency=document.currency,
        invoice=None if document.invoice is None else document.invoice.number,
    )


def _beginning(purse: str) -> tuple[Decimal, int, str]:
    return ZERO, 0, chain.genesis(purse).hex()


def _verify_entries(document: _Document) -> None:
    """Order, balances and chains, line by line from the opening heads."""
    heads = {}
    for purse in document.purses:
        heads[purse.id] = (purse.opening, purse.opening_sequence, purse.opening_chain)
        if purse.opening_sequence == 0:
            _same(f"purse {purse.id}", "its beginning is not one", _beginning(purse.id), heads[purse.id])
    last_id = 0
    entries = {entry.id: entry for entry in document.entries}
    for entry in document.entries:
        where = f"entry {entry.id}"
        _same(
            where,
            "a reversal, and only it, names an entry",
            entry.kind == "reversal",
            entry.reverses is not None,
        )
        undone = None if entry.reverses is None else entries.get(entry.reverses)
        if undone is not None:
            mirror = (undone.purse, -undone.amount)
            _same(
                where, f"it is not the mirror image of entry {undone.id}", mirror, (entry.purse, entry.amount)
            )
        if entry.purse not in heads:
            raise StatementWrong(where, f"its purse {entry.purse} is not among the purses")
        if entry.id <= last_id:
            raise StatementWrong(where, f"it comes after entry {last_id}")
        if not document.starts_at <= entry.created_at < document.ends_at:
            raise StatementWrong(where, "it was booked outside of the period")
        chained = _chained(entry, organization=document.organization, currency=document.currency)
        heads[entry.purse] = _next_head(where, heads[entry.purse], entry, chained)
        last_id = entry.id
    for purse in document.purses:
        closing = (purse.closing, purse.closing_sequence, purse.closing_chain)
        _same(f"purse {purse.id}", "it does not close where its entries lead", heads[purse.id], closing)


def _next_head(
    where: str, head: tuple[Decimal, int, str], entry: _Entry, chained: ChainedEntry
) -> tuple[Decimal, int, str]:
    balance, sequence, before = head
    _same(where, "its number does not follow", sequence + 1, entry.sequence)
    balance = money.add(balance, entry.amount)
    _same(where, "its balance is not the one before and its amount", balance, entry.balance_after)
    if balance < ZERO:
        raise StatementWrong(where, f"the purse is overdrawn: {balance}")
    link = chain.following(bytes.fromhex(before), chained).hex()
    _same(where, "its chain is not what its contents make", link, entry.chain)
    return balance, entry.sequence, link


def _chained(entry: _Entry, *, organization: str, currency: str) -> ChainedEntry:
    return ChainedEntry(
        id=entry.id,
        organization=organization,
        currency=currency,
        purse=entry.purse,
        sequence=entry.sequence,
        kind=entry.kind,
        change=entry.amount,
        balance_after=entry.balance_after,
        event=entry.event,
        quantity=entry.quantity,
        unit_price=entry.unit_price,
        reverses=entry.reverses,
        reason=entry.reason,
        request_id=entry.request_id,
        created_at=entry.created_at,
        sealed=entry.sealed,
    )


@dataclass(slots=True, kw_only=True)
class _Event:
    """One fact, and what its parts make together."""

    where: str
    used: _Used
    quantity: int
    unit_price: Decimal
    paid: Decimal = ZERO
    waived: Decimal = ZERO


def _verify_charges(document: _Document) -> None:
    """Quantity × unit price, however many purses it was taken from; and the sums per meter."""
    events: dict[str, _Event] = {}
    for entry in document.entries:
        where = f"entry {entry.id}"
        if entry.used is None or entry.event is None:
            _same(where, "a charge names its event and what was used", False, entry.kind in METERS)
            continue
        _same(where, "its kind is not what was used", entry.used.meter, entry.kind)
        event = _event(events, where, entry.event, entry.used, entry.quantity, entry.unit_price)
        event.paid = money.subtract(event.paid, entry.amount)
    for each in document.waived:
        where = f"waived entry {each.id}"
        event = _event(events, where, each.event, each.used, each.quantity, each.unit_price)
        event.waived = money.add(event.waived, each.amount)
    for event in events.values():
        due = money.multiply(event.quantity, event.unit_price)
        _same(event.where, "quantity × unit price", due, money.add(event.paid, event.waived))
    _verify_meters(document, events)


def _event(
    events: dict[str, _Event],
    where: str,
    id_: str,
    used: _Used,
    quantity: int | None,
    unit_price: Decimal | None,
) -> _Event:
    if quantity is None or unit_price is None:
        raise StatementWrong(where, "a charge has a quantity and a unit price")
    event = events.setdefault(id_, _Event(where=where, used=used, quantity=quantity, unit_price=unit_price))
    parts = (event.used, event.quantity, event.unit_price)
    _same(where, "it is another part of the same use and says otherwise", parts, (used, quantity, unit_price))
    return event


def _verify_meters(document: _Document, events: dict[str, _Event]) -> None:
    sums: dict[tuple[str, str], tuple[int, Decimal, Decimal]] = {}
    for event in events.values():
        key: tuple[str, str] = (event.used.meter, event.used.model)
        quantity, paid, waived = sums.get(key, (0, ZERO, ZERO))
        sums[key] = (
            quantity + event.quantity,
            money.add(paid, event.paid),
            money.add(waived, event.waived),
        )
    stated: dict[tuple[str, str], tuple[int, Decimal, Decimal]]
    stated = {(each.meter, each.model): (each.quantity, each.paid, each.waived) for each in document.meters}
    for key in sorted(sums.keys() | stated.keys()):
        _same(
            f"meter {key[0]} of {key[1]}", "its sum is not that of its lines", sums.get(key), stated.get(key)
        )


def _verify_sums(document: _Document) -> None:
    kinds: dict[str, Decimal] = {}
    spent = ZERO
    for entry in document.entries:
        kinds[entry.kind] = money.add(kinds.get(entry.kind, ZERO), entry.amount)
        # The reversal of a charge brings money back; that of a recharge takes it out, and is no spending.
        if entry.kind in METERS or (entry.kind == "reversal" and entry.amount > ZERO):
            spent = money.subtract(spent, entry.amount)
    for kind in sorted(kinds.keys() | document.sums.keys()):
        _same(f"the sum of {kind}", "it is not that of its lines", kinds.get(kind), document.sums.get(kind))
    opening = money.total(purse.opening for purse in document.purses)
    closing = money.total(purse.closing for purse in document.purses)
    _same("the opening balance", "it is not that of the purses", opening, document.opening)
    _same("the closing balance", "it is not that of the purses", closing, document.closing)
    _same("what was spent", "it is not that of the lines", spent, document.spent)


def _verify_invoice(document: _Document, invoice: _Invoice, period: Period) -> None:
    where = f"invoice {invoice.number}"
    _same(where, "it is not of this month", True, period.is_month)
    _same(where, "what was spent", document.spent, invoice.spent)
    if invoice.spent_to_date < max(invoice.spent, ZERO):
        raise StatementWrong(
            where, f"{invoice.spent_to_date} to date leave less than nothing for the time before"
        )
    amount = invoice_amount(spent=invoice.spent, spent_to_date=invoice.spent_to_date)
    _same(where, "its amount is not the rounded sum", amount, invoice.amount)


def _same(where: str, what: str, expected: Any, stated: Any) -> None:
    if expected != stated:
        raise StatementWrong(where, f"{what}: {_shown(expected)} expected, {_shown(stated)} stated")


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "�" for character in text)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_shown(each) for each in value)
    return _printable(str(value))
