"""Public ids: a prefix, a dash, and 20 characters of [a-z0-9] that sort by the time they were made.

Ten characters are the milliseconds since 1970 in base 36 (enough until the year 115 000 or so), ten are
random. Within one process the ids of one millisecond rise too, by a random stride. An id is no secret.
"""

from __future__ import annotations

import secrets
import threading
import time
import uuid

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
TIME_CHARS = 10
RANDOM_CHARS = 10
RANDOM_SPAN = 36**RANDOM_CHARS

_lock = threading.Lock()
_last_ms = 0
_last_random = 0


def new_id(prefix: str) -> str:
    """For example `cache-0m5x2k9a1b7c…`: unique, opaque to callers, sortable by time."""
    stamp_ms, random_part = _next_parts(time.time_ns() // 1_000_000)
    return f"{prefix}-{_base36(stamp_ms, TIME_CHARS)}{_base36(random_part, RANDOM_CHARS)}"


def new_ordered_uuid() -> uuid.UUID:
    """A UUID of version 7: those of one process sort in the order in which they were made."""
    stamp_ms, random_part = _next_parts(time.time_ns() // 1_000_000)
    return uuid.UUID(int=stamp_ms << 80 | 0x7 << 76 | 0b10 << 62 | random_part)


def _next_parts(now_ms: int) -> tuple[int, int]:
    """A new millisecond draws afresh; the same one, or a clock set back, steps on by a random stride."""
    global _last_ms, _last_random
    with _lock:
        if now_ms > _last_ms:
            _last_ms, _last_random = now_ms, secrets.randbelow(RANDOM_SPAN // 2)
        else:
            _last_random += 1 + secrets.randbelow(1 << 32)
            if _last_random >= RANDOM_SPAN:
                _last_ms, _last_random = _last_ms + 1, secrets.randbelow(RANDOM_SPAN // 2)
        return _last_ms, _last_random


def _base36(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 36)
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
