"""Every change of a cache object's status, each in one transaction, each a conditional UPDATE whose rows are counted.

Locks are taken in one order everywhere: the organization's billing account, its purses, the object, then the
webhook endpoints that are told of it. Time is the organization's and is read after the lock, so that two changes of
one organization never see it run backwards. Leases and retries are work of machines, and follow their clock.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import F, Min, OuterRef, Q, Subquery, Sum

from billing import accounts, charging, clock, holds, storage
from billing.accounts import LockedAccount
from cacheplane import dispatch
from cacheplane.caching import budgets, ends, reasons, tags
from cacheplane.caching.models import (
    ACTIVE,
    AUTO,
    ERROR,
    EXPIRED,
    OWN_NOW,
    PENDING,
    SCHEDULED,
    CacheObject,
    CacheObjectEvent,
    PrecomputeTurn,
)
from cacheplane.errors import Conflict, InvalidRequest, NotFound
from cacheplane.events import outbox
from cacheplane.events.models import CACHE_ACTIVE, CACHE_DELETED, CACHE_ERROR, CACHE_EXPIRED
from cacheplane.ids import new_ordered_uuid
from cacheplane.kv import store
from cacheplane.kv.store import SavedKV

log = structlog.get_logger(__name__)

RETRY_SECONDS_PER_ATTEMPT = 2
"""A failed attempt waits this long times the attempts made, so that a sick engine is not hammered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to compute one object. It holds while the row's fence is still `fence`."""

    cache_id: str
    organization_id: str
    owner: str
    fence: int
    attempt: int


def note(cache_id: str, organization_id: str, kind: str, *, at: datetime, actor: str, **detail: Any) -> None:
    CacheObjectEvent.objects.create(
        # In order within one process, so that what one transaction notes at one instant stands in order too.
        id=new_ordered_uuid(),
        cache_id=cache_id,
        organization_id=organization_id,
        kind=kind,
        at=at,
        actor=actor,
        detail=detail,
    )


def told_of(row: CacheObject, *, expired_at: datetime) -> dict[str, Any]:
    """What a webhook says of an object: enough to find it, nothing of its texts."""
    return {
        "id": row.id,
        "object": "context_cache_object",
        "model": row.model,
        "name": row.name,
        "tokens": row.tokens,
        "created_at": int(row.created_at.timestamp()),
        "expired_at": int(expired_at.timestamp()),
    }


def _tell(row: CacheObject, event_type: str, *, expired_at: datetime, at: datetime, **more: Any) -> None:
    outbox.tell(
        organization_id=row.organization_id,
        event_type=event_type,
        subject=row.id,
        at=at,
        data=told_of(row, expired_at=expired_at) | more,
    )


def hold_creation(
    account: LockedAccount, *, cache_id: str, model: str, tokens: int, at: datetime
) -> uuid.UUID:
    """Set the creation fee and the first storage minute aside. Raises billing's InsufficientFunds."""
    quote = charging.creation_quote(
        organization_id=account.organization_id,
        model=model,
        tokens=tokens,
        currency=account.currency,
        at=at,
    )
    reference = uuid.uuid4()
    holds.place(account, reference=reference, kind="creation", subject=cache_id, amount=quote.total, at=at)
    return reference


# --- Precompute: claim, renew, activate, fail ------------------------------------------------------------------


