"""What a creation takes beside its body: headers. Pure."""

from __future__ import annotations

import hashlib
import re

import msgspec

from cacheplane.errors import InvalidRequest

IDEMPOTENCY_KEY_CHARS_MAX = 255
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_encoder = msgspec.json.Encoder(order="deterministic")


def check_idempotency_key(text: str) -> None:
    """The header `Idempotency-Key`. Raises InvalidRequest."""
    if not (len(text) <= IDEMPOTENCY_KEY_CHARS_MAX and _VISIBLE.fullmatch(text)):
        raise InvalidRequest(
            f"Invalid request: Idempotency-Key: got {text[:40]!r}, takes 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible "
            "ASCII characters"
        )


def digest_of(body: msgspec.Struct) -> str:
    """Hex SHA-256 of what a body says: blind to the order of its keys, and to fields that are ignored."""
    return hashlib.sha256(_encoder.encode(body)).hexdigest()
