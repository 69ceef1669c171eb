"""Leases of engine slots: affinity and mutual exclusion across all processes, in one statement (the database's
function `engines_lease_slot`).

The control plane owns the slots. Nothing is ever queued in the engine: a call waits here, for a bounded time, and
then either has a slot to itself or is told that the engine is overloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import connection


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotLease:
    """A slot that is ours until `release` or the lease's end. `resident…` say what it held when it was taken."""

    slot_id: int
    engine_id: int
    index: int
    owner: str
    resident: UUID | None
    resident_organization: str
    fingerprint: str
    """The engine's, as it was registered when the lease was taken: what a KV state must match."""


LEASE_SQL = """
SELECT slot_id, slot_index, was_resident, was_organization, engine_fingerprint
FROM engines_lease_slot(%(engine_id)s, %(owner)s, %(seconds)s, %(wanted)s::uuid, %(prefill)s)
"""
RELEASE_SQL = (
    "SELECT engines_release_slot(%(slot_id)s, %(owner)s, %(resident)s::uuid, %(resident_organization)s)"
)


A_CALL = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
"""How the owner of a call's lease looks: the call's id."""


def _lease(
    *, engine_id: int, owner: str, seconds: float, wanted: UUID | None, prefill: bool
) -> SlotLease | None:
    with connection.cursor() as cursor:
        cursor.execute(
            LEASE_SQL,
            {
                "engine_id": engine_id,
                "owner": owner,
                "seconds": seconds,
                "wanted": wanted,
                "prefill": prefill,
            },
        )
        row = cursor.fetchone()
    return None if row is None else lease_from(row, engine_id=engine_id, owner=owner)


def lease_from(row: tuple[Any, ...], *, engine_id: int, owner: str) -> SlotLease:
    """From a row of the database's `engines_lease_slot`."""
    slot_id, index, resident, organization, fingerprint = row
    return SlotLease(
        slot_id=slot_id,
        engine_id=engine_id,
        index=index,
        owner=owner,
        resident=resident,
        resident_organization=organization,
        fingerprint=fingerprint,
    )


def lease_for_call(*, engine_id: int, owner: str, seconds: float, wanted: UUID | None) -> SlotLease | None:
    """Take a free slot, the one that already holds the KV state `wanted` first; None when all are taken."""
    return _lease(engine_id=engine_id, owner=owner, seconds=seconds, wanted=wanted, prefill=False)


def lease_for_prefill(*, engine_id: int, owner: str, seconds: float) -> SlotLease | None:
    """Take the precompute lane, so that prefills of one engine run one at a time; None when it is taken."""
    return _lease(engine_id=engine_id, owner=owner, seconds=seconds, wanted=None, prefill=True)


def want_lane(*, engine_id: int, owner: str, seconds: float) -> bool:
    """Have calls leave the precompute lane alone for a while, so that `owner` gets it when the call in it ends; False
    when a prefill has it, or somebody else has asked for it already."""
    with connection.cursor() as cursor:
        cursor.execute(
            """UPDATE engines_engineslot AS slot
                  SET wanted_until = clock_timestamp() + make_interval(secs => %(seconds)s), wanted_by = %(owner)s
                 FROM engines_engine AS engine
                WHERE engine.id = %(engine_id)s AND slot.engine_id = engine.id AND NOT engine.is_draining
                  AND slot.index = engine.total_slots - 1
                  AND (slot.lease_until IS NULL OR slot.lease_until < clock_timestamp()
                       OR slot.lease_owner ~ %(a_call)s)
                  AND (slot.wanted_until IS NULL OR slot.wanted_until < clock_timestamp()
                       OR slot.wanted_by = %(owner)s)""",
            {"engine_id": engine_id, "owner": owner, "seconds": seconds, "a_call": A_CALL},
        )
        return bool(cursor.rowcount)


