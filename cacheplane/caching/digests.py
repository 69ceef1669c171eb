"""The identity of a prefix as its caller wrote it: a digest that is blind to the order of keys. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from decimal import Decimal

import msgspec

from cacheplane.chat import Message, Tool

_encoder = msgspec.json.Encoder(order="deterministic")


def sorted_tools(tools: Sequence[Tool] | None) -> list[Tool] | None:
    """The same with all keys sorted, and numbers as the database keeps them. A model's prompt shows both as they come,
    and a database has an order and a spelling of its own: without one for all, equal tools would not make equal
    tokens."""
    if tools is None:
        return None
    found: list[Tool] = _decoder.decode(_encoder.encode(tools))
    return found


def _as_kept(number: str) -> int | float:
    """A number with a fraction or an exponent: 1e20 comes back as a whole number, -0.0 as 0.0."""
    value = float(number)
    return int(Decimal(number)) if "e" in number and value.is_integer() else value + 0.0


_decoder = msgspec.json.Decoder(float_hook=_as_kept)


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
