"""`/v1/webhooks`: where an organization is told, and what became of what it was told."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cacheplane.api import bodies, openapi
from cacheplane.api.authentication import caller_of
from cacheplane.api.pagination import window_from
from cacheplane.api.schemas import webhooks as schemas
from cacheplane.events import endpoints
from cacheplane.events.balances import shown
from cacheplane.events.endpoints import Changes, IssuedSecret
from cacheplane.events.models import Delivery, DeliveryAttempt, WebhookEndpoint

ENDPOINT: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "url", "events", "enabled", "created_at"],
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string", "enum": ["webhook_endpoint"]},
        "url": {"type": "string"},
        "events": {"type": "array", "items": {"type": "string"}},
        "description": {"type": "string"},
        "expiring_lead_seconds": {"type": "integer"},
        "balance_threshold": {"type": "string", "description": "a decimal, exact"},
        "enabled": {"type": "boolean"},
        "disabled_reason": {"type": "string"},
        "created_at": {"type": "integer", "description": "unix seconds"},
        "secret": {"type": "string", "description": "whsec_…, only when it is made"},
    },
}
DELIVERY: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "event", "state", "created_at", "attempts"],
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string", "enum": ["webhook_delivery"]},
        "event": {
            "type": "object",
            "properties": {
                "id": {"type": "string", "description": "the webhook-id"},
                "type": {"type": "string"},
                "subject": {"type": "string"},
            },
        },
        "state": {"type": "string", "enum": ["pending", "delivered", "failed"]},
        "created_at": {"type": "string", "format": "date-time"},
        "next_attempt_at": {"type": ["string", "null"], "format": "date-time"},
        "delivered_at": {"type": ["string", "null"], "format": "date-time"},
        "attempts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "at": {"type": "string", "format": "date-time"},
                    "duration_ms": {"type": "integer"},
                    "http_status": {"type": ["integer", "null"]},
                    "error": {"type": "string"},
                },
            },
        },
    },
}
PAGING = [
    openapi.LIMIT,
    OpenApiParameter("order", str, enum=["asc", "desc"]),
    OpenApiParameter("after", str, description="exclusive cursor: an id of the list"),
]


def as_json(row: WebhookEndpoint) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "webhook_endpoint",
        "url": row.url,
        "events": row.events,
        "description": row.description,
        "expiring_lead_seconds": row.expiring_lead_seconds,
        "balance_threshold": shown(row.balance_threshold),
        "enabled": row.disabled_at is None,
        "disabled_reason": row.disabled_reason,
        "created_at": int(row.created_at.timestamp()),
    }


def _with_secret(issued: IssuedSecret) -> Response:
    answer = Response(as_json(issued.endpoint) | {"secret": issued.secret})
    answer["Cache-Control"] = "no-store"
    return answer


def delivery_as_json(row: Delivery) -> dict[str, Any]:
    # None yet of one that was just made.
    attempts: list[DeliveryAttempt] = getattr(row, "last_attempts", [])
    return {
        "id": row.id,
        "object": "webhook_delivery",
        "event": {"id": row.event_id, "type": row.event.type, "subject": row.event.subject},
        "state": row.state,
        "created_at": row.created_at.isoformat(),
        "next_attempt_at": row.next_at.isoformat() if row.next_at else None,
        "delivered_at": row.delivered_at.isoformat() if row.delivered_at else None,
        "attempts": [
            {
                "at": attempt.at.isoformat(),
                "duration_ms": attempt.duration_ms,
                "http_status": attempt.http_status,
                "error": attempt.error,
            }
            for attempt in attempts
        ],
    }


class WebhookList(APIView):
    @extend_schema(
        operation_id="create_webhook",
        summary="Create a webhook endpoint; its secret is told here and never again",
        request=openapi.body_of(schemas.CreateWebhook),
        responses=openapi.answers(ENDPOINT, 400, 401, 409),
    )
    def post(self, request: Request) -> Response:
        wanted = bodies.read(request, schemas.CreateWebhook)
        schemas.check_threshold(wanted.balance_threshold)
        caller = caller_of(request)
        issued = endpoints.create(
            caller.organization_id,
            url=wanted.url,
            events=wanted.events,
            description=wanted.description or "",
            expiring_lead_seconds=wanted.expiring_lead_seconds,
            balance_threshold=wanted.balance_threshold,
            actor=caller.api_key_id,
        )
        return _with_secret(issued)

    @extend_schema(
        operation_id="list_webhooks",
        summary="List webhook endpoints",
        parameters=PAGING,
        responses=openapi.answers(openapi.list_of(ENDPOINT), 400, 401, 404),
    )
    def get(self, request: Request) -> Response:
        window = window_from(request.query_params, order_default="desc")
        rows = endpoints.page(
            caller_of(request).organization_id,
            limit=window.limit,
            newest_first=window.newest_first,
            after=window.after,
        )
        return Response({"object": "list", "data": [as_json(row) for row in rows]})


class WebhookDetail(APIView):
    @extend_schema(
        operation_id="get_webhook",
        summary="Get a webhook endpoint",
        responses=openapi.answers(ENDPOINT, 401, 404),
    )
    def get(self, request: Request, endpoint_id: str) -> Response:
        return Response(as_json(endpoints.get(caller_of(request).organization_id, endpoint_id)))

    @extend_schema(
        operation_id="update_webhook",
        summary="Change a webhook endpoint; what is not said stays as it is",
        request=openapi.body_of(schemas.UpdateWebhook),
        responses=openapi.answers(ENDPOINT, 400, 401, 404),
    )
    def put(self, request: Request, endpoint_id: str) -> Response:
        wanted = bodies.read(request, schemas.UpdateWebhook)
        schemas.check_threshold(wanted.balance_threshold)
        changes = Changes(
            url=wanted.url,
            events=wanted.events,
            description=wanted.description,
            expiring_lead_seconds=wanted.expiring_lead_seconds,
            balance_threshold=wanted.balance_threshold,
            is_enabled=wanted.enabled,
        )
        return Response(as_json(endpoints.update(caller_of(request).organization_id, endpoint_id, changes)))

    @extend_schema(
        operation_id="delete_webhook",
        summary="Delete a webhook endpoint, with what was on its way to it",
        responses=openapi.answers(openapi.DELETED, 401, 404),
    )
    def delete(self, request: Request, endpoint_id: str) -> Response:
        endpoints.delete(caller_of(request).organization_id, endpoint_id)
        return Response({"deleted": True, "id": endpoint_id, "object": "webhook_endpoint.deleted"})


class WebhookTest(APIView):
    @extend_schema(
        operation_id="test_webhook",
        summary="Send a test event",
        request=None,
        responses=openapi.answers(DELIVERY, 401, 404, 409, 429),
    )
    def post(self, request: Request, endpoint_id: str) -> Response:
        return Response(
            delivery_as_json(endpoints.send_test(caller_of(request).organization_id, endpoint_id))
        )


class WebhookRotation(APIView):
    @extend_schema(
        operation_id="rotate_webhook_secret",
        summary="Make a new secret, told here and never again; the old one signs beside it for a day",
        request=None,
        responses=openapi.answers(ENDPOINT, 401, 404),
    )
    def post(self, request: Request, endpoint_id: str) -> Response:
        return _with_secret(endpoints.rotate(caller_of(request).organization_id, endpoint_id))


class WebhookDeliveries(APIView):
    @extend_schema(
        operation_id="list_webhook_deliveries",
        summary="What was sent to a webhook endpoint, and what it answered",
        parameters=PAGING,
        responses=openapi.answers(openapi.list_of(DELIVERY), 400, 401, 404),
    )
    def get(self, request: Request, endpoint_id: str) -> Response:
        window = window_from(request.query_params, order_default="desc")
        rows = endpoints.deliveries(
            caller_of(request).organization_id,
            endpoint_id,
            limit=window.limit,
            newest_first=window.newest_first,
            after=window.after,
        )
        return Response({"object": "list", "data": [delivery_as_json(row) for row in rows]})
