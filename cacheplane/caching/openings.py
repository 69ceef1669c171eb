"""Openings of scheduled objects: ahead of each they are computed, and paid, again."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction

from billing import accounts, charging
from billing.errors import BillingError
from cacheplane.access import callers, gates, tiers
from cacheplane.caching import lifecycle, lifetimes, reasons, uses
from cacheplane.caching.models import ERROR, EXPIRED, OWN_NOW, CacheObject
from cacheplane.caching.schedules import Opening
from cacheplane.errors import FeatureClosed, InvalidRequest, OrganizationSuspended


def open_due(*, limit: int) -> int:
    """Compute again what opens soon, for at most `limit` objects; how many were due.

    What cannot be paid, or is not allowed, is noted and tried again later.
    """
    due = list(
        CacheObject.objects.filter(status__in=[EXPIRED, ERROR], reopen_at__lte=OWN_NOW)
        .order_by("reopen_at")
        .values_list("organization_id", "id")[:limit]
    )
    for organization_id, cache_id in due:
        try:
            with transaction.atomic():
                _open(organization_id, cache_id)
        except (BillingError, InvalidRequest, FeatureClosed, OrganizationSuspended) as error:
            with transaction.atomic():
                _refuse(organization_id, cache_id, sentence=error.message)
    return len(due)


def _due(organization_id: str, cache_id: str, *, at: datetime) -> CacheObject | None:
    """The row, locked, if it is still to be opened: its owner may have changed it meanwhile."""
    return (
        CacheObject.objects.of(organization_id)
        .select_for_update(of=("self",))
        .with_what_decides_status()
        .select_related("organization__tier")
        .filter(id=cache_id, status__in=[EXPIRED, ERROR], reopen_at__lte=at)
        .first()
    )


def _open(organization_id: str, cache_id: str) -> None:
    account = accounts.lock(organization_id)
    at = account.locked_at
    row = _due(organization_id, cache_id, at=at)
    if row is None:
        return
    schedule, lead = row.windows, lifetimes.lead(row)
    opening = lifetimes.due_opening(schedule, at=at, lead=lead)
    uses.write(row, {"reopen_at": lifetimes.reopen_at(schedule, at=at, lead=lead)})
    if opening is None:
        return  # the window went by while no worker ran
    tier = tiers.tier_now(row.organization)
    callers.require_state(organization_id, row.organization.state)
    gates.require_for(organization_id, rank=tier.rank, feature=gates.CONTEXT_CACHING, at=account.machine_at)
    lifecycle.require_room(
        organization_id, tokens=row.tokens, cached_tokens_max=tier.cached_tokens_max, at=at
    )
    quote = charging.creation_quote(
        organization_id=row.organization_id,
        model=row.model,
        tokens=row.tokens,
        currency=account.currency,
        at=at,
    )
    detail = reasons.of_opening(opens_at=opening.opens_at, closes_at=opening.closes_at, quote=quote)
    lifecycle.revive(
        account, row, until=opening.closes_at, at=at, actor="clock", kind="schedule_opened", **detail
    )


def _refuse(organization_id: str, cache_id: str, *, sentence: str) -> None:
    """Nothing of the attempt is left: note why, and when it is tried again."""
    account = accounts.lock(organization_id)
    at = account.locked_at
    row = _due(organization_id, cache_id, at=at)
    if row is None:
        return
    schedule, lead = row.windows, lifetimes.lead(row)
    opening = lifetimes.due_opening(schedule, at=at, lead=lead)
    retry_at = _retry_at(opening, at=at, otherwise=lifetimes.reopen_at(schedule, at=at, lead=lead))
    uses.write(row, {"reopen_at": retry_at})
    opens_at = opening.opens_at if opening is not None else at
    detail = reasons.of_refusal(sentence, opens_at=opens_at, retry_at=retry_at)
    lifecycle.note(row.id, organization_id, "schedule_refused", at=at, actor="clock", **detail)


def _retry_at(opening: Opening | None, *, at: datetime, otherwise: datetime) -> datetime:
    """A while later, unless the window is over by then, or the next one is due."""
    later = at + timedelta(seconds=settings.CACHE_SCHEDULE_RETRY_SECONDS)
    is_over = opening is None or later >= opening.closes_at
    return otherwise if is_over else min(later, otherwise)