def claim_next(*, owner: str, families: Collection[str] | None = None) -> Claim | None:
    """Take a pending object, of these model families if they are said, that nobody is computing: the oldest one of the
    organization whose last turn is longest ago, so that who has many keeps nobody with few waiting."""
    at = clock.now()
    asked = Q() if families is None else Q(model__in=families)
    free = Q(lease_until__isnull=True) | Q(lease_until__lt=at)
    ripe = Q(retry_at__isnull=True) | Q(retry_at__lte=at)
    its_turn = PrecomputeTurn.objects.filter(organization_id=OuterRef("organization_id"))
    with transaction.atomic():
        row = (
            # Not the full lock: a tag that is being bound to an object must not hide it.
            CacheObject.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
            .filter(
                free,
                ripe,
                asked,
                status=PENDING,
                expired_at__gt=OWN_NOW,
                attempts__lt=settings.PRECOMPUTE_ATTEMPTS_MAX,
            )
            .annotate(turn=Subquery(its_turn.values("taken_at")))
            .order_by(F("turn").asc(nulls_first=True), "created_at")
            .only("id", "organization_id", "fence", "attempts")
            .first()
        )
        if row is None:
            return None
        claim = Claim(
            cache_id=row.id,
            organization_id=row.organization_id,
            owner=owner,
            fence=row.fence + 1,
            attempt=row.attempts + 1,
        )
        CacheObject.objects.filter(id=row.id).update(
            lease_owner=owner,
            lease_until=at + timedelta(seconds=settings.PRECOMPUTE_LEASE_SECONDS),
            fence=claim.fence,
            attempts=claim.attempt,
            prefilled_tokens=0,
        )
        PrecomputeTurn.objects.bulk_create(
            [PrecomputeTurn(organization_id=row.organization_id, taken_at=at)],
            update_conflicts=True,
            unique_fields=["organization"],
            update_fields=["taken_at"],
        )
        own_at = clock.now_of(row.organization_id)
        note(row.id, row.organization_id, "claimed", at=own_at, actor=owner, attempt=claim.attempt)
    return claim


def _claimed(claim: Claim) -> Q:
    return Q(id=claim.cache_id, status=PENDING, fence=claim.fence, lease_owner=claim.owner)


def renew(claim: Claim, *, prefilled_tokens: int) -> bool:
    """Keep a claim and say how far it is; False when it was lost (deleted, expired, taken over)."""
    until = clock.now() + timedelta(seconds=settings.PRECOMPUTE_LEASE_SECONDS)
    changed = CacheObject.objects.filter(_claimed(claim)).update(
        lease_until=until, prefilled_tokens=prefilled_tokens
    )
    return bool(changed)


def activate(claim: Claim, saved: SavedKV) -> bool:
    """Pending → active, with the creation fee and the start of storage; False when the claim was lost."""
    with transaction.atomic():
        account = accounts.lock(claim.organization_id)
        at = account.locked_at
        row = (
            CacheObject.objects.select_for_update(of=("self",))
            .filter(_claimed(claim), expired_at__gt=at)
            .first()
        )
        if row is None:
            return False
        plan = ends.of_activation(account, row, at=at)
        if plan.ends_at <= at:
            # Prices have risen since it was asked for.
            note_budget(account, row, spent_at=at, at=at)
            expire(account, row, at=at, actor="clock")
            return False
        activation = row.activations + 1
        if row.creation_fee_due:
            assert row.hold_reference is not None
            charging.charge_creation(
                account,
                hold_reference=row.hold_reference,
                source_key=budgets.creation_key(row.id, activation),
                subject=row.id,
                model=row.model,
                tokens=row.tokens,
                at=at,
                api_key_id=row.api_key_id,
                request_id="",
            )
        segment = storage.open_segment(
            account, subject=row.id, model=row.model, tokens=row.tokens, at=at, ends_at=plan.ends_at
        )
        kv_state = store.record(saved, organization_id=row.organization_id, at=at)
        changed = CacheObject.objects.filter(_claimed(claim)).update(
            status=ACTIVE,
            activated_at=at,
            activations=activation,
            kv_state=kv_state,
            segment=segment,
            hold_reference=None,
            creation_fee_due=True,
            lease_owner="",
            lease_until=None,
            attempts=0,
            prefilled_tokens=row.tokens,
            error_type="",
            error_message="",
            **plan.columns(),
        )
        assert changed == 1, "the row is locked, so the claim cannot have been lost since"
        # The seconds that its hits will save: kept here, because savings are told of deleted objects too.
        measured = {} if saved.prefill_ms is None else {"prefill_ms": saved.prefill_ms}
        note(
            row.id,
            row.organization_id,
            "active",
            at=at,
            actor=claim.owner,
            bytes=saved.size_bytes,
            **measured,
        )
        _tell(row, CACHE_ACTIVE, expired_at=plan.ends_at, at=at)
    return True


