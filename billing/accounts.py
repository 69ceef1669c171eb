"""An organization's money as a whole: opening it, locking it, reading it, and knowing when it runs out.

Every change of an organization's money locks its account's row first, in a statement of its own, and decides in
later statements: a statement that locks and decides at once decides on what it saw before it had to wait.
Lock order: account, purses, segment, hold.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import connection, transaction

from billing import clock, money, rating, segments
from billing.errors import AccountNotFound, InsufficientFunds
from billing.ledger import Purse
from billing.models import (
    SYSTEM_KINDS,
    AccountKind,
    BillingAccount,
    LedgerAccount,
    system_account_id,
)
from billing.money import ZERO
from billing.rating import Fund, StoredSpan
from billing.segments import SegmentRead


@dataclass(frozen=True, slots=True, kw_only=True)
class CutStorage:
    """Storage of `subject` ended at `ended_at` because the money had."""

    subject: str
    segment_id: int
    ended_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldPart:
    """One row of a hold: what one purse has set aside under a reference."""

    id: int
    purse: Purse
    amount: Decimal
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """All purses of an account as read under its lock, and the parts of the hold under `reference`."""

    reference: uuid.UUID | None
    purses: list[Purse]
    parts: list[HoldPart]


@dataclass(slots=True, kw_only=True)
class LockedAccount:
    """A locked row of BillingAccount, good until the transaction ends or an operation on it raises.

    `locked_at` is the organization's clock just after the lock was there: use it as `at`. `machine_at` is the
    database's own, for leases and the like. `cut` gathers the storage that ended for want of money under this lock.
    """

    organization_id: str
    currency: str
    storage_commitment: Decimal
    committed_until: datetime | None
    exhaust_at: datetime | None
    locked_at: datetime
    clock_offset: timedelta
    cut: list[CutStorage] = field(default_factory=list)
    read_ahead: Read | None = None

    @property
    def machine_at(self) -> datetime:
        return self.locked_at - self.clock_offset

    def is_exhausted_at(self, at: datetime) -> bool:
        return self.exhaust_at is not None and self.exhaust_at <= at


@dataclass(frozen=True, slots=True, kw_only=True)
class Voucher:
    """What is left of the vouchers that expire at one instant; None: never."""

    amount: Decimal
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """`cash` and `voucher` are what is posted (expired vouchers left out); available = both − held − owed.

    `exhaust_at` is the first minute of storage that cannot be paid as things stand; None: all can.
    `storage_per_minute` is what all that is stored now costs a minute at the prices of now. `vouchers` come in the
    order in which they pay.
    """

    currency: str
    cash: Decimal
    voucher: Decimal
    held: Decimal
    owed: Decimal
    available: Decimal
    exhaust_at: datetime | None
    storage_per_minute: Decimal
    vouchers: tuple[Voucher, ...]

    @property
    def runway_seconds(self) -> int | None:
        """How long what is available pays for what is stored now, were it never ended; None: nothing is stored."""
        if self.storage_per_minute == ZERO:
            return None
        seconds = money.to_nanos(self.available) * 60 // money.to_nanos(self.storage_per_minute)
        return max(0, seconds)


# --- Opening and locking --------------------------------------------------------------------------------------


def open_account(organization_id: str, currency: str = "CNY") -> BillingAccount:
    """Give an organization its billing account and its cash purse; repeating it changes nothing."""
    with transaction.atomic():
        for kind in SYSTEM_KINDS:
            LedgerAccount.objects.get_or_create(
                id=system_account_id(kind, currency), defaults={"kind": kind, "currency": currency}
            )
        account, _ = BillingAccount.objects.get_or_create(
            organization_id=organization_id, defaults={"currency": currency, "created_at": clock.now()}
        )
        LedgerAccount.objects.get_or_create(
            organization_id=organization_id, kind=AccountKind.CASH, currency=account.currency, expires_at=None
        )
    return account


PURSES = """
SELECT clock_timestamp(), p.id, p.kind, p.posted, p.held, p.entry_count, p.expires_at, h.id, h.amount, h.state
FROM billing_ledgeraccount p LEFT JOIN billing_hold h ON h.purse_id = p.id AND h.reference = %s
WHERE p.organization_id = %s ORDER BY p.kind = 'cash', p.expires_at
"""
LOCK = f"""
SELECT currency, storage_commitment, committed_until, exhaust_at, clock_offset FROM billing_billingaccount
WHERE organization_id = %s FOR UPDATE;
{PURSES}
"""
"""Two statements in one message: the second one sees what was committed while the first one waited."""


def lock(organization_id: str, *, reference: uuid.UUID | None = None) -> LockedAccount:
    """Lock the account until the end of the caller's transaction.

    `reference` of a hold that is about to be placed or settled saves that operation a look-up. Raises
    AccountNotFound, TransactionManagementError outside a transaction.
    """
    if not connection.in_atomic_block:
        raise transaction.TransactionManagementError("An account is locked inside a transaction only.")
    with connection.cursor() as cursor:
        cursor.execute(LOCK, [organization_id, reference, organization_id])
        row = cursor.fetchone()
        cursor.nextset()
        purse_rows = cursor.fetchall()
    if row is None:
        raise AccountNotFound(f"Organization {organization_id} has no billing account.")
    currency, commitment, committed_until, exhaust_at, clock_offset = row
    if len(_currencies) >= CURRENCIES_MAX:
        _currencies.clear()
    _currencies[organization_id] = currency
    return LockedAccount(
        organization_id=organization_id,
        currency=currency,
        storage_commitment=commitment,
        committed_until=committed_until,
        exhaust_at=exhaust_at,
        locked_at=purse_rows[0][0] + clock_offset,
        clock_offset=clock_offset,
        read_ahead=_as_read(purse_rows, reference),
    )


def advance_clock(account: LockedAccount, *, to: datetime) -> None:
    """Set the organization's clock forward to `to`; the database refuses it for all but sandboxes.

    What fell due in between is the caller's to write down, in order, before or after, in the same transaction.
    """
    account.clock_offset += to - account.locked_at
    account.locked_at = to
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE billing_billingaccount SET clock_offset = make_interval(secs => %s) WHERE organization_id = %s",
            [account.clock_offset.total_seconds(), account.organization_id],
        )


CURRENCIES_MAX = 100_000
_currencies: dict[str, str] = {}


def known_currency(organization_id: str) -> str | None:
    """An account's currency as this process last saw it, without asking. Who writes by it has it checked."""
    return _currencies.get(organization_id)


