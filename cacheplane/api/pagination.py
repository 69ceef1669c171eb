"""Query parameters of lists, checked one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from django.http import QueryDict
from drf_spectacular.utils import OpenApiParameter

from cacheplane.caching.cache_objects import Page
from cacheplane.errors import InvalidRequest

LIMIT_DEFAULT, LIMIT_MAX = 20, 100
_METADATA = re.compile(r"^metadata\[(.+)\]$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A window on a list that has one cursor."""

    limit: int
    newest_first: bool
    after: str | None


def require_known(query: QueryDict, parameters: Sequence[OpenApiParameter]) -> None:
    """For what gives sums: with a filter that is misspelt they would be others, and nobody would notice.

    Raises InvalidRequest naming the first parameter that is none of these.
    """
    taken = [parameter.name for parameter in parameters if parameter.location == OpenApiParameter.QUERY]
    for name in query:
        if name not in taken:
            raise InvalidRequest(
                f"Invalid request: {name[:40]}: got an unknown parameter, takes {', '.join(taken)}"
            )


def window_from(query: QueryDict, *, order_default: str) -> Window:
    """`limit`, `order`, `after`. Raises InvalidRequest naming the parameter."""
    raw = query.get("limit", "") or str(LIMIT_DEFAULT)
    if not (raw.isascii() and raw.isdigit() and len(raw) <= 3 and 1 <= int(raw) <= LIMIT_MAX):
        raise InvalidRequest(f"Invalid request: limit: got {raw[:40]!r}, takes 1 to {LIMIT_MAX}")
    order = query.get("order", "") or order_default
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"Invalid request: order: got {order[:40]!r}, takes asc or desc")
    for name in query:
        if "\0" in name + "".join(query.getlist(name)):
            raise InvalidRequest(f"Invalid request: {name!r}: got a NUL character, takes text without it")
    return Window(limit=int(raw), newest_first=order == "desc", after=query.get("after") or None)


def page_from(query: QueryDict) -> Page:
    """The same, with `before` and repeated `metadata[k]=v`."""
    window = window_from(query, order_default="desc")
    metadata = {}
    for name in query:
        if found := _METADATA.match(name):
            metadata[found[1]] = str(query[name])
    return Page(
        limit=window.limit,
        newest_first=window.newest_first,
        after=window.after,
        before=query.get("before") or None,
        metadata=metadata,
    )
