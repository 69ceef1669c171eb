"""What a creation takes beside its body: headers. Pure."""

from __future__ import annotations

import hashlib
import re

import msgspec

from cacheplane.errors import InvalidRequest

IDEMPOTENCY_KEY_CHARS_MAX = 255
_VISIBLE = re.compile(r"[\x21-\x7e]+")
WAIT_DIGITS_MAX = 9
_PREFERENCE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_encoder = msgspec.json.Encoder(order="deterministic")


def check_idempotency_key(text: str) -> None:
    """The header `Idempotency-Key`. Raises InvalidRequest."""
    if not (len(text) <= IDEMPOTENCY_KEY_CHARS_MAX and _VISIBLE.fullmatch(text)):
        raise InvalidRequest(
            f"Invalid request: Idempotency-Key: got {text[:40]!r}, takes 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible "
            "ASCII characters"
        )


def wait_seconds(prefer: str | None) -> int | None:
    """`wait=…` of the header `Prefer` (RFC 7240), the first one if there are several. What is malformed, or not known,
    is as if it had not been said; so is no time at all."""
    for preference in _PREFERENCE.findall(prefer or ""):
        name, _equals, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            value = value.strip()
            digits = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
            is_taken = digits.isascii() and digits.isdigit() and len(digits) <= WAIT_DIGITS_MAX
            return (int(digits) or None) if is_taken else None
    return None


def digest_of(body: msgspec.Struct) -> str:
    """Hex SHA-256 of what a body says: blind to the order of its keys, and to fields that are ignored."""
    return hashlib.sha256(_encoder.encode(body)).hexdigest()
