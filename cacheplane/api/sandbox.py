"""`/v1/sandbox/clock`: the clock of an organization that was made to rehearse."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing.clock import Reading
from cacheplane.api import bodies, openapi
from cacheplane.api.authentication import caller_of
from cacheplane.api.schemas import sandbox as schemas
from cacheplane.caching import sandbox

CLOCK: dict[str, Any] = {
    "type": "object",
    "required": ["object", "now", "offset_seconds"],
    "properties": {
        "object": {"type": "string", "enum": ["sandbox.clock"]},
        "now": {
            "type": "string",
            "format": "date-time",
            "description": "what the organization's clock shows",
        },
        "offset_seconds": {
            "type": "integer",
            "minimum": 0,
            "description": "how far it is ahead of the database's clock",
        },
    },
}


BODY = {
    "application/json": openapi.schema_of(schemas.AdvanceClock)
    | {"oneOf": [{"required": ["advance"]}, {"required": ["to"]}]}
}


def as_json(reading: Reading) -> dict[str, Any]:
    return {
        "object": "sandbox.clock",
        "now": reading.at.isoformat(),
        "offset_seconds": int(reading.offset.total_seconds()),
    }


class SandboxClock(APIView):
    @extend_schema(
        operation_id="get_sandbox_clock",
        summary="What time it is for a sandbox organization",
        responses=openapi.answers(CLOCK, 401, 403),
    )
    def get(self, request: Request) -> Response:
        return Response(as_json(sandbox.read(caller_of(request))))

    @extend_schema(
        operation_id="advance_sandbox_clock",
        summary="Set a sandbox organization's clock forward; what falls due on the way is settled in order",
        request=BODY,
        responses=openapi.answers(CLOCK, 400, 401, 403, 429),
    )
    def post(self, request: Request) -> Response:
        wanted = bodies.read(request, schemas.AdvanceClock)
        to = schemas.instant_of(wanted)
        return Response(as_json(sandbox.advance(caller_of(request), seconds=wanted.advance, to=to)))