# --- Purses ---------------------------------------------------------------------------------------------------


def purses(account: LockedAccount) -> list[Purse]:
    """All purses in the order in which they pay: vouchers by expiry, then cash. Expired ones are among them."""
    return _read(account, None).purses


def purses_and_hold(account: LockedAccount, reference: uuid.UUID) -> tuple[list[Purse], list[HoldPart]]:
    """All purses, and the parts of the hold under `reference`, open or not."""
    read = _read(account, reference)
    return read.purses, read.parts


def _read(account: LockedAccount, reference: uuid.UUID | None) -> Read:
    """What was read with the lock is used once: the first operation may change it."""
    ahead, account.read_ahead = account.read_ahead, None
    if ahead is not None and reference in (None, ahead.reference):
        return ahead
    with connection.cursor() as cursor:
        cursor.execute(PURSES, [reference, account.organization_id])
        return _as_read(cursor.fetchall(), reference)


def _as_read(rows: list[Any], reference: uuid.UUID | None) -> Read:
    of, parts = [], []
    for _, id_, kind, posted, held, count, expires_at, hold_id, amount, state in rows:
        purse = Purse(id=id_, kind=kind, posted=posted, held=held, entry_count=count, expires_at=expires_at)
        of.append(purse)
        if hold_id is not None:
            parts.append(HoldPart(id=hold_id, purse=purse, amount=amount, state=state))
    return Read(reference=reference, purses=of, parts=parts)


def voucher_purse(account: LockedAccount, *, expires_at: datetime | None) -> uuid.UUID:
    """The purse of vouchers with this expiry, made when it is the first."""
    purse, _ = LedgerAccount.objects.get_or_create(
        organization_id=account.organization_id,
        kind=AccountKind.VOUCHER,
        currency=account.currency,
        expires_at=expires_at,
    )
    return purse.id


def funds(of: Sequence[Purse]) -> list[Fund]:
    return [Fund(free=purse.free, expires_at=purse.expires_at) for purse in of]


# --- What is available ----------------------------------------------------------------------------------------


def available(account: LockedAccount, of: Sequence[Purse], *, at: datetime) -> Decimal:
    """What is posted, neither held nor owed, at `at`: exact."""
    spans = open_spans(account)
    return rating.position(spans, funds(of), at=at).available


def require(account: LockedAccount, of: Sequence[Purse], amount: Decimal, *, at: datetime) -> None:
    """Raises InsufficientFunds unless `amount` is available at `at`.

    What is owed is never more than the commitment, so money beyond that needs no look at the segments.
    """
    free = money.total(purse.free for purse in of if purse.is_valid_at(at))
    if money.subtract(free, account.storage_commitment) >= amount:
        return
    exact = available(account, of, at=at)
    if exact < amount:
        raise InsufficientFunds(available=exact, needed=amount)


def open_spans(account: LockedAccount) -> list[StoredSpan]:
    return segments.spans(
        segments.open_rows(account.organization_id),
        organization_id=account.organization_id,
        currency=account.currency,
    )