def fail_attempt(claim: Claim, *, reason: str, is_final: bool = False) -> bool:
    """Give a failed attempt back for another try; after the last one the object becomes `error`, nothing charged."""
    with transaction.atomic():
        account = accounts.lock(claim.organization_id)
        at = account.locked_at
        row = CacheObject.objects.select_for_update(of=("self",)).filter(_claimed(claim)).first()
        if row is None:
            return False
        note(
            row.id,
            row.organization_id,
            "attempt_failed",
            at=at,
            actor=claim.owner,
            attempt=claim.attempt,
            reason=reason[:500],
        )
        if is_final or claim.attempt >= settings.PRECOMPUTE_ATTEMPTS_MAX:
            _end_pending(account, row, status=ERROR, at=at, actor=claim.owner, error=reason)
        else:
            CacheObject.objects.filter(_claimed(claim)).update(
                lease_owner="",
                lease_until=None,
                retry_at=account.machine_at + timedelta(seconds=RETRY_SECONDS_PER_ATTEMPT * claim.attempt),
            )
    return True


def fail_exhausted_attempts(*, limit: int = 100) -> int:
    """Objects whose every attempt ended without a word (their worker was killed) become `error`."""
    at = clock.now()
    ids = list(
        CacheObject.objects.filter(
            status=PENDING, attempts__gte=settings.PRECOMPUTE_ATTEMPTS_MAX, lease_until__lt=at
        ).values_list("id", "organization_id")[:limit]
    )
    for cache_id, organization_id in ids:
        with transaction.atomic():
            account = accounts.lock(organization_id)
            at = account.locked_at
            row = (
                CacheObject.objects.select_for_update(of=("self",))
                .filter(
                    id=cache_id,
                    status=PENDING,
                    attempts__gte=settings.PRECOMPUTE_ATTEMPTS_MAX,
                    lease_until__lt=account.machine_at,
                )
                .first()
            )
            if row is not None:
                reason = f"The precompute was started {row.attempts} times and never finished."
                _end_pending(account, row, status=ERROR, at=at, actor="sweep", error=reason)
    return len(ids)


def _end_pending(
    account: LockedAccount, row: CacheObject, *, status: str, at: datetime, actor: str, error: str = ""
) -> None:
    """A pending row, locked by the caller, ends unserved: its hold is given back."""
    if row.hold_reference is not None:
        holds.void(account, reference=row.hold_reference, at=at)
    changed = CacheObject.objects.filter(id=row.id, status=PENDING).update(
        status=status,
        hold_reference=None,
        lease_owner="",
        lease_until=None,
        retry_at=None,
        fence=F("fence") + 1,
        error_type="precompute_failed" if status == ERROR else "",
        error_message=error[:1024],
    )
    assert changed == 1
    note(
        row.id, row.organization_id, status, at=at, actor=actor, **({"reason": error[:500]} if error else {})
    )
    if status == ERROR:
        # Without the reason: an engine's own words may quote the messages.
        _tell(row, CACHE_ERROR, expired_at=row.expired_at, at=at, error={"type": "precompute_failed"})


# --- Time: extend, revive, expire ------------------------------------------------------------------------------


def locked(organization_id: str, cache_id: str) -> CacheObject:
    row = (
        CacheObject.objects.of(organization_id)
        .select_for_update(of=("self",))
        .with_what_decides_status()
        .filter(id=cache_id)
        .first()
    )
    if row is None:
        raise NotFound(f"Not found the cache object {cache_id[:64]}")
    return row


def extend(
    organization_id: str,
    cache_id: str,
    *,
    actor: str,
    ttl_seconds: int | None = None,
    expired_at: datetime | None = None,
    cached_tokens_max: int | None = None,
) -> CacheObject:
    """Move an object's end, for once, whatever decides it; an ended one goes back to `pending` and is computed again.

    A revival is bound by `cached_tokens_max`, the organization's total; None, for operators, is no bound. Raises
    NotFound, InvalidRequest, and billing's InsufficientFunds when a revival cannot be paid.
    """
    with transaction.atomic():
        account = accounts.lock(organization_id)
        at = account.locked_at
        row = locked(organization_id, cache_id)
        until = at + timedelta(seconds=ttl_seconds) if ttl_seconds is not None else expired_at
        if until is not None:
            move_end(account, row, until=until, at=at, actor=actor, cached_tokens_max=cached_tokens_max)
        # Still under the lock: once it is given up, the object may be deleted.
        return CacheObject.objects.with_what_decides_status().get(id=cache_id)


