"""A periodic job may be sent twice, or by two beats: one runs, the others leave at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

from django.db import connection

LOCK_SPACE = 0x0CAC
"""The first key of our advisory locks, so that they do not meet those of others in the same database."""


@contextmanager
def alone(name: str) -> Iterator[bool]:
    """True for one holder of `name` at a time, across all processes; ends with the connection at the latest."""
    key = crc32(name.encode()) & 0x7FFFFFFF
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", [LOCK_SPACE, key])
        row = cursor.fetchone()
    is_alone = bool(row and row[0])
    try:
        yield is_alone
    finally:
        if is_alone:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s, %s)", [LOCK_SPACE, key])
