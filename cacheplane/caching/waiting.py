"""Waiting for a precompute. The row is asked in short turns, and no connection is kept between them."""

from __future__ import annotations

import threading
import time

from django.conf import settings
from django.db import connection

from cacheplane.access.callers import Caller
from cacheplane.caching import cache_objects
from cacheplane.caching.models import OWN_NOW, PENDING, CacheObject

TURN_SECONDS_FIRST, TURN_SECONDS_LAST, TURN_GROWTH = 0.02, 0.25, 1.5

_places = threading.BoundedSemaphore(settings.CREATE_WAITERS_MAX)
"""Each who waits takes a thread of the web process."""
_stopping = threading.Event()


def stop() -> None:
    """This process ends: who waits is answered with what there is."""
    _stopping.set()


def until_settled(caller: Caller, cache_id: str, *, deadline: float) -> CacheObject | None:
    """The object when it is no longer pending, or when the time is over; None when too many are waiting already.

    `deadline` is `time.monotonic`'s. Not within a transaction. Raises NotFound when it is deleted meanwhile.
    """
    if not _places.acquire(blocking=False):
        return None
    try:
        _wait(caller, cache_id, deadline=deadline)
    finally:
        _places.release()
    return cache_objects.get(caller, cache_id)


def _wait(caller: Caller, cache_id: str, *, deadline: float) -> None:
    turn_seconds = TURN_SECONDS_FIRST
    pending = CacheObject.objects.of(caller.organization_id).filter(
        id=cache_id, status=PENDING, expired_at__gt=OWN_NOW
    )
    while pending.exists() and (left := deadline - time.monotonic()) > 0:
        connection.close()
        if _stopping.wait(min(turn_seconds, left)):
            return
        turn_seconds = min(turn_seconds * TURN_GROWTH, TURN_SECONDS_LAST)
