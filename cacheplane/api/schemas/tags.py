"""Tags on the wire. Pure: what comes in; the names themselves are checked where they are kept."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cacheplane.errors import InvalidRequest

VERSION_DIGITS_MAX = 18

TagName = Annotated[str, Meta(extra_json_schema={"pattern": "^[A-Za-z][A-Za-z0-9_.-]{0,127}$"})]


class BindTag(msgspec.Struct):
    tag: TagName
    cache_id: Annotated[str, Meta(max_length=64)]


def version_cursor(text: str | None, *, field: str) -> int | None:
    """A version of a tag's history as a cursor. Raises InvalidRequest."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= VERSION_DIGITS_MAX):
        raise InvalidRequest(f"Invalid request: {field}: got {text[:40]!r}, takes a version of the tag")
    return int(text)
