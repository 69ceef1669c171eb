"""What happened to a cache object, as its owner may see it: without host names and without an engine's words."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Q, QuerySet

from cacheplane.access.callers import Caller
from cacheplane.caching.cache_objects import possible
from cacheplane.caching.models import CacheObject, CacheObjectEvent
from cacheplane.errors import NotFound

SYSTEM, OPERATOR = "system", "operator"
BY_THE_SYSTEM = ("clock", "sweep", "gateway")
BY_WORKERS = ("claimed", "attempt_failed", "active", "error")
KEY = re.compile(r"ak-[a-z0-9]{20}")
SHOWN_DETAIL = (
    *("tokens", "attempt", "bytes", "prefill_ms", "expired_at_before", "expired_at"),
    *("why", "ended_at", "used_at", "storage_since_use", "recreation_cost", "break_even_minutes"),
    *("opens_at", "closes_at", "next_open_at", "retry_at"),
    *("wanted_until", "budget", "budget_per", "spent"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LifeEvent:
    """`actor` is a key's id, `system` or `operator`."""

    id: str
    cache_id: str
    kind: str
    at: datetime
    actor: str
    detail: dict[str, Any]


def page(
    caller: Caller, cache_id: str, *, limit: int, newest_first: bool, after: str | None
) -> list[LifeEvent]:
    """At most `limit` events of the caller's object, which may be deleted. Raises NotFound: object, or cursor."""
    cache_id = possible(cache_id)
    rows = _events(caller, cache_id)
    if after is not None:
        rows = rows.filter(_behind(_cursor(caller, cache_id, after), newest_first=newest_first))
    order = ("-at", "-id") if newest_first else ("at", "id")
    found = list(rows.order_by(*order)[:limit])
    if not found and not _is_known(caller, cache_id):
        raise NotFound(f"Not found the cache object {cache_id}")
    return [_shown(row) for row in found]


def _events(caller: Caller, cache_id: str) -> QuerySet[CacheObjectEvent]:
    return CacheObjectEvent.objects.filter(organization_id=caller.organization_id, cache_id=cache_id)


def _is_known(caller: Caller, cache_id: str) -> bool:
    is_there = CacheObject.objects.of(caller.organization_id).filter(id=cache_id).exists()
    return is_there or _events(caller, cache_id).exists()


def _cursor(caller: Caller, cache_id: str, after: str) -> CacheObjectEvent:
    try:
        event_id = uuid.UUID(after)
    except ValueError:
        event_id = None
    row = _events(caller, cache_id).filter(id=event_id).first() if event_id is not None else None
    if row is None:
        if not _is_known(caller, cache_id):
            raise NotFound(f"Not found the cache object {cache_id}")
        raise NotFound(f"Not found the event {after[:64]}")
    return row


def _behind(cursor: CacheObjectEvent, *, newest_first: bool) -> Q:
    if newest_first:
        return Q(at__lt=cursor.at) | Q(at=cursor.at, id__lt=cursor.id)
    return Q(at__gt=cursor.at) | Q(at=cursor.at, id__gt=cursor.id)


def _shown(row: CacheObjectEvent) -> LifeEvent:
    return LifeEvent(
        id=str(row.id),
        cache_id=row.cache_id,
        kind=row.kind,
        at=row.at,
        actor=neutral(row.actor, kind=row.kind),
        detail={name: row.detail[name] for name in SHOWN_DETAIL if name in row.detail},
    )


def neutral(actor: str, *, kind: str) -> str:
    """Who did it, without telling the names of our hosts and of our staff."""
    if kind in BY_WORKERS or actor in BY_THE_SYSTEM:
        return SYSTEM
    return actor if KEY.fullmatch(actor) else OPERATOR
