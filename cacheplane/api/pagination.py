"""Query parameters of lists, checked one by one."""

from __future__ import annotations

import re

from django.http import QueryDict

from cacheplane.caching.cache_objects import Page
from cacheplane.errors import InvalidRequest

LIMIT_DEFAULT, LIMIT_MAX = 20, 100
_METADATA = re.compile(r"^metadata\[(.+)\]$")


def page_from(query: QueryDict) -> Page:
    """`limit`, `order`, `after`, `before`, repeated `metadata[k]=v`. Raises InvalidRequest naming the parameter."""
    raw = query.get("limit", "") or str(LIMIT_DEFAULT)
    if not (raw.isascii() and raw.isdigit() and len(raw) <= 3 and 1 <= int(raw) <= LIMIT_MAX):
        raise InvalidRequest(f"Invalid request: limit: got {raw[:40]!r}, takes 1 to {LIMIT_MAX}")
    order = query.get("order", "") or "desc"
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"Invalid request: order: got {order[:40]!r}, takes asc or desc")
    metadata = {}
    for name in query:
        if "\0" in name + "".join(query.getlist(name)):
            raise InvalidRequest(f"Invalid request: {name!r}: got a NUL character, takes text without it")
        if found := _METADATA.match(name):
            metadata[found[1]] = str(query[name])
    return Page(
        limit=int(raw),
        newest_first=order == "desc",
        after=query.get("after") or None,
        before=query.get("before") or None,
        metadata=metadata,
    )
