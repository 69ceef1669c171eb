"""A statement of account as data, and the two forms in which it is given away: a JSON document and CSV. Pure.

The document holds all that `verification` needs to recompute it without the database: every entry with what is in its
hash chain, and the heads of the chains between which it lies. Amounts are strings with nine places.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from billing import money
from billing.chain import ChainedEntry
from billing.periods import Period

FORMAT = 1
"""Raised with every change that an older `verify_statement` would misread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """The fact behind a charge. `minutes` are those of its storage segment: [first, end)."""

    meter: str
    model: str
    subject: str
    occurred_at: datetime
    minutes: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One entry of a purse, the head of the purse's chain after it, and what was used, if it is a charge."""

    entry: ChainedEntry
    chain: bytes
    used: Used | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaivedLine:
    """What a call used beyond what could be paid: in no purse, and in no chain."""

    id: int
    event: str
    quantity: int
    unit_price: Decimal
    amount: Decimal
    created_at: datetime
    used: Used


@dataclass(frozen=True, slots=True, kw_only=True)
class PurseSpan:
    """One purse over the period: its balance, number of entries and head of chain before and after."""

    id: str
    kind: str
    expires_at: datetime | None
    opening: Decimal
    closing: Decimal
    opening_sequence: int
    closing_sequence: int
    opening_chain: bytes
    closing_chain: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSum:
    """All use of one meter and model: quantity × price is `paid` and `waived` together."""

    meter: str
    model: str
    quantity: int
    paid: Decimal
    waived: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceOfMonth:
    """`amount` is round(spent_to_date) − round(spent_to_date − spent), to fen, half up."""

    number: int
    spent: Decimal
    spent_to_date: Decimal
    amount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """All that happened to an organization's money in a period. `read_at` before its end: there may be more to come."""

    organization_id: str
    currency: str
    period: Period
    read_at: datetime
    purses: tuple[PurseSpan, ...]
    lines: tuple[Line, ...]
    waived: tuple[WaivedLine, ...]
    meters: tuple[MeterSum, ...]
    sums: dict[str, Decimal]
    spent: Decimal
    invoice: InvoiceOfMonth | None

    @property
    def opening(self) -> Decimal:
        return money.total(purse.opening for purse in self.purses)

    @property
    def closing(self) -> Decimal:
        return money.total(purse.closing for purse in self.purses)

    @property
    def is_final(self) -> bool:
        return self.read_at >= self.period.ends_at

    def as_document(self) -> dict[str, Any]:
        """JSON-able, complete: what `manage.py verify_statement` reads."""
        return {
            "object": "billing.statement",
            "format": FORMAT,
            "organization": self.organization_id,
            "currency": self.currency,
            "start": self.period.start.isoformat(),
            "end": self.period.end.isoformat(),
            "starts_at": instant(self.period.starts_at),
            "ends_at": instant(self.period.ends_at),
            "read_at": instant(self.read_at),
            "final": self.is_final,
            "opening": money.text(self.opening),
            "closing": money.text(self.closing),
            "spent": money.text(self.spent),
            "sums": {kind: money.text(amount) for kind, amount in self.sums.items()},
            "meters": [_meter(each) for each in self.meters],
            "purses": [_purse(each) for each in self.purses],
            "entries": [_line(each) for each in self.lines],
            "waived": [_waived(each) for each in self.waived],
            "invoice": None if self.invoice is None else _invoice(self.invoice),
        }

    def as_csv(self) -> str:
        """The entries, one per row, for a spreadsheet: with a byte order mark, which tells Excel that it is UTF-8."""
        kinds = {purse.id: purse.kind for purse in self.purses}
        rows: list[Sequence[object]] = [COLUMNS]
        rows += [_row(line, kinds[line.entry.purse]) for line in self.lines]
        return as_csv(rows)


# --- The document's parts ---------------------------------------------------------------------------------------


