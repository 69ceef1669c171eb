"""Webhook endpoints: make, find, change, rotate, disable, delete. Every query starts at the organization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import transaction
from django.db.models import F, Prefetch, Q

from billing import clock
from cacheplane.access.models import Organization
from cacheplane.errors import Conflict, LimitExceeded, NotFound
from cacheplane.events import outbox, signing
from cacheplane.events.addresses import checked_url
from cacheplane.events.models import (
    BALANCE_THRESHOLD_DEFAULT,
    EXPIRING_LEAD_SECONDS_DEFAULT,
    FAILED,
    PENDING,
    TEST,
    Delivery,
    DeliveryAttempt,
    WebhookEndpoint,
    new_salt,
)

ENDPOINTS_MAX = 10
"""Of one organization."""
ROTATION_GRACE_SECONDS = 86_400
"""How long both secrets sign after a rotation."""
TESTS_PER_MINUTE = 6
ATTEMPTS_SHOWN_MAX = 20
DELETE_ROWS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedSecret:
    """`secret` exists only here: show it once, then forget it. `repr`, and so a log, leaves it out."""

    endpoint: WebhookEndpoint
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a PUT or an operator wants to be otherwise; None leaves it as it is."""

    url: str | None = None
    events: Sequence[str] | None = None
    description: str | None = None
    expiring_lead_seconds: int | None = None
    balance_threshold: Decimal | None = None
    is_enabled: bool | None = None


def create(
    organization_id: str,
    *,
    url: str,
    events: Sequence[str],
    description: str = "",
    expiring_lead_seconds: int | None = None,
    balance_threshold: Decimal | None = None,
    actor: str,
) -> IssuedSecret:
    """Raises InvalidRequest, and Conflict when the organization has as many as it may."""
    checked = checked_url(url)
    with transaction.atomic():
        # Its lock keeps two creations from counting each other out.
        Organization.objects.select_for_update(no_key=True).get(id=organization_id)
        if WebhookEndpoint.objects.of(organization_id).count() >= ENDPOINTS_MAX:
            raise Conflict(
                f"There are {ENDPOINTS_MAX} webhook endpoints already; delete one to make another."
            )
        endpoint = WebhookEndpoint.objects.create(
            organization_id=organization_id,
            url=checked,
            events=sorted(set(events)),
            description=description,
            expiring_lead_seconds=expiring_lead_seconds or EXPIRING_LEAD_SECONDS_DEFAULT,
            balance_threshold=BALANCE_THRESHOLD_DEFAULT if balance_threshold is None else balance_threshold,
            created_at=clock.now(),
            created_by=actor,
        )
    return _issued(endpoint)


def _issued(endpoint: WebhookEndpoint) -> IssuedSecret:
    secret = signing.secret_of(endpoint_id=endpoint.id, salt=endpoint.secret_salt)
    return IssuedSecret(endpoint=endpoint, secret=secret)


def get(organization_id: str, endpoint_id: str) -> WebhookEndpoint:
    """Raises NotFound, for absent and for foreign ids alike."""
    row = WebhookEndpoint.objects.of(organization_id).filter(id=_possible(endpoint_id)).first()
    if row is None:
        raise _absent(endpoint_id)
    return row


def _locked(organization_id: str, endpoint_id: str) -> WebhookEndpoint:
    rows = WebhookEndpoint.objects.of(organization_id).select_for_update(of=("self",))
    row = rows.filter(id=_possible(endpoint_id)).first()
    if row is None:
        raise _absent(endpoint_id)
    return row


def _absent(endpoint_id: str) -> NotFound:
    return NotFound(f"Not found the webhook endpoint {endpoint_id[:64]}")


def _possible(row_id: str) -> str:
    """An id to ask the database for, which takes no NUL."""
    return row_id[:64].replace("\0", "")


def page(organization_id: str, *, limit: int, newest_first: bool, after: str | None) -> list[WebhookEndpoint]:
    rows = WebhookEndpoint.objects.of(organization_id)
    if after is not None:
        cursor = get(organization_id, after)
        rows = rows.filter(Q(id__lt=cursor.id) if newest_first else Q(id__gt=cursor.id))
    return list(rows.order_by("-id" if newest_first else "id")[:limit])


def update(organization_id: str, endpoint_id: str, changes: Changes) -> WebhookEndpoint:
    """Raises NotFound and InvalidRequest."""
    url = None if changes.url is None else checked_url(changes.url)
    with transaction.atomic():
        row = _locked(organization_id, endpoint_id)
        if url is not None:
            row.url = url
        if changes.events is not None:
            row.events = sorted(set(changes.events))
        if changes.description is not None:
            row.description = changes.description
        if changes.expiring_lead_seconds is not None:
            row.expiring_lead_seconds = changes.expiring_lead_seconds
        if changes.balance_threshold is not None and changes.balance_threshold != row.balance_threshold:
            row.balance_threshold, row.balance_low_at = changes.balance_threshold, None
        row.save()
        if changes.is_enabled is True:
            _enable(row)
        elif changes.is_enabled is False and row.disabled_at is None:
            disable(row.id, reason="disabled by its owner", at=clock.now())
            row.refresh_from_db()
    return row


