"""The one clock of billing: the database's, so that no worker's own clock decides what is owed.

Money and lifetimes follow the organization's clock, machines follow the machine's. An organization's clock is the
database's plus the offset of its billing account, which is nothing but for a sandbox. Leases, retries, limits,
deliveries and idempotency are the machine's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection


def now() -> datetime:
    """The database's clock, aware. Read it after the account is locked, once per operation."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        row = cursor.fetchone()
    instant: datetime = row[0]
    return instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at both clocks: the machine's, and how far the organization's is ahead of it."""

    machine: datetime
    offset: timedelta

    @property
    def at(self) -> datetime:
        """What the organization's clock shows."""
        return self.machine + self.offset


READ = """
SELECT clock_timestamp(),
       coalesce((SELECT clock_offset FROM billing_billingaccount WHERE organization_id = %s), interval '0')
"""


def read(organization_id: str) -> Reading:
    """For reads, and before a lock; under the lock there is `LockedAccount.locked_at`."""
    with connection.cursor() as cursor:
        cursor.execute(READ, [organization_id])
        machine, offset = cursor.fetchone()
    return Reading(machine=machine, offset=offset)


def now_of(organization_id: str) -> datetime:
    """What the organization's clock shows."""
    return read(organization_id).at
