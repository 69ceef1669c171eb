"""How a chat call names its cache object: as its first message, or in headers."""

from __future__ import annotations

from typing import Literal

import msgspec

from cacheplane.api.schemas.decoding import explained, refuse
from cacheplane.errors import InvalidRequest

SECONDS_DIGITS_MAX = 18


class CacheMessage(msgspec.Struct):
    """The first message of a call that names a cache object."""

    role: Literal["cache"]
    content: str


class CacheReference(msgspec.Struct, frozen=True, kw_only=True):
    """A call's cache object as its caller named it: by its id, or by a tag."""

    cache_id: str | None
    tag: str | None = None
    reset_ttl_seconds: int | None
    is_dry_run: bool
    is_message: bool


def cache_reference(first: object, *, has_tools: bool) -> CacheReference:
    """`cache_id=ID;reset_ttl=S;dry_run=1`, or `tag=NAME;…`, in the first message's content.

    `has_tools`: the call brings its own.
    """
    try:
        message = msgspec.convert(first, CacheMessage)
    except msgspec.ValidationError as error:
        raise InvalidRequest(explained(error, into=CacheMessage, root="messages[0]")) from None
    if has_tools:
        raise InvalidRequest(
            "Invalid request: tools: got a value, takes null: the cache object brings its own tools"
        )
    options: dict[str, str] = {}
    for part in message.content.split(";"):
        name, _equals, value = part.partition("=")
        if not value or name in options or name not in ("cache_id", "tag", "reset_ttl", "dry_run"):
            taken = "cache_id=ID or tag=NAME, reset_ttl=SECONDS and dry_run=1, joined by ';'"
            raise refuse("messages[0].content", message.content[:200], taken)
        options[name] = value
    if ("cache_id" in options) is ("tag" in options):
        raise refuse("messages[0].content", message.content[:200], "one of cache_id and tag")
    return CacheReference(
        cache_id=options.get("cache_id"),
        tag=options.get("tag"),
        reset_ttl_seconds=_seconds(options.get("reset_ttl"), path="messages[0].content reset_ttl"),
        is_dry_run=_flag(options.get("dry_run"), path="messages[0].content dry_run"),
        is_message=True,
    )


def header_reference(
    cache_id: str | None, reset_ttl: str | None, dry_run: str | None
) -> CacheReference | None:
    """The same from `X-Msh-Context-Cache` and its two companions; None when the first is absent."""
    if not cache_id:
        return None
    return CacheReference(
        cache_id=cache_id,
        reset_ttl_seconds=_seconds(reset_ttl, path="X-Msh-Context-Cache-Reset-TTL"),
        is_dry_run=_flag(dry_run, path="X-Msh-Context-Cache-DryRun"),
        is_message=False,
    )


def _seconds(text: str | None, *, path: str) -> int | None:
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= SECONDS_DIGITS_MAX and int(text) > 0):
        raise refuse(path, text[:40], "a whole number of seconds above 0")
    return int(text)


def _flag(text: str | None, *, path: str) -> bool:
    if text in (None, "", "0"):
        return False
    if text != "1":
        raise refuse(path, (text or "")[:40], "1")
    return True
