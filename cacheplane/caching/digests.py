"""The identity of a prefix as its caller wrote it: a digest that is blind to the order of keys. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from cacheplane.chat import Message, Tool

_encoder = msgspec.json.Encoder(order="deterministic")


def digest(messages: Sequence[Message], tools: Sequence[Tool] | None) -> str:
    """Hex SHA-256 over the canonical, key-sorted form of messages and tools; absent tools equal null."""
    canonical = _encoder.encode({"messages": messages, "tools": tools})
    return hashlib.sha256(canonical).hexdigest()
