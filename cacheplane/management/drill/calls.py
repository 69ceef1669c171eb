"""A call's money as the gateway moves it: the short way where it is taken, else the long way."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from django.db import transaction

from billing import accounts, charging, holds, plain_calls
from cacheplane import database

HOLD = """
SELECT billing_hold_plainly(
    p_organization => %(organization_id)s, p_currency => %(currency)s, p_reference => %(reference)s,
    p_kind => 'call', p_subject => %(subject)s, p_amount => %(amount)s,
    p_good_from => %(good_from)s, p_good_until => %(good_until)s)
"""
SETTLE = """
SELECT billing_settle_plainly(
    p_organization => %(organization_id)s, p_currency => %(currency)s, p_reference => %(reference)s,
    p_total => %(total)s, p_charges => %(charges)s)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a call uses, all of which is held before it. Counts are tokens; `subject` is its cache object, if any."""

    organization_id: str
    reference: uuid.UUID
    family: str
    model: str
    subject: str | None
    prompt: int
    cached: int
    completion: int
    started_at: datetime


def hold(call: Call) -> bool:
    """Set its price aside; whether the short way was taken. Raises InsufficientFunds."""
    is_cached = call.subject is not None
    quote = plain_calls.quote(
        call.organization_id,
        model=call.model,
        fee_of_family=call.family if is_cached else None,
        prompt_tokens=call.prompt - (call.cached if is_cached else 0),
        completion_tokens=call.completion,
        at=datetime.now(UTC),
    )
    if quote is not None and _is_taken(
        HOLD,
        {
            "organization_id": call.organization_id,
            "currency": quote.currency,
            "reference": call.reference,
            "subject": call.subject or str(call.reference),
            "amount": quote.amount,
            "good_from": quote.good_from,
            "good_until": quote.good_until,
        },
    ):
        return True
    with transaction.atomic():
        account = accounts.lock(call.organization_id, reference=call.reference)
        at = account.locked_at
        holds.place(
            account,
            reference=call.reference,
            kind="call",
            subject=call.subject or str(call.reference),
            amount=_quote(call, currency=account.currency, at=at),
            at=at,
        )
    return False


def _quote(call: Call, *, currency: str, at: datetime) -> Decimal:
    used: dict[str, Any] = {
        "organization_id": call.organization_id,
        "currency": currency,
        "completion_tokens": call.completion,
        "at": at,
    }
    if call.subject is None:
        return charging.call_quote(model=call.model, prompt_tokens=call.prompt, **used)
    return charging.cached_call_quote(
        model=call.model, family=call.family, prompt_tokens=call.prompt - call.cached, **used
    )


def settle(call: Call) -> bool:
    """Charge what it used; whether the short way was taken. Raises HoldNotFound, HoldClosed."""
    used: dict[str, Any] = {
        "call_id": str(call.reference),
        "subject": call.subject,
        "family": call.family,
        "model": call.model,
        "prompt_tokens": call.prompt,
        "cached_tokens": call.cached,
        "completion_tokens": call.completion,
        "started_at": call.started_at,
        "api_key_id": "ak-drill",
        "request_id": "req-drill",
    }
    charges = plain_calls.charges(
        call.organization_id, charging.call_events(**used), started_at=call.started_at
    )
    if charges is not None and _is_taken(
        SETTLE,
        {
            "organization_id": call.organization_id,
            "currency": charges.currency,
            "reference": call.reference,
            "total": charges.total,
            "charges": charges.rows,
        },
    ):
        return True
    with transaction.atomic():
        account = accounts.lock(call.organization_id, reference=call.reference)
        charging.charge_call(account, hold_reference=call.reference, at=account.locked_at, **used)
    return False


def void(call: Call) -> bool:
    """Give back what it holds; False when the hold is closed already."""
    with transaction.atomic():
        account = accounts.lock(call.organization_id, reference=call.reference)
        return holds.void(account, reference=call.reference, at=account.locked_at)


def hold_more(call: Call, *, completion: int) -> int:
    """So many tokens of the answer more, or as many as can be paid; how many. Raises HoldNotFound, HoldClosed."""
    with transaction.atomic():
        account = accounts.lock(call.organization_id, reference=call.reference)
        return charging.hold_more(
            account,
            hold_reference=call.reference,
            subject=call.subject or str(call.reference),
            model=call.model,
            completion_tokens=completion,
            started_at=call.started_at,
            at=account.locked_at,
        )


def _is_taken(statement: str, values: dict[str, Any]) -> bool:
    """False when billing said that this is no plain call: then nothing has been done."""
    return database.prepared_row(statement, values, refusal=plain_calls.NOT_PLAIN) is not None