def keep_closed(row: CacheObject, *, at: datetime) -> None:
    """A new object whose schedule is closed: nothing is held for it, and it waits for its first opening."""
    changed = CacheObject.objects.filter(id=row.id, status=PENDING).update(status=EXPIRED)
    assert changed == 1
    row.refresh_from_db(fields=["status"])
    detail = reasons.of_closing(next_open_at=row.windows.next_open(at))
    note(row.id, row.organization_id, "schedule_closed", at=at, actor="clock", **detail)


def move_end(
    account: LockedAccount,
    row: CacheObject,
    *,
    until: datetime,
    at: datetime,
    actor: str,
    cached_tokens_max: int | None,
) -> None:
    """The same inside the caller's transaction: the account is locked, and so is the row."""
    status = row.status_at(at)
    if status == ACTIVE:
        set_end(account, row, until=until, at=at, actor=actor)
    elif status == PENDING:
        changed = CacheObject.objects.filter(id=row.id, status=PENDING).update(
            expired_at=until, wanted_until=None
        )
        assert changed == 1
        _note_end(row, "extended", until=until, at=at, actor=actor)
    else:
        require_room(row.organization_id, tokens=row.tokens, cached_tokens_max=cached_tokens_max, at=at)
        revive(account, row, until=until, at=at, actor=actor)


def set_end(
    account: LockedAccount,
    row: CacheObject,
    *,
    until: datetime,
    at: datetime,
    actor: str,
    kind: str = "extended",
    **detail: Any,
) -> None:
    """Move an active object's end to `until`, or to where its budget ends."""
    assert row.segment is not None
    ends_at = max(at, budgets.within(account, row, row.segment, until=until, at=at))
    wanted_until = until if ends_at < until else None
    _write_end(
        account, row, ends_at=ends_at, wanted_until=wanted_until, at=at, actor=actor, kind=kind, **detail
    )


def cut_end(
    account: LockedAccount, row: CacheObject, *, ends_at: datetime, at: datetime, actor: str, **detail: Any
) -> None:
    """An active object ends sooner than it would, because its organization's budget does."""
    _write_end(
        account,
        row,
        ends_at=max(at, ends_at),
        wanted_until=row.wanted_until or row.expired_at,
        at=at,
        actor=actor,
        kind="extended",
        **detail,
    )


def _write_end(
    account: LockedAccount,
    row: CacheObject,
    *,
    ends_at: datetime,
    wanted_until: datetime | None,
    at: datetime,
    actor: str,
    kind: str,
    **detail: Any,
) -> None:
    assert row.segment is not None
    if (ends_at, wanted_until) == (row.expired_at, row.wanted_until):
        return
    if wanted_until is not None:
        detail = {"wanted_until": wanted_until.isoformat()} | detail
    storage.extend(account, row.segment, ends_at=ends_at, at=at)
    changed = CacheObject.objects.filter(id=row.id, status=ACTIVE).update(
        expired_at=ends_at, wanted_until=wanted_until
    )
    assert changed == 1
    _note_end(row, kind, until=ends_at, at=at, actor=actor, **detail)


def _note_end(
    row: CacheObject, kind: str, *, until: datetime, at: datetime, actor: str, **detail: Any
) -> None:
    """`row` still holds its old end."""
    ends = {"expired_at_before": row.expired_at.isoformat(), "expired_at": until.isoformat()}
    note(row.id, row.organization_id, kind, at=at, actor=actor, **ends, **detail)


def note_budget(account: LockedAccount, row: CacheObject, *, spent_at: datetime, at: datetime) -> None:
    reached = budgets.reached(account, row, at=spent_at)
    if reached is not None:
        detail = reasons.of_budget(reached)
        note(row.id, row.organization_id, "budget_reached", at=at, actor="clock", **detail)


def require_room(organization_id: str, *, tokens: int, cached_tokens_max: int | None, at: datetime) -> None:
    """Raise InvalidRequest when `tokens` more would pass the organization's total. Exact under its account's lock."""
    if cached_tokens_max is None:
        return
    alive = CacheObject.objects.of(organization_id).filter(status__in=[PENDING, ACTIVE], expired_at__gt=at)
    cached = alive.aggregate(sum=Sum("tokens"))["sum"] or 0
    if cached + tokens > cached_tokens_max:
        raise InvalidRequest(
            f"Input token length too long: {cached} tokens are cached, {tokens} more would pass the "
            f"{cached_tokens_max} of the organization's tier"
        )


