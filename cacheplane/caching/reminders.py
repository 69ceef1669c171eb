"""`cache.expiring`: told once when an object comes within an endpoint's lead of its end, again after it had left."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import connection, transaction

from billing import clock
from cacheplane.caching import lifecycle
from cacheplane.caching.models import CacheObject
from cacheplane.events import outbox
from cacheplane.events.models import CACHE_EXPIRING, ExpiringNotice, WebhookEndpoint

BATCH_OBJECTS = 500

SOON = """
       least(object.expired_at, account.exhaust_at)
            <= %(at)s::timestamptz + account.clock_offset + make_interval(secs => endpoint.expiring_lead_seconds)
"""
FORGET = f"""
DELETE FROM events_expiringnotice AS notice USING events_webhookendpoint AS endpoint
 WHERE endpoint.id = notice.endpoint_id AND NOT EXISTS (
    SELECT 1 FROM caching_cacheobject AS object
      JOIN billing_billingaccount AS account ON account.organization_id = object.organization_id
     WHERE object.id = notice.cache_id AND object.status = 'active' AND {SOON})
"""
DUE = f"""
SELECT endpoint.id, object.id
  FROM events_webhookendpoint AS endpoint
  JOIN caching_cacheobject AS object ON object.organization_id = endpoint.organization_id
  JOIN billing_billingaccount AS account ON account.organization_id = endpoint.organization_id
 WHERE endpoint.disabled_at IS NULL AND %(type)s = ANY(endpoint.events)
   AND object.status = 'active' AND {SOON}
   AND least(object.expired_at, account.exhaust_at) > %(at)s::timestamptz + account.clock_offset
   -- The end of one that is kept while it earns is always near, and each hit moves it.
   AND object.ttl_policy <> 'auto'
   AND NOT EXISTS (SELECT 1 FROM events_expiringnotice AS notice
                    WHERE notice.endpoint_id = endpoint.id AND notice.cache_id = object.id)
 ORDER BY object.expired_at LIMIT %(limit)s FOR SHARE OF endpoint
"""


def tell_expiring() -> int:
    """For one batch; how many were told. One at a time: the caller sees to that."""
    if not WebhookEndpoint.objects.listening_for(CACHE_EXPIRING).exists():
        return 0
    at = clock.now()
    values: dict[str, Any] = {"at": at, "type": CACHE_EXPIRING, "limit": BATCH_OBJECTS}
    with connection.cursor() as cursor:
        # On its own: who deletes an endpoint locks it before its notices.
        cursor.execute(FORGET, values)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(DUE, values)
            due = cursor.fetchall()
        rows = CacheObject.objects.defer("messages", "tools").select_related("organization__billing_account")
        objects = rows.in_bulk([cache_id for _, cache_id in due])
        for endpoint_id, cache_id in due:
            if cache_id in objects:
                _tell(endpoint_id, objects[cache_id], at=at)
    return len(due)


def _tell(endpoint_id: str, row: CacheObject, *, at: datetime) -> None:
    ExpiringNotice.objects.create(endpoint_id=endpoint_id, cache_id=row.id, at=at)
    account = row.organization.billing_account
    exhaust_at = account.exhaust_at
    ends_at = row.expired_at if exhaust_at is None else min(row.expired_at, exhaust_at)
    outbox.write(
        organization_id=row.organization_id,
        endpoint_ids=[endpoint_id],
        event_type=CACHE_EXPIRING,
        subject=row.id,
        at=at + account.clock_offset,
        data=lifecycle.told_of(row, expired_at=ends_at),
    )
