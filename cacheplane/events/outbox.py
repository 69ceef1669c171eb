"""Writing down what is to be told, in the transaction of the change: both are there, or neither is.

Nothing is written for an organization that nobody listens for.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import connection

from billing import clock
from cacheplane import dispatch
from cacheplane.events.models import Delivery, OutboxEvent

LISTENING = """
SELECT id FROM events_webhookendpoint
 WHERE organization_id = %s AND disabled_at IS NULL AND %s = ANY(events)
 ORDER BY id FOR SHARE
"""
"""Shared, so that an endpoint is not disabled or deleted until what it is to be told is committed."""


def tell(*, organization_id: str, event_type: str, subject: str, at: datetime, data: dict[str, Any]) -> None:
    """For every endpoint of the organization that listens; in the caller's transaction."""
    with connection.cursor() as cursor:
        cursor.execute(LISTENING, [organization_id, event_type])
        endpoint_ids = [row[0] for row in cursor.fetchall()]
    if endpoint_ids:
        write(
            organization_id=organization_id,
            endpoint_ids=endpoint_ids,
            event_type=event_type,
            subject=subject,
            at=at,
            data=data,
        )


def write(
    *,
    organization_id: str,
    endpoint_ids: list[str],
    event_type: str,
    subject: str,
    at: datetime,
    data: dict[str, Any],
) -> list[Delivery]:
    """For these endpoints, whose rows the caller has locked. `at` is the organization's clock; the deliveries are work
    of machines, and due by theirs."""
    now = clock.now()
    event = OutboxEvent.objects.create(
        organization_id=organization_id, type=event_type, subject=subject, at=at, data=data
    )
    made = Delivery.objects.bulk_create(
        Delivery(event=event, endpoint_id=endpoint_id, created_at=now, next_at=now)
        for endpoint_id in endpoint_ids
    )
    nudge()
    return made


def nudge() -> None:
    dispatch.after_commit(dispatch.DELIVER_WEBHOOKS)