def lease_holding(*, engine_id: int, resident: UUID, owner: str, seconds: float) -> SlotLease | None:
    """Take a free slot that holds `resident`; None when there is none, or when a call is using it."""
    with connection.cursor() as cursor:
        cursor.execute(
            """UPDATE engines_engineslot SET lease_owner = %s,
                      lease_until = clock_timestamp() + make_interval(secs => %s)
                WHERE id = (SELECT id FROM engines_engineslot
                             WHERE engine_id = %s AND resident = %s
                               AND (lease_until IS NULL OR lease_until < clock_timestamp())
                             ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
            RETURNING id, index, resident_organization,
                      (SELECT fingerprint FROM engines_engine WHERE id = engine_id)""",
            [owner, seconds, engine_id, resident],
        )
        row = cursor.fetchone()
    if row is None:
        return None
    return SlotLease(
        slot_id=row[0],
        engine_id=engine_id,
        index=row[1],
        owner=owner,
        resident=resident,
        resident_organization=row[2],
        fingerprint=row[3],
    )


def is_resident_anywhere(*, engine_id: int, resident: UUID) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT 1 FROM engines_engineslot WHERE engine_id = %s AND resident = %s LIMIT 1",
            [engine_id, resident],
        )
        return cursor.fetchone() is not None


def seize(*, engine_id: int, owner: str, seconds: float) -> None:
    """Take all slots of an engine, leased or not: whoever had one finds its lease gone when it looks."""
    with connection.cursor() as cursor:
        cursor.execute(
            """UPDATE engines_engineslot
                  SET lease_owner = %s, lease_until = clock_timestamp() + make_interval(secs => %s),
                      resident = NULL, resident_organization = %s
                WHERE engine_id = %s""",
            [owner, seconds, UNKNOWN_ORGANIZATION, engine_id],
        )


def renew(lease: SlotLease, *, seconds: float) -> bool:
    """Keep a lease; False when it is no longer ours."""
    with connection.cursor() as cursor:
        cursor.execute(
            """UPDATE engines_engineslot SET lease_until = clock_timestamp() + make_interval(secs => %s)
                WHERE id = %s AND lease_owner = %s""",
            [seconds, lease.slot_id, lease.owner],
        )
        return bool(cursor.rowcount)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A slot that is to be given back, and what it holds now; `forgets`: nothing that its engine's rows say is in
    its slots is there any more."""

    lease: SlotLease
    resident: UUID | None
    resident_organization: str
    forgets: bool = False


def release(lease: SlotLease, *, resident: UUID | None, resident_organization: str) -> None:
    """Give a slot back and say what it now holds. A lease that was lost meanwhile is left alone."""
    values: dict[str, Any] = {
        "slot_id": lease.slot_id,
        "owner": lease.owner,
        "resident": resident,
        "resident_organization": resident_organization,
    }
    with connection.cursor() as cursor:
        cursor.execute(RELEASE_SQL, values)


def give_back(given: Release) -> None:
    release(given.lease, resident=given.resident, resident_organization=given.resident_organization)
    if given.forgets:
        forget_residents(engine_id=given.lease.engine_id)


def release_owned_by(owners: list[str]) -> int:
    """Free the slots of calls whose process died. What they hold is unknown: an organization never matches it."""
    with connection.cursor() as cursor:
        cursor.execute(
            """UPDATE engines_engineslot
                  SET lease_owner = '', lease_until = NULL, resident = NULL, resident_organization = %s
                WHERE lease_owner = ANY(%s)""",
            [UNKNOWN_ORGANIZATION, owners],
        )
        return int(cursor.rowcount)


def forget_residents(*, engine_id: int) -> None:
    """The engine was seen to have lost what its slots held (a restart, a hit that was none)."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE engines_engineslot SET resident = NULL WHERE engine_id = %s", [engine_id])


UNKNOWN_ORGANIZATION = "?"
"""Marks a slot whose content nobody vouches for: the next caller erases it, whoever it is."""
