"""The one clock of billing: the database's, so that no worker's own clock decides what is owed."""

from __future__ import annotations

from datetime import datetime

from django.db import connection


def now() -> datetime:
    """The database's clock, aware. Read it after the account is locked, once per operation."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        row = cursor.fetchone()
    instant: datetime = row[0]
    return instant
