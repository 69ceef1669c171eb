"""What the OpenAPI document says of bodies that typed structs read, and of the one path that DRF does not serve."""

from __future__ import annotations

from typing import Any

import msgspec
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse

from cacheplane.api.pagination import LIMIT_DEFAULT, LIMIT_MAX
from cacheplane.api.schemas import kimi

_REASONS = {
    400: "A field is not taken; the message names it.",
    401: "No key, or not a valid one.",
    403: "The feature is not open to this organization.",
    409: "The state of what is named does not allow it.",
    404: "Absent, or somebody else's.",
    413: "The body is too large.",
    429: "A limit, the balance or the engine; see Retry-After.",
    503: "Try again later.",
}
ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}},
        }
    },
}


def _inlined(node: Any, components: dict[str, Any]) -> Any:
    """References replaced by what they name: these bodies are small trees, and a document of one piece reads easier."""
    if isinstance(node, dict):
        if "$ref" in node:
            return _inlined(components[node["$ref"].rsplit("/", 1)[-1]], components)
        return {key: _inlined(value, components) for key, value in node.items() if key != "title"}
    if isinstance(node, list):
        return [_inlined(item, components) for item in node]
    return node


def schema_of(struct: type[msgspec.Struct]) -> dict[str, Any]:
    (schema,), components = msgspec.json.schema_components([struct], ref_template="#/{name}")
    inlined: dict[str, Any] = _inlined(schema, components)
    return inlined


CACHE_OBJECT: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "model", "messages", "status", "tokens", "created_at", "expired_at"],
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string", "enum": ["context_cache_object"]},
        "model": {"type": "string"},
        "messages": {"type": "array", "items": {"type": "object"}},
        "tools": {"type": ["array", "null"], "items": {"type": "object"}},
        "name": {"type": "string"},
        "description": {"type": "string"},
        "metadata": {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
        "created_at": {"type": "integer", "description": "unix seconds"},
        "expired_at": {"type": "integer", "description": "unix seconds"},
        "status": {"type": "string"},
        "tokens": {"type": "integer"},
        "error": ERROR["properties"]["error"],
        "ttl_policy": {"type": "string", "enum": ["auto", "schedule"], "description": "what decides the end"},
        "ttl_cap": {"type": "integer", "description": "ttl auto: seconds beyond which no use moves the end"},
        "schedule": schema_of(kimi.WeeklySchedule),
        "next_open_at": {"type": "integer", "description": "unix seconds of the schedule's next opening"},
        "budget": schema_of(kimi.SpendingBudget),
    },
}
CACHE_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "cache_id", "kind", "at", "actor", "detail"],
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string", "enum": ["context_cache_event"]},
        "cache_id": {"type": "string"},
        "kind": {
            "type": "string",
            "examples": ["created", "active", "auto_extended", "schedule_opened", "expired"],
        },
        "at": {"type": "string", "format": "date-time"},
        "actor": {"type": "string", "description": "an API key's id, system, or operator"},
        "detail": {"type": "object"},
    },
}
DELETED: dict[str, Any] = {
    "type": "object",
    "required": ["deleted", "id", "object"],
    "properties": {"deleted": {"type": "boolean"}, "id": {"type": "string"}, "object": {"type": "string"}},
}
TAG: dict[str, Any] = {
    "type": "object",
    "required": ["cache_id", "created_at", "object", "owned_by", "tag"],
    "properties": {
        "cache_id": {"type": "string"},
        "created_at": {"type": "integer", "description": "unix seconds since which it names this object"},
        "object": {"type": "string", "enum": ["cache_object.tag"]},
        "owned_by": {"type": "string", "description": "the organization"},
        "tag": {"type": "string"},
    },
}
DELETED_TAG: dict[str, Any] = {
    "type": "object",
    "required": ["deleted", "object", "tag"],
    "properties": {"deleted": {"type": "boolean"}, "object": {"type": "string"}, "tag": {"type": "string"}},
}
TAG_BINDING: dict[str, Any] = {
    "type": "object",
    "required": [
        *("object", "tag", "version", "cache_id", "bound_at", "bound_by", "released_at", "released_by")
    ],
    "properties": {
        "object": {"type": "string", "enum": ["cache_object.tag.binding"]},
        "tag": {"type": "string"},
        "version": {"type": "integer", "description": "counts the tag's bindings from 1, without a gap"},
        "cache_id": {"type": "string"},
        "bound_at": {"type": "integer", "description": "unix seconds"},
        "bound_by": {"type": "string", "description": "the id of a key"},
        "released_at": {"type": ["integer", "null"], "description": "unix seconds; null while it lasts"},
        "released_by": {"type": ["string", "null"]},
    },
}
_AMOUNT = {"type": "string", "description": "exact decimal"}
ESTIMATE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "object": {"type": "string", "enum": ["context_cache_object.estimate"]},
        "model": {"type": "string", "description": "the family"},
        "tokens": {"type": "integer"},
        "currency": {"type": "string"},
        "lifetime_seconds": {"type": "integer"},
        "creation_fee": _AMOUNT,
        "storage_per_hour": _AMOUNT,
        "storage": _AMOUNT
        | {"description": "exact decimal; for the whole lifetime, each started minute whole"},
        "total": _AMOUNT | {"description": "exact decimal; creation and storage"},
        "call_fee": _AMOUNT,
        "break_even_minutes": {
            "type": "integer",
            "description": "minutes of storage that cost no more than a creation: what ttl auto keeps it unused",
        },
        "models": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "model": {"type": "string"},
                    "price_uncached": _AMOUNT | {"description": "of the same tokens in one call"},
                    "is_too_long": {"type": "boolean", "description": "for the model's window"},
                    "break_even_calls": {"type": ["integer", "null"], "description": "null: it never pays"},
                    "break_even_calls_per_hour": {"type": ["integer", "null"]},
                },
            },
        },
        "verdict": {"type": "string"},
    },
}


class ApiKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """How the document calls our keys. Found by its being imported."""

    target_class = "cacheplane.api.authentication.ApiKeyAuthentication"
    name = "ApiKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer"}


def list_of(item: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"type": "string", "enum": ["list"]},
            "data": {"type": "array", "items": item},
        },
    }


def page_of(item: dict[str, Any]) -> dict[str, Any]:
    """A list that says whether it goes on."""
    page = list_of(item)
    page["required"] = [*page["required"], "has_more"]
    page["properties"]["has_more"] = {"type": "boolean"}
    return page


LIMIT = OpenApiParameter(
    "limit", {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT}
)


def page_parameters(*, cursor: str, pattern: str = "") -> list[OpenApiParameter]:
    """`pattern`: what a cursor has to look like; one that does not is refused, not just
    unknown. An empty one is none."""
    schema = {"type": "string"} | ({"pattern": pattern} if pattern else {})
    return [
        LIMIT,
        OpenApiParameter("order", str, enum=["asc", "desc"], description="default desc"),
        *(
            OpenApiParameter(name, schema, description=f"exclusive cursor: {cursor}")
            for name in ("after", "before")
        ),
    ]


def body_of(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {"application/json": schema_of(struct)}


def answers(schema: dict[str, Any], *statuses: int) -> dict[Any, Any]:
    """The 200 answer and the refusals of a route, as drf-spectacular takes them."""
    found: dict[Any, Any] = {(200, "application/json"): schema}
    for status in statuses:
        found[(status, "application/json")] = OpenApiResponse(response=ERROR, description=_REASONS[status])
    return found


def add_hot_path(result: dict[str, Any], generator: Any, request: Any, public: Any) -> dict[str, Any]:
    """`/v1/chat/completions` is served beside DRF; its schema comes from the struct that reads it."""
    messages = {"type": "array", "items": {"type": "object"}, "minItems": 1, "maxItems": kimi.MESSAGES_MAX}
    body = schema_of(kimi.ChatCompletions)
    body["properties"]["messages"] = messages
    refusals = {
        str(status): {"description": _REASONS[status], "content": {"application/json": {"schema": ERROR}}}
        for status in (400, 401, 403, 404, 413, 429, 503)
    }
    completion = {
        "type": "object",
        "description": "chat.completion; with stream: chat.completion.chunk events",
    }
    result["paths"]["/v1/chat/completions"] = {
        "post": {
            "operationId": "create_chat_completion",
            "summary": "Chat, with or without a cache object",
            "tags": ["chat"],
            "security": [{"ApiKey": []}],
            "parameters": [
                {"name": name, "in": "header", "schema": {"type": "string"}, "required": False}
                for name in (
                    "X-Msh-Context-Cache",
                    "X-Msh-Context-Cache-Reset-TTL",
                    "X-Msh-Context-Cache-DryRun",
                )
            ],
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {
                "200": {
                    "description": "The answer",
                    "content": {
                        "application/json": {"schema": completion},
                        "text/event-stream": {"schema": {}},
                    },
                },
                **refusals,
            },
        }
    }
    return result
