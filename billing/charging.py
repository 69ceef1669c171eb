"""What callers pay for: creations, calls and tokens; and what they pay in: recharges and corrections.

Each function is one journey: quote, or settle a hold into events and entries. All run inside the caller's
transaction, under the account's lock (`recharge` and `correct` take it themselves).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from billing import accounts, holds, money, price_book, rating, storage
from billing.accounts import CutStorage, HoldPart, LockedAccount
from billing.errors import IdempotencyConflict
from billing.ledger import Budget, Charge, Journal, Purse
from billing.metering import Event
from billing.models import AccountKind, EntryKind, Hold, LedgerEntry, Meter, MeterEvent
from billing.money import ZERO


@dataclass(frozen=True, slots=True, kw_only=True)
class CreationQuote:
    """`fee` once; `storage_per_minute` for each started minute; `total` = fee + first minute, what a hold needs."""

    fee: Decimal
    first_minute: Decimal
    storage_per_minute: Decimal
    total: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargedLine:
    """`amount` is what was paid of quantity × unit_price; the rest of it, if any, was waived."""

    meter: str
    quantity: int
    unit_price: Decimal
    amount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargedCall:
    """What a call, or a creation, has cost. `waived` is what it used beyond what the account could pay."""

    total: Decimal
    waived: Decimal
    lines: tuple[ChargedLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recharged:
    """The entry, whether it was written just now (or by an earlier, equal call), and storage that had ended before."""

    entry: LedgerEntry
    is_new: bool
    cut: tuple[CutStorage, ...]


# --- Quotes ---------------------------------------------------------------------------------------------------


def creation_quote(
    *, organization_id: str, model: str, tokens: int, currency: str, at: datetime
) -> CreationQuote:
    """What making and keeping `tokens` costs it at the prices of `at`; `model` is a family. Raises NoPrice."""
    of: dict[str, str] = {"organization_id": organization_id, "model": model, "currency": currency}
    creation = price_book.price_at(meter=Meter.CREATION, at=at, **of)
    kept = price_book.price_at(meter=Meter.STORAGE, at=at, **of)
    fee = rating.amount(tokens, creation.unit_price)
    minute = rating.amount(tokens, kept.unit_price)
    return CreationQuote(
        fee=fee, first_minute=minute, storage_per_minute=minute, total=money.add(fee, minute)
    )


def call_quote(
    *,
    organization_id: str,
    model: str,
    currency: str,
    prompt_tokens: int,
    completion_tokens: int,
    at: datetime,
) -> Decimal:
    """What the tokens of a call cost it; give the prompt tokens that are not cached. Raises NoPrice."""
    of: dict[str, str] = {"organization_id": organization_id, "model": model, "currency": currency}
    prompt = price_book.price_at(meter=Meter.PROMPT, at=at, **of)
    completion = price_book.price_at(meter=Meter.COMPLETION, at=at, **of)
    return money.add(
        rating.amount(prompt_tokens, prompt.unit_price),
        rating.amount(completion_tokens, completion.unit_price),
    )


def cached_call_quote(
    *,
    organization_id: str,
    model: str,
    family: str,
    currency: str,
    prompt_tokens: int,
    completion_tokens: int,
    at: datetime,
) -> Decimal:
    """The same with the call fee of a cache object of `family`. Raises NoPrice."""
    fee = price_book.price_at(
        organization_id=organization_id, meter=Meter.CALL, model=family, currency=currency, at=at
    )
    tokens = call_quote(
        organization_id=organization_id,
        model=model,
        currency=currency,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        at=at,
    )
    return money.add(fee.unit_price, tokens)


def hold_more(
    account: LockedAccount,
    *,
    hold_reference: uuid.UUID,
    subject: str,
    model: str,
    completion_tokens: int,
    started_at: datetime,
    at: datetime,
) -> int:
    """Let a call's hold grow by the price of `completion_tokens`, or of as many as can be paid; how many that are.

    The price is the one in force at `started_at`, as it is when the call is charged. Raises HoldNotFound, HoldClosed.
    """
    storage.cut_exhausted(account, at=at)
    purses, parts = accounts.purses_and_hold(account, hold_reference)
    holds.open_parts(parts, hold_reference)
    price = price_book.price_at(
        meter=Meter.COMPLETION,
        model=model,
        currency=account.currency,
        organization_id=account.organization_id,
        at=started_at,
    ).unit_price
    if price > ZERO:
        available = money.to_nanos(accounts.available(account, purses, at=at))
        completion_tokens = min(completion_tokens, max(0, available // money.to_nanos(price)))
    if completion_tokens > 0:
        amount = rating.amount(completion_tokens, price)
        holds.extend(account, reference=hold_reference, kind="call", subject=subject, amount=amount, at=at)
    return completion_tokens


# --- Charges --------------------------------------------------------------------------------------------------


def charge_creation(
    account: LockedAccount,
    *,
    hold_reference: uuid.UUID,
    source_key: str,
    subject: str,
    model: str,
    tokens: int,
    at: datetime,
    api_key_id: str,
    request_id: str,
) -> ChargedCall:
    """Settle a creation's hold into its fee, at the price in force at `at`; the rest of the hold is free again.

    `source_key` names the activation (subject and number): the same one again gives the hold back, charges nothing
    and returns what was charged. Raises HoldNotFound, HoldClosed, NoPrice.
    """
    storage.cut_exhausted(account, at=at)
    purses, parts = accounts.purses_and_hold(account, hold_reference)
    if done := _charged(account, source="creation", source_keys=[source_key]):
        holds.void(account, reference=hold_reference, at=at)
        return done
    parts = holds.open_parts(parts, hold_reference)
    event = Event(
        meter=Meter.CREATION.value,
        source_key=source_key,
        subject=subject,
        model=model,
        quantity=tokens,
        occurred_at=at,
        api_key_id=api_key_id,
        request_id=request_id,
    )
    return _settle(account, purses, parts, [_priced(account, event, at=at)], at=at)


def charge_call(
    account: LockedAccount,
    *,
    hold_reference: uuid.UUID,
    call_id: str,
    subject: str | None,
    family: str,
    model: str,
    prompt_tokens: int,
    cached_tokens: int,
    completion_tokens: int,
    started_at: datetime,
    at: datetime,
    api_key_id: str,
    request_id: str,
) -> ChargedCall:
    """Settle a call's hold: the call fee if it used `subject`, prompt tokens that were not cached, completion.

    Cached tokens are free only where a cache object was used: what an engine's slot happens to remember is not.

    Prices are those in force at `started_at`. No more is taken than the hold and what is available beyond it; use
    beyond that is waived, fee first to be paid, then prompt, then completion. A hold that was settled for this call
    charges nothing and returns what was charged. Raises HoldNotFound, HoldClosed (voided: nothing is charged),
    NoPrice.
    """
    storage.cut_exhausted(account, at=at)
    purses, parts = accounts.purses_and_hold(account, hold_reference)
    if parts and parts[0].state == Hold.State.SETTLED:
        keys = [f"{call_id}:{meter.value}" for meter in (Meter.CALL, Meter.PROMPT, Meter.COMPLETION)]
        return _charged(account, source="call", source_keys=keys) or NOTHING
    parts = holds.open_parts(parts, hold_reference)
    events = call_events(
        call_id=call_id,
        subject=subject,
        family=family,
        model=model,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        completion_tokens=completion_tokens,
        started_at=started_at,
        api_key_id=api_key_id,
        request_id=request_id,
    )
    charges = [_priced(account, event, at=started_at) for event in events]
    return _settle(account, purses, parts, charges, at=at)


def _priced(account: LockedAccount, event: Event, *, at: datetime) -> Charge:
    price = price_book.price_at(
        organization_id=account.organization_id,
        meter=event.meter,
        model=event.model,
        currency=account.currency,
        at=at,
    )
    return Charge(event=event, price_id=price.price_id, unit_price=price.unit_price)


def call_events(
    *,
    call_id: str,
    subject: str | None,
    family: str,
    model: str,
    prompt_tokens: int,
    cached_tokens: int,
    completion_tokens: int,
    started_at: datetime,
    api_key_id: str,
    request_id: str,
) -> list[Event]:
    """What a call is charged for, in the order of payment; only what was used at all."""
    used = [
        (Meter.CALL, family, 1 if subject is not None else 0),
        (Meter.PROMPT, model, prompt_tokens - (cached_tokens if subject is not None else 0)),
        (Meter.COMPLETION, model, completion_tokens),
    ]
    return [
        Event(
            meter=meter.value,
            source_key=f"{call_id}:{meter.value}",
            subject=subject or "",
            model=priced,
            quantity=quantity,
            occurred_at=started_at,
            api_key_id=api_key_id,
            request_id=request_id,
            cached_tokens=cached_tokens if meter == Meter.CALL else None,
            called_model=model if meter == Meter.CALL else "",
        )
        for meter, priced, quantity in used
        if quantity > 0
    ]


NOTHING = ChargedCall(total=ZERO, waived=ZERO, lines=())


def _settle(
    account: LockedAccount,
    purses: list[Purse],
    parts: Sequence[HoldPart],
    charges: Sequence[Charge],
    *,
    at: datetime,
) -> ChargedCall:
    """Close the hold and charge, in one statement."""
    journal = _journal(account, purses, at=at)
    needed = money.total(charge.amount for charge in charges)
    cap = _cap(account, purses, parts, needed, at=at)
    holds.release(journal, parts, state=Hold.State.SETTLED, at=at)
    budget = Budget(_limits(purses, parts, at=at), cap=cap)
    lines = tuple(
        ChargedLine(
            meter=charge.event.meter,
            quantity=charge.event.quantity,
            unit_price=charge.unit_price,
            amount=journal.charge_or_waive(charge, budget),
        )
        for charge in charges
    )
    journal.write()
    accounts.restate(account, purses)
    total = money.total(line.amount for line in lines)
    return ChargedCall(total=total, waived=money.subtract(needed, total), lines=lines)


def _cap(
    account: LockedAccount,
    purses: Sequence[Purse],
    parts: Sequence[HoldPart],
    needed: Decimal,
    *,
    at: datetime,
) -> Decimal:
    """The hold always pays; beyond it only what is neither held nor owed."""
    held = money.total(part.amount for part in parts)
    if needed <= held:
        return held
    return money.add(held, max(ZERO, accounts.available(account, purses, at=at)))


def _limits(
    purses: Sequence[Purse], parts: Sequence[HoldPart], *, at: datetime
) -> list[tuple[Purse, Decimal]]:
    """A valid purse pays all that is free; an expired one what it had set aside while it was valid."""
    reserved = {part.purse.id: part.amount for part in parts}
    return [
        (purse, purse.free if purse.is_valid_at(at) else reserved[purse.id])
        for purse in purses
        if purse.is_valid_at(at) or purse.id in reserved
    ]


def _charged(account: LockedAccount, *, source: str, source_keys: Sequence[str]) -> ChargedCall | None:
    """What was charged for these facts; None if none of them is known."""
    events = list(
        MeterEvent.objects.filter(
            organization_id=account.organization_id, source=source, source_key__in=source_keys
        ).prefetch_related("entries")
    )
    if not events:
        return None
    lines, waived = [], ZERO
    for event in sorted(events, key=lambda event: source_keys.index(event.source_key)):
        entries = list(event.entries.all())
        paid = money.total(entry.amount for entry in entries if entry.kind != EntryKind.WAIVER)
        waived = money.add(waived, money.total(e.amount for e in entries if e.kind == EntryKind.WAIVER))
        price = entries[0].unit_price if entries and entries[0].unit_price is not None else ZERO
        lines.append(ChargedLine(meter=event.meter, quantity=event.quantity, unit_price=price, amount=paid))
    return ChargedCall(total=money.total(line.amount for line in lines), waived=waived, lines=tuple(lines))


# --- Paying in and correcting ---------------------------------------------------------------------------------


def recharge(
    *,
    organization_id: str,
    amount: Decimal,
    purse: str,
    reason: str,
    operator: str,
    idempotency_key: str,
    at: datetime,
    expires_at: datetime | None = None,
) -> Recharged:
    """Put money in: `purse` is "cash", or "voucher" (which may expire). Takes the lock itself.

    Storage up to `at` is settled first: the new money pays for none of it, nor does it revive what had to end. The
    same key again changes nothing; with other contents it raises IdempotencyConflict. Raises ValueError,
    AccountNotFound.
    """
    amount = money.exact(amount)
    if amount <= ZERO or purse not in (AccountKind.CASH, AccountKind.VOUCHER) or not reason or not operator:
        raise ValueError("A recharge needs a positive amount, a purse, a reason and an operator.")
    account = accounts.lock(organization_id)
    key = f"recharge:{idempotency_key}"
    if done := LedgerEntry.objects.select_related("purse").filter(idempotency_key=key).first():
        return _repeated(done, organization_id, amount, purse)
    if expires_at is not None and (purse != AccountKind.VOUCHER or expires_at <= at):
        raise ValueError("Only a voucher expires, and it does so in the future.")
    storage.settle(account, at=at)
    if purse == AccountKind.VOUCHER:
        accounts.voucher_purse(account, expires_at=expires_at)
    purses = accounts.purses(account)
    target = next(p for p in purses if p.kind == purse and p.expires_at == expires_at)
    journal = _journal(account, purses, at=at)
    journal.recharge(target, amount, key=key, reason=reason, operator=operator)
    journal.write()
    accounts.restate(account, purses)
    return Recharged(entry=LedgerEntry.objects.get(idempotency_key=key), is_new=True, cut=tuple(account.cut))


def _repeated(entry: LedgerEntry, organization_id: str, amount: Decimal, purse: str) -> Recharged:
    assert entry.purse is not None
    if (entry.organization_id, entry.amount, entry.purse.kind) != (organization_id, amount, purse):
        raise IdempotencyConflict("That key was used for another recharge.")
    return Recharged(entry=entry, is_new=False, cut=())


def correct(*, organization_id: str, entry_id: int, reason: str, operator: str, at: datetime) -> LedgerEntry:
    """Undo one entry by a reversing one. Takes the lock itself.

    Money goes back to the purse that paid (and is lost if that voucher has expired); undoing a recharge needs the
    money to be there. Raises ReversalRefused, InsufficientFunds, ValueError, LedgerEntry.DoesNotExist.
    """
    if not reason or not operator:
        raise ValueError("A correction needs a reason and an operator.")
    account = accounts.lock(organization_id)
    storage.cut_exhausted(account, at=at)
    entry = LedgerEntry.objects.get(pk=entry_id, organization_id=organization_id)
    purses = accounts.purses(account)
    if entry.kind == EntryKind.RECHARGE:
        accounts.require(account, purses, entry.amount, at=at)
    journal = _journal(account, purses, at=at)
    journal.reverse(entry, reason=reason, operator=operator)
    journal.write()
    accounts.restate(account, purses)
    return LedgerEntry.objects.get(reverses=entry)


def _journal(account: LockedAccount, purses: Sequence[Purse], *, at: datetime) -> Journal:
    return Journal(organization_id=account.organization_id, currency=account.currency, purses=purses, at=at)
