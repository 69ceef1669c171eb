"""`/v1/caching`: what creates and what changes a cache object."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cacheplane.api.schemas.decoding import refuse
from cacheplane.api.schemas.messages import MESSAGES_MAX, TOOLS_MAX, ChatMessage, ToolDeclaration
from cacheplane.errors import InvalidRequest

INT64_MAX = 2**63 - 1
TAGS_MAX = 16


class CreateCache(msgspec.Struct):
    model: Annotated[str, Meta(max_length=128)]
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MESSAGES_MAX)]
    tools: Annotated[list[ToolDeclaration], Meta(max_length=TOOLS_MAX)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    description: Annotated[str, Meta(max_length=512)] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    ttl: Annotated[int, Meta(ge=-INT64_MAX, le=INT64_MAX)] | None = None
    expired_at: Annotated[int, Meta(ge=-INT64_MAX, le=INT64_MAX)] | None = None
    tags: Annotated[list[str], Meta(max_length=TAGS_MAX)] | None = None


class UpdateCache(msgspec.Struct):
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    ttl: Annotated[int, Meta(ge=-INT64_MAX, le=INT64_MAX)] | None = None
    expired_at: Annotated[int, Meta(ge=-INT64_MAX, le=INT64_MAX)] | None = None


def check_metadata(metadata: dict[str, str] | None) -> None:
    for key, value in (metadata or {}).items():
        if len(key) > 64:
            raise refuse("metadata", key[:80], "keys of at most 64 characters")
        if len(value) > 512:
            raise refuse(f"metadata.{key}", f"{len(value)} characters", "at most 512")


def check_lifetime(ttl: int | None, expired_at: int | None) -> tuple[int | None, int | None]:
    """(ttl, expired_at) with zero and negative values taken as not given. Raises InvalidRequest when both are."""
    ttl = ttl if ttl is not None and ttl > 0 else None
    expired_at = expired_at if expired_at is not None and expired_at > 0 else None
    if ttl is not None and expired_at is not None:
        raise InvalidRequest(
            f"Invalid request: ttl: got {ttl} beside expired_at {expired_at}, takes one of the two"
        )
    return ttl, expired_at