def revive(
    account: LockedAccount,
    row: CacheObject,
    *,
    until: datetime,
    at: datetime,
    actor: str,
    kind: str = "revived",
    **detail: Any,
) -> None:
    """Expired or error → pending. The fee is due again, because the work is done again."""
    if row.status in (PENDING, ACTIVE):
        expire(account, row, at=at, actor="clock")
    budgets.require_creation(account, row, at=at)
    reference = hold_creation(account, cache_id=row.id, model=row.model, tokens=row.tokens, at=at)
    if row.ttl_policy == AUTO:
        assert row.cap_seconds is not None
        row.cap_at = at + timedelta(seconds=row.cap_seconds)
    changed = CacheObject.objects.filter(id=row.id, status__in=[EXPIRED, ERROR]).update(
        status=PENDING,
        expired_at=until,
        wanted_until=None,
        used_at=None,
        kept_minutes=None,
        cap_at=row.cap_at,
        hold_reference=reference,
        creation_fee_due=True,
        attempts=0,
        retry_at=None,
        prefilled_tokens=0,
        error_type="",
        error_message="",
    )
    assert changed == 1
    _note_end(row, kind, until=until, at=at, actor=actor, **detail)
    dispatch.after_commit(dispatch.PRECOMPUTE)


def expire(account: LockedAccount, row: CacheObject, *, at: datetime, actor: str) -> None:
    """A locked row whose life is over by the clock, by money, or by an operator; its owner is told."""
    _end(account, row, at=at, actor=actor)
    _tell(row, CACHE_EXPIRED, expired_at=min(row.expired_at, at), at=at)


def _end(account: LockedAccount, row: CacheObject, *, at: datetime, actor: str) -> None:
    """A locked row ends: last storage lines, bytes doomed."""
    if row.status == PENDING:
        _end_pending(account, row, status=EXPIRED, at=at, actor=actor)
        return
    assert row.segment is not None and row.kv_state_id is not None
    if row.segment.closed_at is None:
        storage.close(account, row.segment, at=at)
    kv_id = row.kv_state_id
    changed = CacheObject.objects.filter(id=row.id, status=ACTIVE).update(
        status=EXPIRED, kv_state=None, segment=None, fence=F("fence") + 1
    )
    assert changed == 1
    store.doom(kv_id, at=at)
    ended_at = row.segment.closed_at
    assert ended_at is not None, "it was closed just now, or when the money ended"
    is_unpaid = actor == "clock" and ended_at < row.expired_at
    detail = reasons.of_empty_balance(ended_at=ended_at) if is_unpaid else {}
    note(row.id, row.organization_id, EXPIRED, at=at, actor=actor, **detail)
    if ended_at >= row.expired_at:
        _note_planned_end(account, row, at=at)
    dispatch.after_commit(dispatch.DESTROY_KV)


def _note_planned_end(account: LockedAccount, row: CacheObject, *, at: datetime) -> None:
    """It lived until its planned end: say what had planned it, where that was not its owner."""
    if row.wanted_until is not None:
        # In the period that it ended in, however late that is written down.
        note_budget(account, row, spent_at=row.expired_at - timedelta(microseconds=1), at=at)
    elif row.ttl_policy == AUTO:
        quote = charging.creation_quote(
            organization_id=row.organization_id,
            model=row.model,
            tokens=row.tokens,
            currency=account.currency,
            at=at,
        )
        note(row.id, row.organization_id, "auto_expired", at=at, actor="clock", **reasons.of_rest(row, quote))
    elif row.ttl_policy == SCHEDULED:
        detail = reasons.of_closing(next_open_at=row.windows.next_open(at))
        note(row.id, row.organization_id, "schedule_closed", at=at, actor="clock", **detail)


def expire_now(organization_id: str, cache_id: str, *, actor: str) -> None:
    """End an object before its time. Raises NotFound, and Conflict when it has ended already."""
    with transaction.atomic():
        account = accounts.lock(organization_id)
        at = account.locked_at
        row = locked(organization_id, cache_id)
        if row.status not in (PENDING, ACTIVE):
            raise Conflict(f"The cache object is {row.status}; only a pending or active one can be expired.")
        CacheObject.objects.filter(id=row.id, expired_at__gt=at).update(expired_at=at)
        expire(account, row, at=at, actor=actor)


