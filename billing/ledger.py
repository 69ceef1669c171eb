"""The ledger, and the only writer of its entries. One entry moves one amount between two accounts.

A `Journal` gathers what one operation does (facts, entries, holds, lines) while the account is locked, keeps the
purses' figures in step, and writes all of it with one statement. The database checks every rule again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db import connection

from billing import money
from billing.errors import InsufficientFunds, ReversalRefused
from billing.metering import Event
from billing.models import REVENUE_OF_METER, AccountKind, EntryKind, LedgerEntry, Meter, system_account_id
from billing.money import ZERO

FUNDING_OF_PURSE = {
    AccountKind.CASH: AccountKind.FUNDING_CASH,
    AccountKind.VOUCHER: AccountKind.FUNDING_VOUCHER,
}
REVERSIBLE = (
    EntryKind.CREATION,
    EntryKind.STORAGE,
    EntryKind.CALL,
    EntryKind.PROMPT,
    EntryKind.COMPLETION,
    EntryKind.RECHARGE,
)


@dataclass(slots=True, kw_only=True)
class Purse:
    """One purse as read under the account's lock; a journal keeps it in step with what it will write."""

    id: uuid.UUID
    kind: str
    posted: Decimal
    held: Decimal
    entry_count: int
    expires_at: datetime | None

    @property
    def free(self) -> Decimal:
        return money.subtract(self.posted, self.held)

    def is_valid_at(self, at: datetime) -> bool:
        return self.expires_at is None or self.expires_at > at


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One event and its price: quantity × unit_price is charged."""

    event: Event
    price_id: int
    unit_price: Decimal

    @property
    def amount(self) -> Decimal:
        return money.multiply(self.event.quantity, self.unit_price)


class Budget:
    """Which purses may pay, in order, and how much of each. What is taken is gone from it."""

    def __init__(self, limits: Iterable[tuple[Purse, Decimal]], *, cap: Decimal | None = None) -> None:
        self._limits = list(limits)
        self._cap = cap

    def take(self, amount: Decimal) -> list[tuple[Purse, Decimal]]:
        """Parts of `amount`, fewer than all of it when the budget ends."""
        if self._cap is not None:
            amount = min(amount, self._cap)
            self._cap = money.subtract(self._cap, amount)
        parts = []
        for i, (purse, limit) in enumerate(self._limits):
            part = min(amount, limit)
            if part > ZERO:
                self._limits[i] = (purse, money.subtract(limit, part))
                amount = money.subtract(amount, part)
                parts.append((purse, part))
        return parts


Row = dict[str, Any]


class Journal:
    """What one operation writes. Make it, fill it, `write()` it once."""

    def __init__(self, *, organization_id: str, currency: str, purses: Sequence[Purse], at: datetime) -> None:
        self._organization_id = organization_id
        self._currency = currency
        self._at = at
        self._purses = purses
        self._before = [(purse.posted, purse.held, purse.entry_count) for purse in purses]
        self._events: list[Row] = []
        self._entries: list[Row] = []
        self._others: list[tuple[str, Any]] = []

    def charge(self, charge: Charge, budget: Budget) -> None:
        """Book a fact and take all that it costs from the budget. Raises InsufficientFunds when that falls short."""
        paid = self._pay(charge, budget)
        if paid != charge.amount:
            raise InsufficientFunds(available=paid, needed=charge.amount)

    def charge_or_waive(self, charge: Charge, budget: Budget) -> Decimal:
        """Book a fact, take what the budget has and waive the rest; what was taken is returned."""
        paid = self._pay(charge, budget)
        if paid != charge.amount:
            self._waive(charge, money.subtract(charge.amount, paid))
        return paid

    def _pay(self, charge: Charge, budget: Budget) -> Decimal:
        self._record(charge.event)
        parts = budget.take(charge.amount)
        for purse, part in parts:
            key = f"{charge.event.source}:{charge.event.source_key}:{purse.id}"
            revenue = self._system_account(REVENUE_OF_METER[Meter(charge.event.meter)])
            self._move(
                purse, -part, other=revenue, kind=charge.event.meter, key=key, **self._explained_by(charge)
            )
        return money.total(part for _, part in parts)

    def _waive(self, charge: Charge, amount: Decimal) -> None:
        self._enter(
            debit=self._system_account(AccountKind.WAIVED),
            credit=self._system_account(REVENUE_OF_METER[Meter(charge.event.meter)]),
            amount=amount,
            kind=EntryKind.WAIVER.value,
            key=f"{charge.event.source}:{charge.event.source_key}:waived",
            reason="Used beyond what the account could pay.",
            **self._explained_by(charge),
        )

    def recharge(self, purse: Purse, amount: Decimal, *, key: str, reason: str, operator: str) -> None:
        funding = self._system_account(FUNDING_OF_PURSE[AccountKind(purse.kind)])
        kind = EntryKind.RECHARGE.value
        self._move(purse, amount, other=funding, kind=kind, key=key, reason=reason, operator=operator)

    def lapse(self, purse: Purse) -> None:
        """What an expired voucher still has goes back to where vouchers come from."""
        self._move(
            purse,
            -purse.free,
            other=self._system_account(AccountKind.FUNDING_VOUCHER),
            kind=EntryKind.LAPSE.value,
            key=f"lapse:{purse.id}:{purse.entry_count + 1}",
            reason="The voucher expired.",
        )

    def reverse(self, entry: LedgerEntry, *, reason: str, operator: str) -> None:
        """Undo one entry by its mirror image. Raises ReversalRefused, InsufficientFunds."""
        if entry.kind not in REVERSIBLE or LedgerEntry.objects.filter(reverses=entry).exists():
            raise ReversalRefused(
                f"Entry {entry.pk} is undone already, or is of a kind that cannot be: {entry.kind}."
            )
        purse = next(purse for purse in self._purses if purse.id == entry.purse_id)
        gives_back = entry.debit_id == purse.id
        if not gives_back and purse.free < entry.amount:
            raise InsufficientFunds(available=purse.free, needed=entry.amount)
        self._move(
            purse,
            entry.amount if gives_back else -entry.amount,
            other=entry.credit_id if gives_back else entry.debit_id,
            kind=EntryKind.REVERSAL.value,
            key=f"reversal:{entry.pk}",
            reason=reason,
            operator=operator,
            reverses_id=entry.pk,
        )

    def add(self, statement: str, parameter: Any) -> None:
        """A further INSERT or UPDATE that belongs to the operation (holds, segments, lines), with one parameter."""
        self._others.append((statement, parameter))

    # --- Rows ---

    def _system_account(self, kind: AccountKind) -> uuid.UUID:
        return system_account_id(kind, self._currency)

    @staticmethod
    def _explained_by(charge: Charge) -> Row:
        return {
            "meter_event_id": charge.event.id,
            "price_id": charge.price_id,
            "quantity": charge.event.quantity,
            "unit_price": charge.unit_price,
            "request_id": charge.event.request_id,
        }

    def _move(self, purse: Purse, change: Decimal, *, other: uuid.UUID, **columns: Any) -> None:
        """One entry between a purse and another account: into the purse when `change` is positive."""
        purse.posted = money.add(purse.posted, change)
        purse.entry_count += 1
        self._enter(
            debit=other if change > 0 else purse.id,
            credit=purse.id if change > 0 else other,
            amount=abs(change),
            purse_id=purse.id,
            purse_sequence=purse.entry_count,
            balance_after=purse.posted,
            **columns,
        )

    def _enter(
        self, *, debit: uuid.UUID, credit: uuid.UUID, amount: Decimal, kind: str, key: str, **columns: Any
    ) -> None:
        self._entries.append(
            {
                "debit_id": debit,
                "credit_id": credit,
                "amount": amount,
                "organization_id": self._organization_id,
                "currency": self._currency,
                "idempotency_key": key,
                "kind": kind,
                "reason": "",
                "operator": "",
                "request_id": "",
                "created_at": self._at,
            }
            | columns
        )

    def _record(self, event: Event) -> None:
        first, end = event.minutes if event.minutes else (None, None)
        self._events.append(
            {
                "id": event.id,
                "organization_id": self._organization_id,
                "meter": event.meter,
                "source": event.source,
                "source_key": event.source_key,
                "subject": event.subject,
                "model": event.model,
                "quantity": event.quantity,
                "unit": event.unit,
                "occurred_at": event.occurred_at,
                "first_minute": first,
                "end_minute": end,
                "api_key_id": event.api_key_id,
                "request_id": event.request_id,
                "cached_tokens": event.cached_tokens,
                "called_model": event.called_model,
            }
        )

    # --- Writing ---

    def write(self) -> None:
        """All of it in one statement; afterwards the journal is spent."""
        parts = list(self._others)
        if self._events:
            parts.append((INSERT_EVENTS, as_json(self._events)))
        if self._entries:
            parts.append((INSERT_ENTRIES, as_json(self._entries)))
        if changes := self._purse_changes():
            parts.append((UPDATE_PURSES, as_json(changes)))
        if not parts:
            return
        *first, last = [statement for statement, _ in parts]
        with_parts = ", ".join(f"part_{i} AS ({statement})" for i, statement in enumerate(first))
        with connection.cursor() as cursor:
            cursor.execute(
                f"WITH {with_parts} {last}" if first else last, [parameter for _, parameter in parts]
            )

    def _purse_changes(self) -> list[Row]:
        return [
            {
                "id": purse.id,
                "posted": money.subtract(purse.posted, posted),
                "held": money.subtract(purse.held, held),
                "entry_count": purse.entry_count - count,
            }
            for purse, (posted, held, count) in zip(self._purses, self._before, strict=True)
            if (purse.posted, purse.held, purse.entry_count) != (posted, held, count)
        ]


CASH_RECHARGED = """
SELECT coalesce(sum(e.amount), 0) FROM billing_ledgerentry e
JOIN billing_ledgeraccount p ON p.id = e.purse_id AND p.kind = 'cash'
WHERE e.organization_id = %s AND e.kind = 'recharge'
AND NOT EXISTS (SELECT FROM billing_ledgerentry r WHERE r.reverses_id = e.id)
"""


def cash_recharged(organization_id: str) -> Decimal:
    """All that was ever paid in as cash, less the recharges that were reversed."""
    with connection.cursor() as cursor:
        cursor.execute(CASH_RECHARGED, [organization_id])
        [total] = cursor.fetchone()
    return money.exact(total)


def as_json(rows: Sequence[Row]) -> str:
    """Rows as one parameter, so that a statement's text, and what is cached for it, is the same for any number.

    Amounts and instants travel as strings and are read by the database as what their columns are: exact.
    """
    return json.dumps(rows, default=str)


def insert(table: str, columns: str) -> str:
    """An INSERT of `as_json` rows whose keys are these columns; an absent key is NULL."""
    return f"INSERT INTO {table} ({columns}) SELECT {columns} FROM json_populate_recordset(NULL::{table}, %s)"


INSERT_EVENTS = insert(
    "billing_meterevent",
    "id, organization_id, meter, source, source_key, subject, model, quantity, unit, occurred_at,"
    " first_minute, end_minute, api_key_id, request_id, cached_tokens, called_model",
)
INSERT_ENTRIES = insert(
    "billing_ledgerentry",
    "debit_id, credit_id, amount, organization_id, currency, purse_id, purse_sequence, balance_after,"
    " idempotency_key, kind, meter_event_id, price_id, quantity, unit_price, reverses_id, reason, operator,"
    " request_id, created_at",
)
# Differences, not totals: should anybody write without the lock, the CHECK and the sequence still tell.
UPDATE_PURSES = """
UPDATE billing_ledgeraccount AS a
SET posted = a.posted + c.posted, held = a.held + c.held, entry_count = a.entry_count + c.entry_count
FROM json_populate_recordset(NULL::billing_ledgeraccount, %s) AS c WHERE a.id = c.id
"""
