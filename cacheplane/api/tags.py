"""`/v1/caching/refs/tags`: the names of cache objects over HTTP."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing import clock
from cacheplane.api import bodies, caching, openapi
from cacheplane.api.authentication import caller_of
from cacheplane.api.pagination import page_from
from cacheplane.api.schemas.tags import VERSION_DIGITS_MAX, BindTag, version_cursor
from cacheplane.caching import tags
from cacheplane.caching.models import TAG_NAME, CacheTag
from cacheplane.caching.tags import Binding


def as_json(row: CacheTag) -> dict[str, Any]:
    return {
        "cache_id": row.cache_object_id,
        "created_at": int(row.created_at.timestamp()),
        "object": "cache_object.tag",
        "owned_by": row.organization_id,
        "tag": row.tag,
    }


def _binding_as_json(tag: str, found: Binding) -> dict[str, Any]:
    return {
        "object": "cache_object.tag.binding",
        "tag": tag,
        "version": found.version,
        "cache_id": found.cache_id,
        "bound_at": int(found.bound_at.timestamp()),
        "bound_by": found.bound_by,
        "released_at": None if found.released_at is None else int(found.released_at.timestamp()),
        "released_by": found.released_by,
    }


class TagList(APIView):
    @extend_schema(
        operation_id="bind_tag",
        summary="Give a tag to a cache object, or move it there",
        request=openapi.body_of(BindTag),
        responses=openapi.answers(openapi.TAG, 400, 401, 403, 404),
    )
    def post(self, request: Request) -> Response:
        wanted = bodies.read(request, BindTag)
        return Response(as_json(tags.bind(caller_of(request), tag=wanted.tag, cache_id=wanted.cache_id)))

    @extend_schema(
        operation_id="list_tags",
        summary="List tags by name",
        parameters=openapi.page_parameters(cursor="a tag's name", pattern=rf"^({TAG_NAME})?$"),
        responses=openapi.answers(openapi.list_of(openapi.TAG), 400, 401),
    )
    def get(self, request: Request) -> Response:
        wanted = page_from(request.query_params)
        rows = tags.page(
            caller_of(request),
            limit=wanted.limit,
            is_descending=wanted.newest_first,
            after=wanted.after,
            before=wanted.before,
        )
        return Response({"object": "list", "data": [as_json(row) for row in rows]})


class TagDetail(APIView):
    @extend_schema(
        operation_id="get_tag", summary="Get a tag", responses=openapi.answers(openapi.TAG, 401, 404)
    )
    def get(self, request: Request, tag: str) -> Response:
        return Response(as_json(tags.get(caller_of(request), tag)))

    @extend_schema(
        operation_id="delete_tag",
        summary="Delete a tag; its object stays",
        responses=openapi.answers(openapi.DELETED_TAG, 401),
    )
    def delete(self, request: Request, tag: str) -> Response:
        tags.release(caller_of(request), tag)
        return Response({"deleted": True, "object": "cache_object.tag.deleted", "tag": tag})


class TagContent(APIView):
    @extend_schema(
        operation_id="get_tag_content",
        summary="Get the cache object that a tag names",
        responses=openapi.answers(openapi.CACHE_OBJECT, 401, 404),
    )
    def get(self, request: Request, tag: str) -> Response:
        caller = caller_of(request)
        row = tags.content(caller, tag)
        return Response(caching.as_json(row, at=clock.now_of(caller.organization_id)))


class TagHistory(APIView):
    @extend_schema(
        operation_id="get_tag_history",
        summary="What a tag has pointed to, from when to when, by which key; also of one that is deleted",
        parameters=openapi.page_parameters(cursor="a version", pattern=rf"^[0-9]{{0,{VERSION_DIGITS_MAX}}}$"),
        responses=openapi.answers(openapi.list_of(openapi.TAG_BINDING), 400, 401, 404),
    )
    def get(self, request: Request, tag: str) -> Response:
        wanted = page_from(request.query_params)
        found = tags.history(
            caller_of(request),
            tag,
            limit=wanted.limit,
            is_descending=wanted.newest_first,
            after=version_cursor(wanted.after, field="after"),
            before=version_cursor(wanted.before, field="before"),
        )
        return Response({"object": "list", "data": [_binding_as_json(tag, one) for one in found]})
