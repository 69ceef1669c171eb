"""Segments: when a subject is stored, and posting what that costs. All of it under the account's lock.

Nothing is written while time passes. What a segment owes follows from its ends; lines are posted when it closes,
when money runs out, and on a settlement tick. A minute is paid by purses that were valid as it started, so a late
posting takes from a voucher that has expired since what it owed before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from django.db import transaction

from billing import accounts, ledger, money, price_book, rating, segments
from billing.accounts import CutStorage, LockedAccount
from billing.errors import InsufficientFunds, SegmentClosed, SegmentOpen
from billing.ledger import Budget, Charge, Journal, Purse, Row
from billing.metering import Event
from billing.models import BillingAccount, Meter, StorageSegment
from billing.money import ZERO
from billing.rating import MICROSECOND, StoredSpan


@dataclass(slots=True, kw_only=True)
class _Due:
    """Minutes of one segment that are to be posted: from what is billed to `end_minute`."""

    row: StorageSegment
    span: StoredSpan
    end_minute: int


# --- Opening and moving the end -------------------------------------------------------------------------------


def open_segment(
    account: LockedAccount, *, subject: str, model: str, tokens: int, at: datetime, ends_at: datetime
) -> StorageSegment:
    """Start storing `tokens` of `subject` at the storage price of `model`, a family, from `at` to `ends_at`.

    The first minute is owed at once. Raises InsufficientFunds when it cannot be paid, SegmentOpen, NoPrice.
    """
    cut_exhausted(account, at=at)
    if StorageSegment.objects.filter(subject=subject, closed_at__isnull=True).exists():
        raise SegmentOpen(f"{subject} is stored already.")
    row = StorageSegment(
        organization_id=account.organization_id,
        subject=subject,
        model=model,
        tokens=tokens,
        started_at=at,
        ends_at=ends_at,
    )
    purses = accounts.purses(account)
    price_book.wait_for_announcements()
    [span] = _spans(account, [row])
    spans = [*accounts.open_spans(account), span]
    available = rating.position(spans, accounts.funds(purses), at=at).available
    if available < ZERO:
        first_minute = rating.owed([span], at=at)
        raise InsufficientFunds(available=money.add(available, first_minute), needed=first_minute)
    row.save(force_insert=True)
    accounts.restate(
        account,
        purses,
        commitment=money.add(account.storage_commitment, rating.commitment([span])),
        committed_until=max(ends_at, account.committed_until or ends_at),
        spans=spans,
    )
    return row


def extend(
    account: LockedAccount, segment: StorageSegment, *, ends_at: datetime, at: datetime
) -> StorageSegment:
    """Move the planned end, also to an earlier one, but not before `at`. Same segment, same minutes.

    Raises SegmentClosed when its storage has ended by `at`, by its end or for want of money.
    """
    cut_exhausted(account, at=at)
    row = _reload(segment)
    if row.closed_at is not None or row.ends_at <= at:
        raise SegmentClosed(f"The storage of {row.subject} has ended.")
    ends_at = max(ends_at, at, row.started_at + MICROSECOND)
    prices = segments.prices_over(
        account.organization_id,
        row.model,
        account.currency,
        first=segments.first_unbilled_start(row),
        last=max(row.ends_at, ends_at),
    )
    before = segments.span(row, prices)
    after = replace(before, ends_at=ends_at)
    row.ends_at = segment.ends_at = ends_at
    row.save(update_fields=["ends_at"])
    change = money.subtract(rating.commitment([after]), rating.commitment([before]))
    accounts.restate(
        account,
        accounts.purses(account),
        commitment=money.add(account.storage_commitment, change),
        committed_until=max(ends_at, account.committed_until or ends_at),
    )
    return row


# --- Ending ---------------------------------------------------------------------------------------------------


def close(account: LockedAccount, segment: StorageSegment, *, at: datetime) -> StorageSegment:
    """End a segment at `at`, its planned end, or the end of money, whichever is first, and post its last lines.

    A segment that is closed already stays as it is. Minutes that were posted stay posted: an end before them moves
    to the last of them.
    """
    cut_exhausted(account, at=at)
    row = _reload(segment)
    if row.closed_at is None:
        _close_rows(account, [(row, min(at, row.ends_at))], at=at)
    segment.closed_at, segment.billed_minutes = row.closed_at, row.billed_minutes
    return row


def cut_exhausted(account: LockedAccount, *, at: datetime) -> list[CutStorage]:
    """If money has run out by `at`, close every open segment as of that instant. Costs nothing if it has not.

    What was cut is returned, and added to `account.cut`.
    """
    if not account.is_exhausted_at(at):
        return []
    rows = segments.open_rows(account.organization_id)
    purses = accounts.purses(account)
    exhaust_at = rating.exhausts_at(_spans(account, rows), accounts.funds(purses))
    if exhaust_at is None or exhaust_at > at:
        _restate_from_rows(account, purses, rows)
        return []
    ends = [(row, min(row.ends_at, exhaust_at)) for row in rows]
    _close_rows(account, ends, at=at)
    cut = [
        CutStorage(subject=row.subject, segment_id=row.pk, ended_at=row.closed_at or end) for row, end in ends
    ]
    account.cut.extend(cut)
    return cut


def _close_rows(
    account: LockedAccount, ends: Sequence[tuple[StorageSegment, datetime]], *, at: datetime
) -> None:
    """Post the rows' last minutes up to their ends, and close them. The rows are changed in place."""
    rows = [row for row, _ in ends]
    spans = _spans(account, rows)
    commitment = money.subtract(account.storage_commitment, rating.commitment(spans))
    dues = []
    for (row, end), span in zip(ends, spans, strict=True):
        if row.billed_minutes:
            # A clock that stepped back between two transactions must not unmake a minute that is posted.
            last = rating.minute_start(started_at=row.started_at, minute=row.billed_minutes - 1)
            end = max(end, last + MICROSECOND)
        row.closed_at = max(end, row.started_at)
        lived = rating.minutes_lived(started_at=row.started_at, ended_at=row.closed_at)
        dues.append(_Due(row=row, span=span, end_minute=lived))
    purses = _post(account, dues, at=at)
    if commitment <= ZERO:
        # Nothing else is open, or prices have changed that the commitment does not reckon with yet.
        _restate_from_rows(account, purses, segments.open_rows(account.organization_id))
    else:
        accounts.restate(account, purses, commitment=commitment, committed_until=account.committed_until)


