"""The ledger, and the only writer of its entries. One entry moves one amount between two accounts.

A `Journal` gathers what one operation does (facts, entries, holds, lines) while the account is locked, keeps the
purses' figures in step, and writes all of it with one statement. The database checks every rule again.
"""

from __future__ import annotations

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
        self._limits = [[purse, limit] for purse, limit in limits]
        self._cap = cap

    def take(self, amount: Decimal) -> list[tuple[Purse, Decimal]]:
        """Parts of `amount`, fewer than all of it when the budget ends."""
        if self._cap is not None:
            amount = min(amount, self._cap)
            self._cap = money.subtract(self._cap, amount)
        parts = []
        for entry in self._limits:
            purse, limit = entry
            part = min(amount, limit)
            if part > ZERO:
                entry[1] = money.subtract(limit, part)
                amount = money.subtract(amount, part)
                parts.append((purse, part))
        return parts


class Journal:
    """What one operation writes. Make it, fill it, `write()` it once."""

    def __init__(self, *, organization_id: str, currency: str, purses: Sequence[Purse], at: datetime) -> None:
        self._organization_id = organization_id
        self._currency = currency
        self._at = at
        self._purses = purses
        self._before = [(purse.posted, purse.held, purse.entry_count) for purse in purses]
        self._events: list[list[Any]] = []
        self._entries: list[list[Any]] = []
        self._others: list[tuple[str, list[Any]]] = []

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
        revenue = system_account_id(REVENUE_OF_METER[Meter(charge.event.meter)], self._currency)
        for purse, part in parts:
            self._move(
                purse,
                -part,
                other=revenue,
                kind=charge.event.meter,
                key=f"{charge.event.source}:{charge.event.source_key}:{purse.id}",
                charge=charge,
                request_id=charge.event.request_id,
            )
        return money.total(part for _, part in parts)

    def _waive(self, charge: Charge, amount: Decimal) -> None:
        event = charge.event
        self._entries.append(
            [
                system_account_id(AccountKind.WAIVED, self._currency),
                system_account_id(REVENUE_OF_METER[Meter(event.meter)], self._currency),
                amount,
                self._organization_id,
                self._currency,
                None,
                None,
                None,
                f"{event.source}:{event.source_key}:waived",
                EntryKind.WAIVER.value,
                event.id,
                charge.price_id,
                event.quantity,
                charge.unit_price,
                None,
                "Used beyond what the account could pay.",
                "",
                event.request_id,
                self._at,
            ]
        )

    def recharge(self, purse: Purse, amount: Decimal, *, key: str, reason: str, operator: str) -> None:
        funding = system_account_id(FUNDING_OF_PURSE[AccountKind(purse.kind)], self._currency)
        self._move(
            purse,
            amount,
            other=funding,
            kind=EntryKind.RECHARGE.value,
            key=key,
            reason=reason,
            operator=operator,
        )

    def lapse(self, purse: Purse) -> None:
        """What an expired voucher still has goes back to where vouchers come from."""
        self._move(
            purse,
            -purse.free,
            other=system_account_id(AccountKind.FUNDING_VOUCHER, self._currency),
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
            reverses=entry.pk,
        )

    def add(self, statement: str, parameters: list[Any]) -> None:
        """A further INSERT or UPDATE that belongs to the operation (holds, segments, lines)."""
        self._others.append((statement, parameters))

    def _move(
        self,
        purse: Purse,
        change: Decimal,
        *,
        other: uuid.UUID,
        kind: str,
        key: str,
        charge: Charge | None = None,
        reason: str = "",
        operator: str = "",
        request_id: str = "",
        reverses: int | None = None,
    ) -> None:
        """One entry between a purse and another account: into the purse when `change` is positive."""
        purse.posted = money.add(purse.posted, change)
        purse.entry_count += 1
        self._entries.append(
            [
                other if change > 0 else purse.id,
                purse.id if change > 0 else other,
                abs(change),
                self._organization_id,
                self._currency,
                purse.id,
                purse.entry_count,
                purse.posted,
                key,
                kind,
                charge.event.id if charge else None,
                charge.price_id if charge else None,
                charge.event.quantity if charge else None,
                charge.unit_price if charge else None,
                reverses,
                reason,
                operator,
                request_id,
                self._at,
            ]
        )

    def _record(self, event: Event) -> None:
        first, end = event.minutes if event.minutes else (None, None)
        self._events.append(
            [
                event.id,
                self._organization_id,
                event.meter,
                event.source,
                event.source_key,
                event.subject,
                event.model,
                event.quantity,
                event.unit,
                event.occurred_at,
                first,
                end,
                event.api_key_id,
                event.request_id,
            ]
        )

    def write(self) -> None:
        """All of it in one statement; afterwards the journal is spent."""
        parts = list(self._others)
        if self._events:
            parts.append(_insert("billing_meterevent", EVENT_COLUMNS, self._events))
        if self._entries:
            parts.append(_insert("billing_ledgerentry", ENTRY_COLUMNS, self._entries))
        changes = self._purse_changes()
        if changes:
            parts.append(_update_purses(changes))
        if not parts:
            return
        *first, (last, last_parameters) = parts
        with_parts = ", ".join(f"part_{i} AS ({statement})" for i, (statement, _) in enumerate(first))
        parameters = [value for _, values in first for value in values] + last_parameters
        with connection.cursor() as cursor:
            cursor.execute(f"WITH {with_parts} {last}" if first else last, parameters)

    def _purse_changes(self) -> list[list[Any]]:
        changes = []
        for purse, (posted, held, count) in zip(self._purses, self._before, strict=True):
            if (purse.posted, purse.held, purse.entry_count) != (posted, held, count):
                changes.append(
                    [
                        purse.id,
                        money.subtract(purse.posted, posted),
                        money.subtract(purse.held, held),
                        purse.entry_count - count,
                    ]
                )
        return changes


EVENT_COLUMNS = (
    "id, organization_id, meter, source, source_key, subject, model, quantity, unit, occurred_at,"
    " first_minute, end_minute, api_key_id, request_id"
)
ENTRY_COLUMNS = (
    "debit_id, credit_id, amount, organization_id, currency, purse_id, purse_sequence, balance_after,"
    " idempotency_key, kind, meter_event_id, price_id, quantity, unit_price, reverses_id, reason, operator,"
    " request_id, created_at"
)


def _insert(table: str, columns: str, rows: list[list[Any]]) -> tuple[str, list[Any]]:
    return f"INSERT INTO {table} ({columns}) VALUES {placeholders(rows)}", [v for row in rows for v in row]


def placeholders(rows: Sequence[Sequence[Any]]) -> str:
    one = "(" + ", ".join(["%s"] * len(rows[0])) + ")"
    return ", ".join([one] * len(rows))


def _update_purses(changes: list[list[Any]]) -> tuple[str, list[Any]]:
    """Differences, not totals: should anybody write without the lock, the CHECK and the sequence still tell."""
    rows = ", ".join(["(%s::uuid, %s::numeric, %s::numeric, %s::bigint)"] * len(changes))
    return (
        "UPDATE billing_ledgeraccount AS a SET posted = a.posted + c.posted, held = a.held + c.held,"
        f" entry_count = a.entry_count + c.entries FROM (VALUES {rows}) AS c (id, posted, held, entries)"
        " WHERE a.id = c.id",
        [value for change in changes for value in change],
    )
