"""`POST /v1/caching/estimate`: what a creation would cost, and whether it would pay. Amounts are exact, in strings."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing import money
from cacheplane.api import caching, openapi
from cacheplane.api.authentication import caller_of
from cacheplane.api.schemas import kimi
from cacheplane.caching import estimates
from cacheplane.caching.estimates import Estimate


def as_json(found: Estimate) -> dict[str, Any]:
    return {
        "object": "context_cache_object.estimate",
        "model": found.model,
        "tokens": found.tokens,
        "currency": found.currency,
        "lifetime_seconds": found.lifetime_seconds,
        "creation_fee": money.text(found.creation_fee),
        "storage_per_hour": money.text(found.storage_per_hour),
        "storage": money.text(found.storage),
        "total": money.text(found.total),
        "call_fee": money.text(found.call_fee),
        "break_even_minutes": found.break_even_minutes,
        "models": [
            {
                "model": one.model,
                "price_uncached": money.text(one.price_uncached),
                "is_too_long": one.is_too_long,
                "break_even_calls": one.break_even_calls,
                "break_even_calls_per_hour": one.break_even_calls_per_hour,
            }
            for one in found.models
        ],
        "verdict": found.verdict,
    }


class CachingEstimate(APIView):
    @extend_schema(
        operation_id="estimate_cache",
        summary="What a cache object would cost, and from how many calls it pays; creates and holds nothing",
        request=openapi.body_of(kimi.CreateCache),
        responses=openapi.answers(openapi.ESTIMATE, 400, 401, 403, 429, 503),
    )
    def post(self, request: Request) -> Response:
        return Response(as_json(estimates.estimate(caller_of(request), caching.new_of(request))))