def instant(at: datetime) -> str:
    """In UTC, with all six digits: `2024-08-07T04:00:00.000000Z`."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _optional(at: datetime | None) -> str | None:
    return None if at is None else instant(at)


def _purse(purse: PurseSpan) -> dict[str, Any]:
    return {
        "id": purse.id,
        "kind": purse.kind,
        "expires_at": _optional(purse.expires_at),
        "opening": money.text(purse.opening),
        "closing": money.text(purse.closing),
        "opening_sequence": purse.opening_sequence,
        "closing_sequence": purse.closing_sequence,
        "opening_chain": purse.opening_chain.hex(),
        "closing_chain": purse.closing_chain.hex(),
    }


def _line(line: Line) -> dict[str, Any]:
    entry = line.entry
    return {
        "id": entry.id,
        "created_at": instant(entry.created_at),
        "purse": entry.purse,
        "sequence": entry.sequence,
        "kind": entry.kind,
        "amount": money.text(entry.change),
        "balance_after": money.text(entry.balance_after),
        "quantity": entry.quantity,
        "unit_price": None if entry.unit_price is None else money.text(entry.unit_price),
        "event": entry.event,
        "used": None if line.used is None else _used(line.used),
        "reverses": entry.reverses,
        "reason": entry.reason,
        "request_id": entry.request_id,
        "sealed": entry.sealed,
        "chain": line.chain.hex(),
    }


def _waived(line: WaivedLine) -> dict[str, Any]:
    return {
        "id": line.id,
        "created_at": instant(line.created_at),
        "amount": money.text(line.amount),
        "quantity": line.quantity,
        "unit_price": money.text(line.unit_price),
        "event": line.event,
        "used": _used(line.used),
    }


def _used(used: Used) -> dict[str, Any]:
    return {
        "meter": used.meter,
        "model": used.model,
        "subject": used.subject,
        "occurred_at": instant(used.occurred_at),
        "minutes": None if used.minutes is None else list(used.minutes),
    }


def _meter(each: MeterSum) -> dict[str, Any]:
    return {
        "meter": each.meter,
        "model": each.model,
        "quantity": each.quantity,
        "paid": money.text(each.paid),
        "waived": money.text(each.waived),
    }


def _invoice(invoice: InvoiceOfMonth) -> dict[str, Any]:
    return {
        "number": invoice.number,
        "spent": money.text(invoice.spent),
        "spent_to_date": money.text(invoice.spent_to_date),
        "amount": format(invoice.amount, ".2f"),
    }


# --- CSV ----------------------------------------------------------------------------------------------------------

BYTE_ORDER_MARK = "\ufeff"
COLUMNS = (
    *(
        "number",
        "created_at",
        "purse",
        "sequence",
        "kind",
        "amount",
        "balance_after",
        "quantity",
        "unit_price",
    ),
    *("meter", "model", "subject", "occurred_at", "reverses", "reason", "request_id", "chain"),
)


def as_csv(rows: Sequence[Sequence[object]]) -> str:
    written = io.StringIO()
    csv.writer(written).writerows(rows)
    return BYTE_ORDER_MARK + written.getvalue()


def _row(line: Line, purse_kind: str) -> Sequence[object]:
    entry, used = line.entry, line.used
    return (
        entry.id,
        instant(entry.created_at),
        purse_kind,
        entry.sequence,
        entry.kind,
        money.text(entry.change),
        money.text(entry.balance_after),
        entry.quantity,
        None if entry.unit_price is None else money.text(entry.unit_price),
        None if used is None else used.meter,
        None if used is None else _harmless(used.model),
        None if used is None else _harmless(used.subject),
        None if used is None else instant(used.occurred_at),
        entry.reverses,
        _harmless(entry.reason),
        _harmless(entry.request_id),
        line.chain.hex(),
    )


def _harmless(text: str) -> str:
    """A spreadsheet takes a text that begins like a formula for one: an apostrophe before it keeps it a text."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text
