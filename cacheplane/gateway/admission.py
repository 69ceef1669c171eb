"""What a call takes before it runs and gives back when it ends: limits, money, a slot. Each is one transaction."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction

from billing import accounts, charging, clock, holds, plain_calls
from billing.errors import HoldClosed, InsufficientFunds
from cacheplane import database
from cacheplane.access import gates, rate_limits
from cacheplane.access.callers import Caller
from cacheplane.caching import lifecycle, uses
from cacheplane.caching.cache_objects import FEATURE
from cacheplane.caching.models import CacheObject
from cacheplane.chat import Usage
from cacheplane.engines import slots
from cacheplane.engines.registry import Serving
from cacheplane.engines.slots import SlotLease
from cacheplane.errors import FeatureClosed, InvalidRequest
from cacheplane.gateway.matching import Prefix
from cacheplane.kv import store

log = structlog.get_logger(__name__)

SLOT_LEASE_SECONDS = settings.CALL_TIMEOUT_SECONDS + 30.0
"""A lease outlives the longest call."""
AMPLE = 20
"""Limits and money are ample for a call when they would do for so many of its kind."""
HOLD_TOKENS: int = settings.HOLD_COMPLETION_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a call may use at most. `prefix` is the active object that it matched, if any. Counts are tokens:
    `prompt_tokens` are exact or, for a short prompt, an upper bound; `max_tokens` is that of all answers together."""

    call_id: uuid.UUID
    model: str
    family: str
    prompt_tokens: int
    max_tokens: int
    prefix: Prefix | None
    request_id: str

    @property
    def held_tokens(self) -> int:
        """Tokens of the answer that money is set aside for before it begins; the rest, as it grows."""
        return min(self.max_tokens, HOLD_TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call ended. `usage` is None when the engine evaluated nothing for it: then nothing is charged."""

    usage: Usage | None
    is_hit: bool
    evaluated_tokens: int = 0
    """Prompt tokens that the engine worked on for a caller who left before the answer: free, but not unlimited."""
    started_at: datetime
    lost_kv_reason: str | None = None
    proved_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """When a call was admitted, and the slot that it got at once; None when it has to wait for one."""

    at: datetime
    lease: SlotLease | None


ADMIT_PLAINLY = """
SELECT held.at, slot.slot_id, slot.slot_index, slot.was_resident, slot.was_organization, slot.engine_fingerprint
FROM access_admit(%(organization_id)s, %(call_id)s, %(gateway_id)s, %(tokens)s, %(concurrency)s,
                  %(requests_per_minute)s, %(tokens_per_minute)s, %(tokens_per_day)s, %(margin)s)
    AS admitted (organization_id)
CROSS JOIN LATERAL (
    SELECT billing_hold_plainly(admitted.organization_id, %(currency)s, %(call_id)s, 'call', %(subject)s,
                                %(amount)s, %(good_from)s, %(good_until)s, %(margin)s) AS at
) AS held
LEFT JOIN LATERAL engines_lease_slot(%(engine_id)s, %(owner)s, %(seconds)s, %(wanted)s::uuid, held.at IS NULL)
    AS slot ON true
"""
SETTLE_PLAINLY = """
SELECT settled.at, released.done
FROM access_finish_call(%(call_id)s, %(tokens_used)s) AS ended (organization_id)
CROSS JOIN LATERAL (
    SELECT billing_settle_plainly(ended.organization_id, %(currency)s, %(call_id)s, %(total)s, %(charges)s) AS at
) AS settled
LEFT JOIN LATERAL (
    SELECT engines_release_slot(%(slot_id)s, %(owner)s, %(resident)s::uuid, %(resident_organization)s) AS done
    WHERE settled.at IS NOT NULL
) AS released ON true
"""
"""Each is one message and one transaction. Each function takes something of the one before it, so that they run in
this order, in the order in which locks are taken, and none when the one before it gave nothing."""


def admit(caller: Caller, wanted: Wanted, *, gateway_id: uuid.UUID, engine_id: int) -> Admitted:
    """Count the call against the caller's limits and hold its price, both or neither, and take a free slot.

    Raises LimitExceeded, and billing's InsufficientFunds.
    """
    return _admit_plainly(caller, wanted, gateway_id=gateway_id, engine_id=engine_id, margin=1) or _admit(
        caller, wanted, gateway_id=gateway_id, engine_id=engine_id
    )


def admit_by_bound(
    caller: Caller, wanted: Wanted, *, gateway_id: uuid.UUID, engine_id: int
) -> Admitted | None:
    """The same for a call whose `prompt_tokens` are no more than an upper bound, where limits and money are ample.

    None where they are not: then it takes the exact count, so that nobody is refused for tokens that do not exist.
    """
    return _admit_plainly(caller, wanted, gateway_id=gateway_id, engine_id=engine_id, margin=AMPLE)


def _admit_plainly(
    caller: Caller, wanted: Wanted, *, gateway_id: uuid.UUID, engine_id: int, margin: int
) -> Admitted | None:
    """None when it takes a closer look, be it for a refusal: nothing has been taken then."""
    if caller.is_sandbox:
        return None  # the plain functions ask the database's clock
    prefix = wanted.prefix
    quote = plain_calls.quote(
        caller.organization_id,
        model=wanted.model,
        fee_of_family=wanted.family if prefix is not None else None,
        prompt_tokens=max(0, wanted.prompt_tokens - prefix.tokens) if prefix else wanted.prompt_tokens,
        completion_tokens=wanted.held_tokens,
        at=datetime.now(UTC),
    )
    if quote is None:
        return None
    owner = str(wanted.call_id)
    row = database.prepared_row(
        ADMIT_PLAINLY,
        rate_limits.limits_of(caller)
        | {
            "call_id": wanted.call_id,
            "gateway_id": gateway_id,
            "tokens": wanted.prompt_tokens + wanted.max_tokens,
            "currency": quote.currency,
            "subject": prefix.cache_id if prefix else owner,
            "amount": quote.amount,
            "good_from": quote.good_from,
            "good_until": quote.good_until,
            "margin": margin,
            "engine_id": engine_id,
            "owner": owner,
            "seconds": SLOT_LEASE_SECONDS,
            "wanted": prefix.kv_id if prefix is not None else None,
        },
        refusal=plain_calls.NOT_PLAIN,
    )
    if row is None:
        return None
    lease = slots.lease_from(row[1:], engine_id=engine_id, owner=owner) if row[1] is not None else None
    return Admitted(at=row[0], lease=lease)


def _admit(caller: Caller, wanted: Wanted, *, gateway_id: uuid.UUID, engine_id: int) -> Admitted:
    with transaction.atomic():
        rate_limits.admit_call(
            caller,
            call_id=wanted.call_id,
            gateway_id=gateway_id,
            tokens=wanted.prompt_tokens + wanted.max_tokens,
        )
        account = accounts.lock(caller.organization_id, reference=wanted.call_id)
        at = account.locked_at
        amount = _quote(
            organization_id=account.organization_id,
            serving_model=wanted.model,
            family=wanted.family,
            currency=account.currency,
            prefix=wanted.prefix,
            prompt_tokens=wanted.prompt_tokens,
            completion_tokens=wanted.held_tokens,
            at=at,
        )
        holds.place(
            account,
            reference=wanted.call_id,
            kind="call",
            subject=wanted.prefix.cache_id if wanted.prefix else str(wanted.call_id),
            amount=amount,
            at=at,
        )
        # Nothing is waited for while the account is locked: a slot that somebody else is taking is passed over.
        lease = take_slot(engine_id=engine_id, call_id=wanted.call_id, prefix=wanted.prefix)
    return Admitted(at=at, lease=lease)


def hold_more(caller: Caller, wanted: Wanted, *, completion_tokens: int, started_at: datetime) -> int:
    """Set money aside for so many tokens more of a running call's answer, or for as many as can be paid; how many.

    0, too, when the call was ended meanwhile by those who thought its gateway dead.
    """
    with transaction.atomic():
        account = accounts.lock(caller.organization_id, reference=wanted.call_id)
        try:
            return charging.hold_more(
                account,
                hold_reference=wanted.call_id,
                subject=wanted.prefix.cache_id if wanted.prefix else str(wanted.call_id),
                model=wanted.model,
                completion_tokens=completion_tokens,
                started_at=started_at,
                at=account.locked_at,
            )
        except HoldClosed:
            log.warning("call_was_reaped", call_id=str(wanted.call_id))
            return 0


def settle(
    caller: Caller,
    wanted: Wanted,
    outcome: Outcome,
    reset_ttl: tuple[str, int] | None,
    released: slots.Release | None = None,
) -> None:
    """Charge what was used, give the rest back, move the object's end. Twice is once: a second run changes nothing.

    `reset_ttl` is (cache id, seconds) of a call that succeeded, also when the object was not active.
    """
    is_long = caller.is_sandbox or reset_ttl is not None or _earns(wanted, outcome, at=datetime.now(UTC))
    if is_long or not _settle_plainly(caller, wanted, outcome, released):
        _settle(caller, wanted, outcome, reset_ttl, released)


def _earns(wanted: Wanted, outcome: Outcome, *, at: datetime) -> bool:
    """ttl auto: the first hit of a minute moves the end. Exactly is decided under the lock, by the account's clock."""
    earns_from = wanted.prefix.earns_from if wanted.prefix is not None else None
    is_use = outcome.is_hit and outcome.usage is not None
    return is_use and earns_from is not None and earns_from <= at


def _settle_plainly(caller: Caller, wanted: Wanted, outcome: Outcome, released: slots.Release | None) -> bool:
    """False when it takes a closer look: nothing has been done then."""
    used = outcome.usage
    if used is None or released is None or released.forgets:
        return False
    if outcome.proved_at is not None or outcome.lost_kv_reason is not None:
        return False
    charges = plain_calls.charges(
        caller.organization_id,
        charging.call_events(**_used_by(caller, wanted, outcome, used)),
        started_at=outcome.started_at,
    )
    if charges is None:
        return False
    row = database.prepared_row(
        SETTLE_PLAINLY,
        {
            "call_id": wanted.call_id,
            "tokens_used": used.total_tokens,
            "currency": charges.currency,
            "total": charges.total,
            "charges": charges.rows,
            "slot_id": released.lease.slot_id,
            "owner": released.lease.owner,
            "resident": released.resident,
            "resident_organization": released.resident_organization,
        },
        refusal=plain_calls.NOT_PLAIN,
    )
    return row is not None


def _used_by(caller: Caller, wanted: Wanted, outcome: Outcome, used: Usage) -> dict[str, Any]:
    return {
        "call_id": str(wanted.call_id),
        "subject": wanted.prefix.cache_id if outcome.is_hit and wanted.prefix else None,
        "family": wanted.family,
        "model": wanted.model,
        "prompt_tokens": used.prompt_tokens,
        "cached_tokens": used.cached_tokens,
        "completion_tokens": used.completion_tokens,
        "started_at": outcome.started_at,
        "api_key_id": caller.api_key_id,
        "request_id": wanted.request_id,
    }


def _settle(
    caller: Caller,
    wanted: Wanted,
    outcome: Outcome,
    reset_ttl: tuple[str, int] | None,
    released: slots.Release | None,
) -> None:
    used = outcome.usage
    with transaction.atomic():
        tokens_used = used.total_tokens if used else outcome.evaluated_tokens
        is_ours = rate_limits.finish_call(call_id=wanted.call_id, tokens_used=tokens_used)
        if not is_ours:
            log.warning("call_was_reaped", call_id=str(wanted.call_id))
            return
        account = accounts.lock(caller.organization_id, reference=wanted.call_id)
        at = account.locked_at
        if used is None:
            holds.void(account, reference=wanted.call_id, at=at)
        else:
            charging.charge_call(
                account,
                hold_reference=wanted.call_id,
                at=at,
                **_used_by(caller, wanted, outcome, used),
            )
        if outcome.proved_at is not None and wanted.prefix is not None and wanted.prefix.kv_id is not None:
            store.mark_proved(wanted.prefix.kv_id, at=outcome.proved_at)
        if released is not None:
            slots.give_back(released)
        if reset_ttl is not None:
            _move_end(account, caller, outcome, cache_id=reset_ttl[0], seconds=reset_ttl[1], at=at)
        elif wanted.prefix is not None and _earns(wanted, outcome, at=at):
            _move_end(account, caller, outcome, cache_id=wanted.prefix.cache_id, seconds=None, at=at)
    if outcome.lost_kv_reason is not None and wanted.prefix is not None and wanted.prefix.kv_id is not None:
        lifecycle.kv_lost(
            caller.organization_id,
            wanted.prefix.cache_id,
            kv_id=wanted.prefix.kv_id,
            reason=outcome.lost_kv_reason,
            actor="gateway",
        )


def _move_end(
    account: accounts.LockedAccount,
    caller: Caller,
    outcome: Outcome,
    *,
    cache_id: str,
    seconds: int | None,
    at: datetime,
) -> None:
    row = (
        CacheObject.objects.of(caller.organization_id)
        .select_for_update(of=("self",))
        .with_what_decides_status()
        .filter(id=cache_id)
        .first()
    )
    if row is None:
        return  # deleted while the call ran
    try:
        with transaction.atomic():
            gates.require(caller, feature=FEATURE, at=account.machine_at)
            uses.use(
                account,
                row,
                is_hit=outcome.is_hit,
                reset_seconds=seconds,
                at=at,
                actor=caller.api_key_id,
                cached_tokens_max=caller.tier.cached_tokens_max,
            )
    except (InsufficientFunds, InvalidRequest, FeatureClosed) as error:
        # The call itself is done and paid; only its object's end stays where it was.
        log.info("end_not_moved", cache_id=cache_id, reason=type(error).__name__)


def prices(
    caller: Caller, serving: Serving, *, prefix: Prefix, prompt_tokens: int
) -> tuple[Decimal, Decimal, str]:
    """(price with the cache, price without it, currency) of a call that produces nothing."""
    at = clock.now_of(caller.organization_id)
    currency = accounts.balance(caller.organization_id, at).currency

    def quote(of: Prefix | None) -> Decimal:
        return _quote(
            organization_id=caller.organization_id,
            serving_model=serving.model,
            family=serving.family,
            currency=currency,
            prefix=of,
            prompt_tokens=prompt_tokens,
            completion_tokens=0,
            at=at,
        )

    return quote(prefix), quote(None), currency


def _quote(
    *,
    organization_id: str,
    serving_model: str,
    family: str,
    currency: str,
    prefix: Prefix | None,
    prompt_tokens: int,
    completion_tokens: int,
    at: datetime,
) -> Decimal:
    if prefix is None:
        return charging.call_quote(
            organization_id=organization_id,
            model=serving_model,
            currency=currency,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            at=at,
        )
    return charging.cached_call_quote(
        organization_id=organization_id,
        model=serving_model,
        family=family,
        currency=currency,
        prompt_tokens=max(0, prompt_tokens - prefix.tokens),
        completion_tokens=completion_tokens,
        at=at,
    )


def take_slot(*, engine_id: int, call_id: uuid.UUID, prefix: Prefix | None) -> SlotLease | None:
    wanted = prefix.kv_id if prefix is not None else None
    return slots.lease_for_call(
        engine_id=engine_id, owner=str(call_id), seconds=SLOT_LEASE_SECONDS, wanted=wanted
    )


def reap(*, dead_after_seconds: int) -> int:
    """End the calls of gateways that died: holds voided (unproven use is free), slots and limits given back."""
    with transaction.atomic():
        reaped = rate_limits.reap(dead_after_seconds=dead_after_seconds)
        for call in sorted(reaped, key=lambda call: call.organization_id):
            account = accounts.lock(call.organization_id, reference=call.call_id)
            holds.void(account, reference=call.call_id, at=account.locked_at)
        slots.release_owned_by([str(call.call_id) for call in reaped])
    return len(reaped)