# --- When money runs out --------------------------------------------------------------------------------------


def restate(
    account: LockedAccount,
    of: Sequence[Purse],
    *,
    commitment: Decimal | None = None,
    committed_until: datetime | None = None,
    spans: Sequence[StoredSpan] | None = None,
) -> None:
    """Bring the account's row in line after money, segments or prices have changed.

    `commitment` and `committed_until` are given by who changed segments; `spans` (all open ones) by who has them.
    """
    before = (account.storage_commitment, account.committed_until, account.exhaust_at)
    if commitment is not None:
        account.storage_commitment = commitment
        account.committed_until = committed_until
    account.exhaust_at = _exhausts_at(account, of, spans)
    after = (account.storage_commitment, account.committed_until, account.exhaust_at)
    if after != before:
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE billing_billingaccount SET storage_commitment = %s, committed_until = %s, exhaust_at = %s"
                " WHERE organization_id = %s",
                [*after, account.organization_id],
            )


def _exhausts_at(
    account: LockedAccount, of: Sequence[Purse], spans: Sequence[StoredSpan] | None
) -> datetime | None:
    """Money that outlives every segment and covers them all never runs out; else the segments are looked at."""
    if account.storage_commitment == ZERO:
        return None
    until = account.committed_until
    lasting = (p.free for p in of if p.expires_at is None or (until is not None and p.expires_at >= until))
    if money.total(lasting) >= account.storage_commitment:
        return None
    return rating.exhausts_at(open_spans(account) if spans is None else spans, funds(of))


# --- Reading without a lock -----------------------------------------------------------------------------------

BALANCE = """
SELECT a.currency, a.exhaust_at,
    (SELECT json_agg(json_build_array(p.kind, p.posted::text, p.held::text, p.expires_at))
        FROM billing_ledgeraccount p WHERE p.organization_id = a.organization_id),
    (SELECT json_agg(json_build_array(s.model, s.tokens, s.started_at, s.ends_at, s.billed_minutes))
        FROM billing_storagesegment s WHERE s.organization_id = a.organization_id AND s.closed_at IS NULL)
FROM billing_billingaccount a WHERE a.organization_id = %s
"""
"""One statement, hence one snapshot: no lock is needed to see figures that belong together."""


def balance(organization_id: str, at: datetime) -> Balance:
    """Exact at `at`, without a lock and without a transaction. Raises AccountNotFound."""
    with connection.cursor() as cursor:
        cursor.execute(BALANCE, [organization_id])
        row = cursor.fetchone()
    if row is None:
        raise AccountNotFound(f"Organization {organization_id} has no billing account.")
    currency, exhaust_at, purse_rows, segment_rows = row
    of = [_purse(*values) for values in _json(purse_rows)]
    spans = segments.spans(
        [_segment(*values) for values in _json(segment_rows)],
        organization_id=organization_id,
        currency=currency,
    )
    if exhaust_at is not None and exhaust_at <= at:
        spans = [replace(span, ends_at=min(span.ends_at, exhaust_at)) for span in spans]
    position = rating.position(spans, funds(of), at=at)
    valid = [purse for purse in of if purse.is_valid_at(at)]
    return Balance(
        currency=currency,
        cash=money.total(purse.posted for purse in valid if purse.kind == AccountKind.CASH),
        voucher=money.total(purse.posted for purse in valid if purse.kind == AccountKind.VOUCHER),
        held=money.total(purse.held for purse in valid),
        owed=position.owed,
        available=position.available,
        exhaust_at=exhaust_at,
        storage_per_minute=rating.per_minute(spans, at=at),
        vouchers=tuple(
            Voucher(amount=purse.posted, expires_at=purse.expires_at)
            for purse in sorted(valid, key=lambda purse: (purse.expires_at is None, purse.expires_at or at))
            if purse.kind == AccountKind.VOUCHER and purse.posted > ZERO
        ),
    )


def _json(value: object) -> list[list[object]]:
    loaded: list[list[object]] = json.loads(value) if isinstance(value, str) else (value or [])  # type: ignore[assignment]
    return loaded


def _purse(kind: object, posted: object, held: object, expires_at: object) -> Purse:
    return Purse(
        id=uuid.UUID(int=0),
        kind=str(kind),
        posted=Decimal(str(posted)),
        held=Decimal(str(held)),
        entry_count=0,
        expires_at=None if expires_at is None else datetime.fromisoformat(str(expires_at)),
    )


def _segment(
    model: object, tokens: object, started_at: object, ends_at: object, billed_minutes: object
) -> SegmentRead:
    return SegmentRead(
        model=str(model),
        tokens=int(str(tokens)),
        started_at=datetime.fromisoformat(str(started_at)),
        ends_at=datetime.fromisoformat(str(ends_at)),
        billed_minutes=int(str(billed_minutes)),
    )
