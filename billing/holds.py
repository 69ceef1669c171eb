"""Holds: money set aside for work in flight, so that what is allowed to start can be paid when it ends.

A hold takes from purses in the order in which they pay. Money that is held stays usable for that work even if its
voucher expires meanwhile.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import connection

from billing import accounts, ledger, money, storage
from billing.accounts import LockedAccount
from billing.errors import HoldClosed, HoldExists, HoldNotFound
from billing.ledger import Budget, Journal, Purse
from billing.models import Hold
from billing.money import ZERO


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One row of a hold: what one purse has set aside under a reference."""

    id: int
    purse: Purse
    amount: Decimal
    state: str


PURSES_AND_PARTS = """
SELECT p.id, p.kind, p.posted, p.held, p.entry_count, p.expires_at, h.id, h.amount, h.state
FROM billing_ledgeraccount p LEFT JOIN billing_hold h ON h.purse_id = p.id AND h.reference = %s
WHERE p.organization_id = %s ORDER BY p.kind = 'cash', p.expires_at
"""


def read(account: LockedAccount, reference: uuid.UUID) -> tuple[list[Purse], list[Part]]:
    """All purses of the account, and the parts of the hold under `reference`, open or not."""
    purses, parts = [], []
    with connection.cursor() as cursor:
        cursor.execute(PURSES_AND_PARTS, [reference, account.organization_id])
        for id_, kind, posted, held, count, expires_at, hold_id, amount, state in cursor.fetchall():
            purse = Purse(
                id=id_, kind=kind, posted=posted, held=held, entry_count=count, expires_at=expires_at
            )
            purses.append(purse)
            if hold_id is not None:
                parts.append(Part(id=hold_id, purse=purse, amount=amount, state=state))
    return purses, parts


def place(
    account: LockedAccount, *, reference: uuid.UUID, kind: str, subject: str, amount: Decimal, at: datetime
) -> None:
    """Set `amount` aside under a new reference. Raises InsufficientFunds, HoldExists."""
    storage.cut_exhausted(account, at=at)
    purses, parts = read(account, reference)
    if parts:
        raise HoldExists(f"A hold was placed under {reference} already.")
    _set_aside(account, purses, reference=reference, kind=kind, subject=subject, amount=amount, at=at)


def extend(
    account: LockedAccount, *, reference: uuid.UUID, kind: str, subject: str, amount: Decimal, at: datetime
) -> None:
    """Set `amount` aside on top of an open hold. Raises InsufficientFunds, HoldNotFound, HoldClosed."""
    storage.cut_exhausted(account, at=at)
    purses, parts = read(account, reference)
    open_parts(parts, reference)
    _set_aside(account, purses, reference=reference, kind=kind, subject=subject, amount=amount, at=at)


def _set_aside(
    account: LockedAccount,
    purses: Sequence[Purse],
    *,
    reference: uuid.UUID,
    kind: str,
    subject: str,
    amount: Decimal,
    at: datetime,
) -> None:
    """A hold of nothing (the work is free) is a row of zero, so that it can be closed like any other."""
    if amount < ZERO:
        raise ValueError("A hold is not negative.")
    accounts.require(account, purses, amount, at=at)
    journal = _journal(account, purses, at=at)
    valid = [purse for purse in purses if purse.is_valid_at(at)]
    taken = Budget((purse, purse.free) for purse in valid).take(amount) or [(valid[0], ZERO)]
    rows = []
    for purse, part in taken:
        purse.held = money.add(purse.held, part)
        rows.append(
            [reference, account.organization_id, purse.id, part, kind, subject, Hold.State.OPEN.value, at]
        )
    journal.add(
        "INSERT INTO billing_hold"
        " (reference, organization_id, purse_id, amount, kind, subject, state, created_at)"
        f" VALUES {ledger.placeholders(rows)}"
        " ON CONFLICT (reference, purse_id) DO UPDATE SET amount = billing_hold.amount + EXCLUDED.amount"
        " WHERE billing_hold.state = 'open'",
        [value for row in rows for value in row],
    )
    journal.write()
    accounts.restate(account, purses)


def open_parts(parts: Sequence[Part], reference: uuid.UUID) -> list[Part]:
    """The parts, all of them open. Raises HoldNotFound, HoldClosed."""
    if not parts:
        raise HoldNotFound(f"No hold was placed under {reference}.")
    for part in parts:
        if part.state != Hold.State.OPEN:
            raise HoldClosed(f"The hold {reference} is {part.state}.")
    return list(parts)


def void(account: LockedAccount, *, reference: uuid.UUID, at: datetime) -> bool:
    """Give back what is held; False when the hold is closed already. Raises HoldNotFound."""
    storage.cut_exhausted(account, at=at)
    purses, parts = read(account, reference)
    try:
        parts = open_parts(parts, reference)
    except HoldClosed:
        return False
    journal = _journal(account, purses, at=at)
    release(journal, parts, state=Hold.State.VOIDED, at=at)
    journal.write()
    accounts.restate(account, purses)
    return True


def release(journal: Journal, parts: Sequence[Part], *, state: str, at: datetime) -> None:
    """Close the parts in `journal`: their money is free again, at once in memory."""
    for part in parts:
        part.purse.held = money.subtract(part.purse.held, part.amount)
    ids: list[Any] = [part.id for part in parts]
    journal.add(
        "UPDATE billing_hold SET state = %s, closed_at = %s WHERE id = ANY(%s) AND state = 'open'",
        [str(state), at, ids],
    )


def stale(*, kind: str, at: datetime, older_than_seconds: int, limit: int) -> list[tuple[str, uuid.UUID]]:
    """(organization id, reference) of open holds placed that long ago, oldest first: for a sweep to void."""
    rows = Hold.objects.filter(
        kind=kind, state=Hold.State.OPEN, created_at__lt=at - timedelta(seconds=older_than_seconds)
    ).order_by("created_at")
    return list(dict.fromkeys(rows.values_list("organization_id", "reference")[:limit]))


def _journal(account: LockedAccount, purses: Sequence[Purse], *, at: datetime) -> Journal:
    return Journal(organization_id=account.organization_id, currency=account.currency, purses=purses, at=at)
