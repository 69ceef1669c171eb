"""Holds: money set aside for work in flight, so that what is allowed to start can be paid when it ends.

A hold takes from purses in the order in which they pay. Money that is held stays usable for that work even if its
voucher expires meanwhile.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from billing import accounts, ledger, money, storage
from billing.accounts import HoldPart, LockedAccount
from billing.errors import HoldClosed, HoldExists, HoldNotFound
from billing.ledger import Budget, Journal, Purse
from billing.models import Hold
from billing.money import ZERO

INSERT_OR_GROW = (
    ledger.insert(
        "billing_hold", "reference, organization_id, purse_id, amount, kind, subject, state, created_at"
    )
    + " ON CONFLICT (reference, purse_id) DO UPDATE SET amount = billing_hold.amount + EXCLUDED.amount"
    " WHERE billing_hold.state = 'open'"
)
CLOSE = """
UPDATE billing_hold AS h SET state = c.state, closed_at = c.closed_at
FROM json_populate_recordset(NULL::billing_hold, %s) AS c WHERE h.id = c.id AND h.state = 'open'
"""


def place(
    account: LockedAccount, *, reference: uuid.UUID, kind: str, subject: str, amount: Decimal, at: datetime
) -> None:
    """Set `amount` aside under a new reference. Raises InsufficientFunds, HoldExists."""
    storage.cut_exhausted(account, at=at)
    purses, parts = accounts.purses_and_hold(account, reference)
    if parts:
        raise HoldExists(f"A hold was placed under {reference} already.")
    _set_aside(account, purses, reference=reference, kind=kind, subject=subject, amount=amount, at=at)


def extend(
    account: LockedAccount, *, reference: uuid.UUID, kind: str, subject: str, amount: Decimal, at: datetime
) -> None:
    """Set `amount` aside on top of an open hold. Raises InsufficientFunds, HoldNotFound, HoldClosed."""
    storage.cut_exhausted(account, at=at)
    purses, parts = accounts.purses_and_hold(account, reference)
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
    amount = money.exact(amount)
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
            {
                "reference": reference,
                "organization_id": account.organization_id,
                "purse_id": purse.id,
                "amount": part,
                "kind": kind,
                "subject": subject,
                "state": Hold.State.OPEN.value,
                "created_at": at,
            }
        )
    journal.add(INSERT_OR_GROW, ledger.as_json(rows))
    journal.write()
    accounts.restate(account, purses)


def open_parts(parts: Sequence[HoldPart], reference: uuid.UUID) -> list[HoldPart]:
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
    purses, parts = accounts.purses_and_hold(account, reference)
    try:
        parts = open_parts(parts, reference)
    except HoldClosed:
        return False
    journal = _journal(account, purses, at=at)
    release(journal, parts, state=Hold.State.VOIDED, at=at)
    journal.write()
    accounts.restate(account, purses)
    return True


def release(journal: Journal, parts: Sequence[HoldPart], *, state: str, at: datetime) -> None:
    """Close the parts in `journal`: their money is free again, at once in memory."""
    for part in parts:
        part.purse.held = money.subtract(part.purse.held, part.amount)
    closed = [{"id": part.id, "state": str(state), "closed_at": at} for part in parts]
    journal.add(CLOSE, ledger.as_json(closed))


def stale(*, kind: str, at: datetime, older_than_seconds: int, limit: int) -> list[tuple[str, uuid.UUID]]:
    """(organization id, reference) of open holds placed that long ago, oldest first: for a sweep to void."""
    rows = Hold.objects.filter(
        kind=kind, state=Hold.State.OPEN, created_at__lt=at - timedelta(seconds=older_than_seconds)
    ).order_by("created_at")
    return list(dict.fromkeys(rows.values_list("organization_id", "reference")[:limit]))


def _journal(account: LockedAccount, purses: Sequence[Purse], *, at: datetime) -> Journal:
    return Journal(organization_id=account.organization_id, currency=account.currency, purses=purses, at=at)
