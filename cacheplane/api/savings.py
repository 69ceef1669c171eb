"""`GET /v1/billing/savings`: what the same calls would have cost without the cache, and whether an object pays."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing import clock, money
from cacheplane.api import openapi, periods
from cacheplane.api.authentication import caller_of
from cacheplane.api.billing import AMOUNT, INSTANT
from cacheplane.api.pagination import require_known
from cacheplane.caching import advice, savings
from cacheplane.caching.savings import Saved, Savings
from cacheplane.errors import InvalidRequest

GROUPS = tuple(savings.GROUPS)
_COUNT = {"type": "integer", "minimum": 0}
_SECONDS = {
    "type": ["number", "null"],
    "description": "an estimate: the measured prefill of the object, for each hit; null: not measured",
}
_SUMS: dict[str, Any] = {
    "calls": _COUNT | {"description": "that used a cache object"},
    "cached_tokens": _COUNT,
    "cost": AMOUNT | {"description": "creation, storage and call fees, as far as they are posted"},
    "cost_uncached": AMOUNT | {"description": "what the cached tokens would have cost on the models called"},
    "saved": AMOUNT | {"description": "negative: it cost more than it spared"},
    "seconds_saved": _SECONDS,
}
SAVINGS: dict[str, Any] = {
    "type": "object",
    "required": ["object", "start", "end", "tz", "currency", "group_by", "data", "total"],
    "properties": {
        "object": {"type": "string", "enum": ["billing.savings"]},
        "start": INSTANT,
        "end": INSTANT,
        "tz": {"type": "string"},
        "currency": {"type": "string"},
        "group_by": {"type": "string", "enum": list(GROUPS)},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [*_SUMS, "break_even_calls_per_hour", "advice", "reason"],
                "properties": {
                    "cache": {
                        "type": "string",
                        "description": "the object's id, where it is grouped by object",
                    },
                    "model": {"type": "string", "description": "the family, where it is grouped by model"},
                    "day": {"type": "string", "description": "where it is grouped by day"},
                    **_SUMS,
                    "break_even_calls_per_hour": {
                        "type": ["integer", "null"],
                        "description": "in each stored hour; null: no call came, or none spares more than its fee",
                    },
                    "advice": {"type": ["string", "null"], "enum": [*advice.WORDS, None]},
                    "reason": {"type": ["string", "null"]},
                },
                "additionalProperties": False,
            },
        },
        "total": {
            "type": "object",
            "required": list(_SUMS),
            "properties": _SUMS,
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}
NAMES = {savings.OBJECT: "cache", savings.MODEL: "model", savings.DAY: "day"}


def sums_as_json(of: Saved | Savings) -> dict[str, Any]:
    return {
        "calls": of.calls,
        "cached_tokens": of.cached_tokens,
        "cost": money.text(of.cost),
        "cost_uncached": money.text(of.cost_uncached),
        "saved": money.text(of.saved),
        # A JSON number: it is time, and no money.
        "seconds_saved": of.seconds_saved,
    }


def as_json(group: Saved, *, by: str) -> dict[str, Any]:
    return {
        NAMES[by]: group.key,
        **sums_as_json(group),
        "break_even_calls_per_hour": group.break_even_calls_per_hour,
        "advice": group.advice.word if group.advice else None,
        "reason": group.advice.reason if group.advice else None,
    }


PARAMETERS = [
    OpenApiParameter("group_by", str, enum=list(GROUPS), description=f"default {savings.OBJECT}"),
    *periods.SPAN,
]


class BillingSavings(APIView):
    @extend_schema(
        operation_id="get_savings",
        summary="What cache objects saved, in money and seconds, and whether each pays",
        description=f"The last {periods.DAYS_DEFAULT} days unless start and end are given, {periods.DAYS_MAX} at most. "
        "Deleted objects are told too.",
        parameters=PARAMETERS,
        responses=openapi.answers(SAVINGS, 400, 401, 403, 503),
    )
    def get(self, request: Request) -> Response:
        require_known(request.query_params, PARAMETERS)
        at = clock.now_of(caller_of(request).organization_id)
        period = periods.period_from(request.query_params, at=at)
        by = request.query_params.get("group_by", "") or savings.OBJECT
        if by not in GROUPS:
            raise InvalidRequest(
                f"Invalid request: group_by: got {by[:40]!r}, takes one of {', '.join(GROUPS)}"
            )
        found = savings.savings_of(
            caller_of(request).organization_id,
            by=by,
            start=period.start,
            end=period.end,
            tz=period.tz,
            at=at,
        )
        return Response(
            {
                "object": "billing.savings",
                "start": period.start.isoformat(),
                "end": period.end.isoformat(),
                "tz": period.tz,
                "currency": found.currency,
                "group_by": by,
                "data": [as_json(group, by=by) for group in found.groups],
                "total": sums_as_json(found),
            }
        )