def _enable(row: WebhookEndpoint) -> None:
    if row.disabled_at is not None:
        row.disabled_at, row.disabled_reason, row.failing_since = None, "", None
        row.save(update_fields=["disabled_at", "disabled_reason", "failing_since"])


def disable(endpoint_id: str, *, reason: str, at: datetime) -> bool:
    """Nothing is sent to it any more, and what was on its way has failed; False when it was disabled already."""
    with transaction.atomic():
        rows = WebhookEndpoint.objects.filter(id=endpoint_id, disabled_at__isnull=True)
        changed = rows.update(disabled_at=at, disabled_reason=reason)
        if changed:
            on_their_way = Delivery.objects.filter(endpoint_id=endpoint_id, state=PENDING)
            on_their_way.update(state=FAILED, next_at=None)
    return bool(changed)


def rotate(organization_id: str, endpoint_id: str) -> IssuedSecret:
    """A new secret; the old one goes on signing beside it for a day. Raises NotFound."""
    with transaction.atomic():
        row = _locked(organization_id, endpoint_id)
        row.previous_secret_salt, row.secret_salt = row.secret_salt, new_salt()
        row.previous_secret_until = clock.now() + timedelta(seconds=ROTATION_GRACE_SECONDS)
        row.save(update_fields=["secret_salt", "previous_secret_salt", "previous_secret_until"])
    return _issued(row)


def delete(organization_id: str, endpoint_id: str) -> None:
    """With what was on its way to it, and with what is known of its deliveries. Raises NotFound."""
    row = get(organization_id, endpoint_id)
    disable(row.id, reason="being deleted", at=clock.now())
    # In batches, before its own lock is taken: its objects' changes wait for that one.
    while ids := list(row.deliveries.values_list("id", flat=True)[:DELETE_ROWS]):
        Delivery.objects.filter(id__in=ids).delete()
    with transaction.atomic():
        _locked(organization_id, endpoint_id).delete()


def send_test(organization_id: str, endpoint_id: str) -> Delivery:
    """Raises NotFound, Conflict when it is disabled, LimitExceeded: a test is not for striking at others."""
    with transaction.atomic():
        row = _locked(organization_id, endpoint_id)
        at = clock.now()
        if row.disabled_at is not None:
            raise Conflict("The webhook endpoint is disabled; enable it first.")
        lately = Delivery.objects.filter(
            endpoint=row, event__type=TEST, created_at__gt=at - timedelta(minutes=1)
        )
        if lately.count() >= TESTS_PER_MINUTE:
            raise LimitExceeded(
                f"Your webhook endpoint took {TESTS_PER_MINUTE} tests within a minute, please try again later",
                retry_after_seconds=60,
            )
        data: dict[str, Any] = {"id": row.id, "object": "webhook_endpoint"}
        [made] = outbox.write(
            organization_id=organization_id,
            endpoint_ids=[row.id],
            event_type=TEST,
            subject=row.id,
            at=at,
            data=data,
        )
    return made


def deliveries(
    organization_id: str, endpoint_id: str, *, limit: int, newest_first: bool, after: str | None
) -> list[Delivery]:
    """With their last attempts. Raises NotFound for the endpoint, and for a cursor that is not of it."""
    endpoint = get(organization_id, endpoint_id)
    rows = Delivery.objects.of(organization_id).filter(endpoint=endpoint)
    if after is not None:
        if not rows.filter(id=_possible(after)).exists():
            raise NotFound(f"Not found the delivery {after[:64]}")
        rows = rows.filter(Q(id__lt=after) if newest_first else Q(id__gt=after))
    attempts = DeliveryAttempt.objects.order_by("-id")[:ATTEMPTS_SHOWN_MAX]
    shown = rows.select_related("event").prefetch_related(
        Prefetch("attempts", attempts, to_attr="last_attempts")
    )
    return list(shown.order_by("-id" if newest_first else "id")[:limit])


def send_again(delivery_id: str, *, at: datetime) -> None:
    """Under its old id, whatever became of it. Raises NotFound, and Conflict when its endpoint is disabled."""
    with transaction.atomic():
        row = Delivery.objects.select_related("endpoint").filter(id=delivery_id).first()
        if row is None:
            raise NotFound(f"Not found the delivery {delivery_id[:64]}")
        endpoint = _locked(row.endpoint.organization_id, row.endpoint_id)
        if endpoint.disabled_at is not None:
            raise Conflict("The webhook endpoint is disabled; enable it first.")
        Delivery.objects.filter(id=delivery_id).update(
            state=PENDING, next_at=at, tries=0, fence=F("fence") + 1
        )
        outbox.nudge()
