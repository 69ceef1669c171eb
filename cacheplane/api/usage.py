"""`GET /v1/billing/usage`: what was used, and what was paid for it, summed up as the caller likes."""

from __future__ import annotations

from typing import Any

from django.http import QueryDict
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing import accounts, clock, money, usage
from billing.usage import Sums
from cacheplane.api import openapi, periods
from cacheplane.api.authentication import caller_of
from cacheplane.api.billing import AMOUNT, INSTANT, meter_and_kind
from cacheplane.api.pagination import require_known
from cacheplane.errors import InvalidRequest

GROUPS = tuple(usage.DIMENSIONS)
_COUNT = {"type": "integer", "minimum": 0}
_COUNTS = {
    "creation_tokens": _COUNT,
    "storage_token_minutes": _COUNT,
    "calls": _COUNT | {"description": "that used a cache object"},
    "prompt_tokens": _COUNT | {"description": "that were not cached"},
    "cached_tokens": _COUNT,
    "completion_tokens": _COUNT,
}
_AMOUNTS = {
    "amount": AMOUNT | {"description": "what was paid"},
    "reversed": AMOUNT | {"description": "what corrections gave back of it"},
    "waived": AMOUNT | {"description": "used beyond what could be paid, and not charged"},
}
_NAME = {"type": ["string", "null"], "description": "only where it is grouped by; null: of none"}
USAGE: dict[str, Any] = {
    "type": "object",
    "required": ["object", "start", "end", "tz", "currency", "group_by", "data"],
    "properties": {
        "object": {"type": "string", "enum": ["billing.usage"]},
        "start": INSTANT,
        "end": INSTANT,
        "tz": {"type": "string"},
        "currency": {"type": "string"},
        "group_by": {"type": "array", "items": {"type": "string", "enum": list(GROUPS)}},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [*_COUNTS, *_AMOUNTS],
                "properties": {
                    **dict.fromkeys(GROUPS, _NAME),
                    "kind": {"type": ["string", "null"], "enum": ["prompt", "completion", None]},
                    "quantity": _COUNT | {"description": "where it is grouped by meter: in the meter's unit"},
                    **_COUNTS,
                    **_AMOUNTS,
                },
                "additionalProperties": False,
            },
        },
    },
    "additionalProperties": False,
}


def group_by_from(query: QueryDict) -> list[str]:
    """The dimensions asked for, comma separated, each once. Raises InvalidRequest."""
    names = [name for name in query.get("group_by", "").split(",") if name]
    for name in names:
        if name not in GROUPS:
            raise InvalidRequest(
                f"Invalid request: group_by: got {name[:40]!r}, takes some of {', '.join(GROUPS)}, comma separated"
            )
    return list(dict.fromkeys(names))


def as_json(sums: Sums) -> dict[str, Any]:
    told: dict[str, Any] = dict(sums.group)
    if "meter" in told:
        told["quantity"] = _quantity(sums)
        told["meter"], told["kind"] = meter_and_kind(told["meter"])
    return told | {
        **{name: getattr(sums, name) for name in _COUNTS},
        **{name: money.text(getattr(sums, name)) for name in _AMOUNTS},
    }


def _quantity(sums: Sums) -> int:
    """Of a group of one meter, in which all others are zero. Cached tokens are told with calls, and are none."""
    return (
        sums.creation_tokens
        + sums.storage_token_minutes
        + sums.calls
        + sums.prompt_tokens
        + sums.completion_tokens
    )


PARAMETERS = [
    OpenApiParameter(
        "group_by",
        {"type": "array", "items": {"type": "string", "enum": list(GROUPS)}},
        style="form",
        explode=False,
        description="one or several, comma separated; none: all in one",
    ),
    *periods.SPAN,
]


class BillingUsage(APIView):
    @extend_schema(
        operation_id="get_usage",
        summary="What was used and paid, by day, model, cache object, key or meter",
        description=f"The last {periods.DAYS_DEFAULT} days unless start and end are given, {periods.DAYS_MAX} at most.",
        parameters=PARAMETERS,
        responses=openapi.answers(USAGE, 400, 401, 403),
    )
    def get(self, request: Request) -> Response:
        query, organization_id = request.query_params, caller_of(request).organization_id
        require_known(query, PARAMETERS)
        at = clock.now_of(caller_of(request).organization_id)
        period, group_by = periods.period_from(query, at=at), group_by_from(query)
        found = usage.sums(
            organization_id, group_by=group_by, start=period.start, end=period.end, tz=period.tz
        )
        if len(found) > usage.GROUPS_MAX:
            raise InvalidRequest(
                f"Invalid request: group_by: got more than {usage.GROUPS_MAX} groups, takes fewer dimensions or a "
                "shorter span"
            )
        return Response(
            {
                "object": "billing.usage",
                "start": period.start.isoformat(),
                "end": period.end.isoformat(),
                "tz": period.tz,
                "currency": accounts.balance(organization_id, at).currency,
                "group_by": group_by,
                "data": [as_json(sums) for sums in found],
            }
        )