# --- Settling -------------------------------------------------------------------------------------------------


def settle(account: LockedAccount, *, at: datetime) -> None:
    """Post every minute that has started before `at`, let expired vouchers lapse, and reckon everything afresh."""
    rows = segments.open_rows(account.organization_id)
    purses = accounts.purses(account)
    _restate_from_rows(account, purses, rows)
    if account.is_exhausted_at(at):
        cut_exhausted(account, at=at)
        rows = []
    spans = _spans(account, rows)
    dues = [
        _Due(row=row, span=span, end_minute=_minutes_until(row, at=at))
        for row, span in zip(rows, spans, strict=True)
    ]
    purses = _post(account, dues, at=at)
    _lapse(account, purses, at=at)
    _restate_from_rows(account, purses, rows)


def _minutes_until(row: StorageSegment, *, at: datetime) -> int:
    planned = rating.minutes_lived(started_at=row.started_at, ended_at=row.ends_at)
    return max(row.billed_minutes, min(planned, rating.minutes_before(started_at=row.started_at, at=at)))


def _lapse(account: LockedAccount, purses: Sequence[Purse], *, at: datetime) -> None:
    journal = _journal(account, purses, at=at)
    for purse in purses:
        if not purse.is_valid_at(at) and purse.free > ZERO:
            journal.lapse(purse)
    journal.write()


def reprice() -> int:
    """Make all accounts with open segments reckon with the price book as it now is; how many there were.

    Run it after the commit of a storage price, outside a transaction. The settlement tick does the same in time.
    """
    ids = list(
        BillingAccount.objects.filter(committed_until__isnull=False)
        .order_by("organization_id")
        .values_list("organization_id", flat=True)
    )
    for organization_id in ids:
        with transaction.atomic():
            account = accounts.lock(organization_id)
            reprice_account(account, at=account.locked_at)
    return len(ids)


def reprice_account(account: LockedAccount, *, at: datetime) -> None:
    """Make one account's open segments reckon with its prices as they now are."""
    cut_exhausted(account, at=at)
    rows = segments.open_rows(account.organization_id)
    _restate_from_rows(account, accounts.purses(account), rows)


