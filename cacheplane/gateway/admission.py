"""What a call takes before it runs and gives back when it ends: limits, money, a slot. Each is one transaction."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

import structlog
from django.conf import settings
from django.db import transaction

from billing import accounts, charging, clock, holds
from billing.errors import InsufficientFunds
from cacheplane.access import gates, rate_limits
from cacheplane.access.callers import Caller
from cacheplane.caching import lifecycle
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

SLOT_LEASE_MARGIN_SECONDS = 30.0
"""A lease outlives the longest call by this much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a call may use at most. `prefix` is the active object that it matched, if any. Counts are tokens."""

    call_id: uuid.UUID
    model: str
    family: str
    prompt_tokens: int
    max_tokens: int
    prefix: Prefix | None
    request_id: str


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


def admit(caller: Caller, wanted: Wanted, *, gateway_id: uuid.UUID, engine_id: int) -> Admitted:
    """Count the call against the caller's limits and hold its price, both or neither, and take a free slot.

    Raises LimitExceeded, and billing's InsufficientFunds.
    """
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
            serving_model=wanted.model,
            family=wanted.family,
            currency=account.currency,
            prefix=wanted.prefix,
            prompt_tokens=wanted.prompt_tokens,
            completion_tokens=wanted.max_tokens,
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


def settle(
    caller: Caller,
    wanted: Wanted,
    outcome: Outcome,
    reset_ttl: tuple[str, int] | None,
    release_slot: Callable[[], None] | None = None,
) -> None:
    """Charge what was used, give the rest back, move the object's end. Twice is once: a second run changes nothing.

    `reset_ttl` is (cache id, seconds) of a call that succeeded, also when the object was not active.
    """
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
                call_id=str(wanted.call_id),
                subject=wanted.prefix.cache_id if outcome.is_hit and wanted.prefix else None,
                family=wanted.family,
                model=wanted.model,
                prompt_tokens=used.prompt_tokens,
                cached_tokens=used.cached_tokens,
                completion_tokens=used.completion_tokens,
                started_at=outcome.started_at,
                at=at,
                api_key_id=caller.api_key_id,
                request_id=wanted.request_id,
            )
        if outcome.proved_at is not None and wanted.prefix is not None and wanted.prefix.kv_id is not None:
            store.mark_proved(wanted.prefix.kv_id, at=outcome.proved_at)
        if release_slot is not None:
            release_slot()
        if reset_ttl is not None:
            _reset_ttl(account, caller, cache_id=reset_ttl[0], seconds=reset_ttl[1], at=at)
    if outcome.lost_kv_reason is not None and wanted.prefix is not None and wanted.prefix.kv_id is not None:
        lifecycle.kv_lost(
            caller.organization_id,
            wanted.prefix.cache_id,
            kv_id=wanted.prefix.kv_id,
            reason=outcome.lost_kv_reason,
            actor="gateway",
        )


def _reset_ttl(
    account: accounts.LockedAccount, caller: Caller, *, cache_id: str, seconds: int, at: datetime
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
            gates.require(caller, feature=FEATURE, at=at)
            lifecycle.move_end(
                account,
                row,
                until=at + timedelta(seconds=seconds),
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
    at = clock.now()
    currency = accounts.balance(caller.organization_id, at).currency

    def quote(of: Prefix | None) -> Decimal:
        return _quote(
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
            model=serving_model,
            currency=currency,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            at=at,
        )
    return charging.cached_call_quote(
        model=serving_model,
        family=family,
        currency=currency,
        prompt_tokens=max(0, prompt_tokens - prefix.tokens),
        completion_tokens=completion_tokens,
        at=at,
    )


def take_slot(*, engine_id: int, call_id: uuid.UUID, prefix: Prefix | None) -> SlotLease | None:
    seconds = settings.CALL_TIMEOUT_SECONDS + SLOT_LEASE_MARGIN_SECONDS
    wanted = prefix.kv_id if prefix is not None else None
    return slots.lease_for_call(engine_id=engine_id, owner=str(call_id), seconds=seconds, wanted=wanted)


def reap(*, dead_after_seconds: int) -> int:
    """End the calls of gateways that died: holds voided (unproven use is free), slots and limits given back."""
    with transaction.atomic():
        reaped = rate_limits.reap(dead_after_seconds=dead_after_seconds)
        for call in sorted(reaped, key=lambda call: call.organization_id):
            account = accounts.lock(call.organization_id, reference=call.call_id)
            holds.void(account, reference=call.call_id, at=account.locked_at)
        slots.release_owned_by([str(call.call_id) for call in reaped])
    return len(reaped)
