"""What billing cannot see by itself: that cache objects and the storage that is billed for them agree."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from django.db import connection

from billing import audit
from billing.audit import Violation

INVARIANT = "I6 an object is active when one open segment bills it, and only then"

# An active object whose segment money has cut is over for every reader; the sweep writes it down within seconds.
ACTIVE_WITHOUT_SEGMENT = """
SELECT object.id, 'active without a segment of its own'
  FROM caching_cacheobject AS object
  LEFT JOIN billing_storagesegment AS segment ON segment.id = object.segment_id
 WHERE object.status = 'active' AND (segment.id IS NULL OR segment.subject <> object.id)
"""
SEGMENT_WITHOUT_ACTIVE = """
SELECT segment.subject, 'storage is billed but the object is ' || coalesce(object.status, 'gone')
  FROM billing_storagesegment AS segment
  LEFT JOIN caching_cacheobject AS object ON object.segment_id = segment.id AND object.status = 'active'
 WHERE segment.closed_at IS NULL AND object.id IS NULL
"""
HELD_WITHOUT_PENDING = """
SELECT hold.subject, 'a creation is held for an object that is not pending'
  FROM billing_hold AS hold
  LEFT JOIN caching_cacheobject AS object
    ON object.hold_reference = hold.reference AND object.status = 'pending'
 WHERE hold.kind = 'creation' AND hold.state = 'open' AND object.id IS NULL
"""
PENDING_WITHOUT_HOLD = """
SELECT object.id, 'pending with a fee due and nothing held for it'
  FROM caching_cacheobject AS object
 WHERE object.status = 'pending' AND object.creation_fee_due
   AND NOT EXISTS (SELECT 1 FROM billing_hold AS hold
                    WHERE hold.reference = object.hold_reference AND hold.state = 'open')
"""
QUERIES = (ACTIVE_WITHOUT_SEGMENT, SEGMENT_WITHOUT_ACTIVE, HELD_WITHOUT_PENDING, PENDING_WITHOUT_HOLD)


def objects_and_segments_agree(_at: datetime) -> Iterable[Violation]:
    for query in QUERIES:
        with connection.cursor() as cursor:
            cursor.execute(query)
            for subject, detail in cursor.fetchall():
                yield Violation(invariant=INVARIANT, subject=str(subject), detail=str(detail))


def register() -> None:
    audit.register(INVARIANT, objects_and_segments_agree)
