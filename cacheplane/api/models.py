"""`/v1/models` and the token counter."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cacheplane.access import rate_limits
from cacheplane.api import bodies, openapi
from cacheplane.api.authentication import caller_of
from cacheplane.api.schemas import kimi
from cacheplane.engines import http, registry
from cacheplane.engines.models import ServedModel

COUNT_TIMEOUT_SECONDS = 60.0


def as_json(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.created_at.timestamp()),
        "owned_by": model.owned_by,
        "permission": [],
        "root": "",
        "parent": "",
    }


class ModelList(APIView):
    @extend_schema(
        operation_id="list_models",
        summary="List the models that can be asked for",
        responses=openapi.answers(openapi.list_of({"type": "object"}), 401),
    )
    def get(self, request: Request) -> Response:
        return Response({"object": "list", "data": [as_json(model) for model in ServedModel.objects.all()]})


class ModelDetail(APIView):
    @extend_schema(
        operation_id="get_model",
        summary="One model by its name",
        responses=openapi.answers({"type": "object"}, 401, 404),
    )
    def get(self, request: Request, name: str) -> Response:
        return Response(as_json(registry.served_model(name)))


class EstimateTokenCount(APIView):
    @extend_schema(
        operation_id="estimate_token_count",
        summary="Count the prompt tokens of messages",
        request=openapi.body_of(kimi.CountTokens),
        responses=openapi.answers({"type": "object"}, 400, 401, 404, 429),
    )
    def post(self, request: Request) -> Response:
        wanted = bodies.read(request, kimi.CountTokens)
        messages = kimi.as_messages(wanted.messages)
        serving = registry.serving(wanted.model)
        adapter = registry.adapter_of(serving.engine)
        # Counting is the engine's work: it is one of the minute's requests, though nobody pays for it.
        rate_limits.admit_tokens(caller_of(request), tokens=0)
        counted = http.call(
            adapter.count_tokens(messages, None),
            timeout_seconds=COUNT_TIMEOUT_SECONDS,
        )
        return Response({"data": {"total_tokens": counted}})
