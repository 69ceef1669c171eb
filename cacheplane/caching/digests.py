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


def digest(messages: Sequence[Message], tools: Sequence[Tool] | None) -> str:
    """Hex SHA-256 over the canonical, key-sorted form of messages and tools; absent tools equal null."""
    canonical = _encoder.encode({"messages": messages, "tools": tools})
    return hashlib.sha256(canonical).hexdigest()
