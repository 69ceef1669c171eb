"""The identity of a prefix as its caller wrote it: a digest that is blind to the order of keys. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from cacheplane.chat import Message, Tool

_encoder = msgspec.json.Encoder(order="deterministic")


def sorted_tools(tools: Sequence[Tool] | None) -> list[Tool] | None:
    """The same with all keys sorted. A model's prompt shows them in the order in which they come, and a database
    has an order of its own: without one for all, equal tools would not make equal tokens."""
    if tools is None:
        return None
    found: list[Tool] = msgspec.json.decode(_encoder.encode(tools))
    return found


def canonical(messages: Sequence[Message]) -> bytes:
    """Messages as key-sorted JSON in UTF-8: what is digested of them, and what is written."""
    return _encoder.encode(messages)


def digest(messages: Sequence[Message], tools: Sequence[Tool] | None) -> str:
    """Hex SHA-256 over the canonical, key-sorted form of messages and tools; absent tools equal null."""
    return digest_of(canonical(messages), tools)


def digest_of(messages: bytes, tools: Sequence[Tool] | None) -> str:
    """As `digest`, of messages that are canonical already: of `{"messages": …, "tools": …}`, which is not put
    together for it."""
    found = hashlib.sha256(b'{"messages":')
    for part in (messages, b',"tools":', _encoder.encode(tools), b"}"):
        found.update(part)
    return found.hexdigest()
