"""`/v1/caching`: the cache object over HTTP."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing import clock, money
from billing.budgets import Budget
from cacheplane.api import bodies, openapi
from cacheplane.api.authentication import caller_of
from cacheplane.api.pagination import page_from, window_from
from cacheplane.api.schemas import creation, kimi
from cacheplane.caching import cache_objects, life, tags, waiting
from cacheplane.caching.cache_objects import NewCacheObject
from cacheplane.caching.changes import Change
from cacheplane.caching.digests import sorted_tools
from cacheplane.caching.idempotency import Once
from cacheplane.caching.life import LifeEvent
from cacheplane.caching.lifetimes import Auto, Fixed, Lifetime, Scheduled
from cacheplane.caching.models import FIXED, CacheObject
from cacheplane.caching.schedules import Written
from cacheplane.caching.words import word_for
from cacheplane.errors import InvalidRequest

LATEST = datetime(9999, 1, 1, tzinfo=UTC)
WITHOUT_NUL = "^[^\\u0000]*$"
METADATA_FILTER = {
    "type": "object",
    "propertyNames": {"pattern": WITHOUT_NUL},
    "additionalProperties": {"type": "string", "pattern": WITHOUT_NUL},
}


def as_json(row: CacheObject, *, at: datetime) -> dict[str, Any]:
    status = row.status_at(at)
    body = {
        "id": row.id,
        "object": "context_cache_object",
        "model": row.model,
        "messages": row.messages,
        "tools": sorted_tools(row.tools),
        "name": row.name,
        "description": row.description,
        "metadata": row.metadata,
        "created_at": int(row.created_at.timestamp()),
        "expired_at": int(row.expired_at.timestamp()),
        "status": word_for(status),
        "tokens": row.tokens,
    }
    if status == "error":
        body["error"] = {"type": row.error_type, "message": row.error_message}
    return body | _rules_as_json(row, at=at)


def _rules_as_json(row: CacheObject, *, at: datetime) -> dict[str, Any]:
    """Fields of our own: nothing for an object with a fixed end and without a budget, as the reference has it."""
    found: dict[str, Any] = {}
    if row.ttl_policy != FIXED:
        found["ttl_policy"] = row.ttl_policy
    if row.cap_seconds is not None:
        found["ttl_cap"] = row.cap_seconds
    if row.schedule is not None:
        found["schedule"] = row.schedule
        found["next_open_at"] = int(row.windows.next_open(at).timestamp())
    if row.budget_amount is not None:
        found["budget"] = {"amount": money.text(row.budget_amount), "per": row.budget_per}
    return found


def _instant(unix_seconds: int | None) -> datetime | None:
    if unix_seconds is None:
        return None
    if unix_seconds > LATEST.timestamp():
        raise InvalidRequest(f"Invalid request: expired_at: got {unix_seconds}, takes a unix time in seconds")
    return datetime.fromtimestamp(unix_seconds, UTC)


def new_of(request: Request, *, key: str | None = None) -> NewCacheObject:
    """The body of a creation and its `Idempotency-Key`, checked for form. Raises InvalidRequest naming the field."""
    if key is not None:
        creation.check_idempotency_key(key)
    wanted = bodies.read(request, kimi.CreateCache)
    kimi.check_metadata(wanted.metadata)
    for index, tag in enumerate(wanted.tags or ()):
        tags.check_name(tag, field=f"tags[{index}]")
    lifetime = _lifetime_of(wanted)
    return NewCacheObject(
        model=wanted.model,
        messages=kimi.as_messages(wanted.messages),
        tools=kimi.as_tools(wanted.tools, wanted.messages),
        name=wanted.name or "",
        description=wanted.description or "",
        metadata=wanted.metadata,
        lifetime=lifetime or Fixed(),
        budget=_budget_of(wanted.budget),
        tags=wanted.tags or (),
        once=None if key is None else Once(key=key, body_digest=creation.digest_of(wanted)),
    )


def _lifetime_of(wanted: kimi.CreateCache | kimi.UpdateCache) -> Lifetime | None:
    """None: nothing is said of it."""
    ttl, expired_at = kimi.check_lifetime(wanted)
    if wanted.schedule is not None:
        return Scheduled(
            windows=tuple(
                Written(days=one.days, from_=one.from_, to=one.to, tz=one.tz)
                for one in wanted.schedule.windows
            )
        )
    if wanted.ttl == "auto":
        return Auto(cap_seconds=wanted.ttl_cap)
    if ttl is None and expired_at is None:
        return None
    return Fixed(ttl_seconds=ttl, expired_at=_instant(expired_at))


def _budget_of(wanted: kimi.SpendingBudget | None) -> Budget | None:
    kimi.check_budget(wanted)
    if wanted is None or wanted.amount is None:
        return None
    return Budget(amount=money.exact(wanted.amount), per=wanted.per)


class CachingList(APIView):
    @extend_schema(
        operation_id="create_cache",
        summary="Create a cache object",
        request=openapi.body_of(kimi.CreateCache),
        parameters=[
            OpenApiParameter(
                "Idempotency-Key",
                str,
                OpenApiParameter.HEADER,
                description="The same key with the same body answers the same object for 24 hours.",
            ),
            OpenApiParameter(
                "Prefer",
                str,
                OpenApiParameter.HEADER,
                description="wait=SECONDS (RFC 7240): answer when it is active, or when the time is over.",
            ),
        ],
        responses=openapi.answers(openapi.CACHE_OBJECT, 400, 401, 403, 404, 429, 503),
    )
    def post(self, request: Request) -> Response:
        received = time.monotonic()
        caller = caller_of(request)
        row = cache_objects.create(caller, new_of(request, key=request.headers.get("Idempotency-Key")))
        wanted = creation.wait_seconds(request.headers.get("Prefer"))
        seconds = min(wanted or 0, settings.CREATE_WAIT_SECONDS_MAX)
        waited = waiting.until_settled(caller, row.id, deadline=received + seconds) if seconds else None
        answer = Response(as_json(waited or row, at=clock.now_of(row.organization_id)))
        if waited is not None:
            answer["Preference-Applied"] = f"wait={seconds}"
        return answer

    @extend_schema(
        operation_id="list_caches",
        summary="List cache objects",
        parameters=[
            *openapi.page_parameters(cursor="an object's id"),
            OpenApiParameter("metadata", METADATA_FILTER, style="deepObject"),
        ],
        responses=openapi.answers(openapi.list_of(openapi.CACHE_OBJECT), 400, 401, 404),
    )
    def get(self, request: Request) -> Response:
        caller = caller_of(request)
        rows = cache_objects.page(caller, page_from(request.query_params))
        at = clock.now_of(caller.organization_id)
        return Response({"object": "list", "data": [as_json(row, at=at) for row in rows]})


class CachingDetail(APIView):
    @extend_schema(
        operation_id="get_cache",
        summary="Get a cache object",
        responses=openapi.answers(openapi.CACHE_OBJECT, 401, 404),
    )
    def get(self, request: Request, cache_id: str) -> Response:
        row = cache_objects.get(caller_of(request), cache_id)
        answer = Response(as_json(row, at=clock.now_of(row.organization_id)))
        # Not in the body, whose fields the contract fixes: how far the precompute is.
        answer["Msh-Context-Cache-Progress"] = f"{row.prefilled_tokens}/{row.tokens}"
        return answer

    @extend_schema(
        operation_id="update_cache",
        summary="Change a cache object's metadata and end",
        request=openapi.body_of(kimi.UpdateCache),
        responses=openapi.answers(openapi.CACHE_OBJECT, 400, 401, 403, 404, 429),
    )
    def put(self, request: Request, cache_id: str) -> Response:
        wanted = bodies.read(request, kimi.UpdateCache)
        kimi.check_metadata(wanted.metadata)
        budget = _budget_of(wanted.budget)
        change = Change(
            metadata=wanted.metadata,
            lifetime=_lifetime_of(wanted),
            budget=budget,
            is_budget_dropped=wanted.budget is not None and budget is None,
        )
        row = cache_objects.update(caller_of(request), cache_id, change)
        return Response(as_json(row, at=clock.now_of(row.organization_id)))

    @extend_schema(
        operation_id="delete_cache",
        summary="Delete a cache object",
        responses=openapi.answers(openapi.DELETED, 401, 404),
    )
    def delete(self, request: Request, cache_id: str) -> Response:
        cache_objects.delete(caller_of(request), cache_id)
        return Response({"deleted": True, "id": cache_id, "object": "context_cache_object.deleted"})


def event_as_json(event: LifeEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "object": "context_cache_event",
        "cache_id": event.cache_id,
        "kind": event.kind,
        "at": event.at.isoformat(),
        "actor": event.actor,
        "detail": event.detail,
    }


class CachingEvents(APIView):
    @extend_schema(
        operation_id="list_cache_events",
        summary="A cache object's whole life, also of one that is deleted",
        parameters=[
            openapi.LIMIT,
            OpenApiParameter("order", str, enum=["asc", "desc"], description="default asc: the oldest first"),
            OpenApiParameter("after", str, description="exclusive cursor: an event's id"),
        ],
        responses=openapi.answers(openapi.list_of(openapi.CACHE_EVENT), 400, 401, 404),
    )
    def get(self, request: Request, cache_id: str) -> Response:
        window = window_from(request.query_params, order_default="asc")
        events = life.page(
            caller_of(request),
            cache_id,
            limit=window.limit,
            newest_first=window.newest_first,
            after=window.after,
        )
        return Response({"object": "list", "data": [event_as_json(event) for event in events]})