def _spans(account: LockedAccount, rows: Sequence[StorageSegment]) -> list[StoredSpan]:
    return segments.spans(rows, organization_id=account.organization_id, currency=account.currency)


def _restate_from_rows(
    account: LockedAccount, purses: Sequence[Purse], rows: Sequence[StorageSegment]
) -> None:
    spans = _spans(account, rows)
    accounts.restate(
        account,
        purses,
        commitment=rating.commitment(spans),
        committed_until=max((row.ends_at for row in rows), default=None),
        spans=spans,
    )


def is_open_at(segment: StorageSegment, account_exhaust_at: datetime | None, at: datetime) -> bool:
    """Whether the subject is stored at `at`: not closed, not past its end, and the money has not run out."""
    if segment.closed_at is not None or at >= segment.ends_at:
        return False
    return account_exhaust_at is None or at < account_exhaust_at


# --- Posting --------------------------------------------------------------------------------------------------


def _post(account: LockedAccount, dues: Sequence[_Due], *, at: datetime) -> list[Purse]:
    """Write the lines, facts and entries of all minutes due, and the segments' new state; the purses after it.

    Minutes are taken epoch by epoch, an epoch ending where a voucher expires, each paid by what was valid in it.
    """
    purses = accounts.purses(account)
    journal = _journal(account, purses, at=at)
    lines: list[Row] = []
    expiries = sorted({p.expires_at for p in purses if p.expires_at is not None and p.expires_at <= at})
    for expires_at in expiries:
        valid = [p for p in purses if p.expires_at is None or p.expires_at >= expires_at]
        lines += _charge(journal, dues, valid, before=expires_at)
    lines += _charge(journal, dues, [p for p in purses if p.is_valid_at(at)], before=None)
    if dues:
        states = [
            {"id": due.row.pk, "billed_minutes": due.row.billed_minutes, "closed_at": due.row.closed_at}
            for due in dues
        ]
        journal.add(UPDATE_SEGMENTS, ledger.as_json(states))
    if lines:
        journal.add(INSERT_LINES, ledger.as_json(lines))
    journal.write()
    return purses


def _charge(
    journal: Journal, dues: Iterable[_Due], valid: Iterable[Purse], *, before: datetime | None
) -> list[Row]:
    """Charge the minutes due that start before `before` to these purses; the lines to be written."""
    budget = Budget((purse, purse.free) for purse in valid)
    written: list[Row] = []
    for due in dues:
        row, end = due.row, due.end_minute
        if before is not None:
            end = min(end, rating.minutes_before(started_at=row.started_at, at=before))
        for line in rating.storage_lines(due.span, first_minute=row.billed_minutes, end_minute=end):
            charge = Charge(event=_event(row, line), price_id=line.price_id, unit_price=line.unit_price)
            journal.charge(charge, budget)
            written.append(
                {
                    "segment_id": row.pk,
                    "first_minute": line.first_minute,
                    "end_minute": line.end_minute,
                    "price_id": line.price_id,
                    "unit_price": line.unit_price,
                    "amount": line.amount,
                    "meter_event_id": charge.event.id,
                }
            )
        row.billed_minutes = max(row.billed_minutes, end)
    return written


def _event(row: StorageSegment, line: rating.StorageLine) -> Event:
    return Event(
        meter=Meter.STORAGE.value,
        source_key=f"{row.pk}:{line.first_minute}-{line.end_minute}",
        subject=row.subject,
        model=row.model,
        quantity=line.quantity,
        occurred_at=rating.minute_start(started_at=row.started_at, minute=line.first_minute),
        minutes=(line.first_minute, line.end_minute),
    )


INSERT_LINES = ledger.insert(
    "billing_storageline",
    "segment_id, first_minute, end_minute, price_id, unit_price, amount, meter_event_id",
)
UPDATE_SEGMENTS = """
UPDATE billing_storagesegment AS s SET billed_minutes = d.billed_minutes, closed_at = d.closed_at
FROM json_populate_recordset(NULL::billing_storagesegment, %s) AS d WHERE s.id = d.id AND s.closed_at IS NULL
"""


def _journal(account: LockedAccount, purses: Sequence[Purse], *, at: datetime) -> Journal:
    return Journal(organization_id=account.organization_id, currency=account.currency, purses=purses, at=at)


def _reload(segment: StorageSegment) -> StorageSegment:
    return StorageSegment.objects.select_for_update().get(pk=segment.pk)