def expire_due(*, limit: int) -> int:
    """Write down what the clock has already decided, for at most `limit` objects; how many were due."""
    due = list(
        CacheObject.objects.due(clock.now())
        .order_by("expired_at")
        .values_list("organization_id", "id")[:limit]
    )
    for organization_id, group in _by_organization(due):
        with transaction.atomic():
            account = accounts.lock(organization_id)
            at = account.locked_at
            rows = (
                CacheObject.objects.select_for_update(of=("self",))
                .with_what_decides_status()
                .filter(id__in=group)
                .order_by("id")
            )
            for row in rows:
                if row.status in (PENDING, ACTIVE) and row.status_at(at) == EXPIRED:
                    expire(account, row, at=at, actor="clock")
    return len(due)


def expire_over(account: LockedAccount, *, at: datetime) -> None:
    """Write down what of one organization is over at `at`, as of then; in the caller's transaction."""
    storage.cut_exhausted(account, at=at)
    rows = CacheObject.objects.of(account.organization_id).with_what_decides_status()
    over = Q(status__in=[PENDING, ACTIVE], expired_at__lte=at) | Q(
        status=ACTIVE, segment__closed_at__isnull=False
    )
    for row in rows.select_for_update(of=("self",)).filter(over).order_by("expired_at", "id"):
        expire(account, row, at=at, actor="clock")


def next_end(organization_id: str) -> datetime | None:
    """When the first of an organization's living objects ends, if it does not run out of money before."""
    alive = CacheObject.objects.of(organization_id).filter(status__in=[PENDING, ACTIVE])
    found: datetime | None = alive.aggregate(first=Min("expired_at"))["first"]
    return found


def _by_organization(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for organization_id, cache_id in pairs:
        groups.setdefault(organization_id, []).append(cache_id)
    return sorted(groups.items())


# --- Loss and deletion -----------------------------------------------------------------------------------------


def kv_lost(organization_id: str, cache_id: str, *, kv_id: uuid.UUID, reason: str, actor: str) -> bool:
    """Active → pending because its bytes cannot be used: storage stops at the last proof, the rework is free."""
    with transaction.atomic():
        account = accounts.lock(organization_id)
        at = account.locked_at
        row = (
            CacheObject.objects.select_for_update(of=("self",))
            .with_what_decides_status()
            .select_related("kv_state")
            .filter(organization_id=organization_id, id=cache_id, status=ACTIVE, kv_state_id=kv_id)
            .first()
        )
        if row is None or row.status_at(at) != ACTIVE:
            return False
        assert row.segment is not None and row.kv_state is not None
        storage.close(account, row.segment, at=min(at, row.kv_state.proved_at))
        changed = CacheObject.objects.filter(id=row.id, status=ACTIVE, kv_state_id=kv_id).update(
            status=PENDING,
            # While it is computed nobody can use it, and nothing is paid for it.
            expired_at=max(row.expired_at, row.cap_at or row.expired_at),
            kv_state=None,
            segment=None,
            creation_fee_due=False,
            attempts=0,
            retry_at=None,
            prefilled_tokens=0,
            fence=F("fence") + 1,
        )
        assert changed == 1
        store.doom(kv_id, at=at)
        note(row.id, row.organization_id, "kv_lost", at=at, actor=actor, reason=reason[:500])
        dispatch.after_commit(dispatch.DESTROY_KV)
        dispatch.after_commit(dispatch.PRECOMPUTE)
    return True


def delete(organization_id: str, cache_id: str, *, actor: str) -> None:
    """Remove an object and its tags; its last storage is charged, its bytes are doomed, its ledger lines stay.

    Raises NotFound.
    """
    with transaction.atomic():
        account = accounts.lock(organization_id)
        at = account.locked_at
        row = locked(organization_id, cache_id)
        if row.status in (PENDING, ACTIVE):
            _end(account, row, at=at, actor=actor)
        tags.release_all_of(organization_id, row.id, at=at, actor=actor)
        CacheObject.objects.filter(id=row.id).delete()
        note(row.id, row.organization_id, "deleted", at=at, actor=actor)
        _tell(row, CACHE_DELETED, expired_at=min(row.expired_at, at), at=at)
