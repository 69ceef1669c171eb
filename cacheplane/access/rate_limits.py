"""Admission: concurrency, requests and tokens per minute, tokens per day: per organization, globally.

The organization's RateState row is the one place where this is decided, in one conditional UPDATE (in the
database's function `access_admit`) whose condition reads that row only: a statement that waited for the row
decides on what it finds then, not on what it saw before. The clock is the database's. Requests and tokens per
minute are leaky buckets: an idle organization may use a whole minute's worth at once, then the limit divided
by 60 each second. A day is a calendar day of UTC+8.

Lock order: the RateState row before anything of billing's. `finish_call` takes it as well, so call it before
you settle, or in a transaction of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import connection

from cacheplane.access.callers import Caller
from cacheplane.errors import LimitExceeded

DEAD_AFTER_SECONDS = 30
CONCURRENCY_RETRY_SECONDS = 1
"""When a call in flight will end cannot be known; a second is short against a call and long against a retry.
"""
FORGET_GATEWAY_AFTER_SECONDS = 3_600
ABANDONED_AFTER_SECONDS = 900
"""Above the longest call and all tries to settle it."""
ATTEMPTS_MAX = 3

# What `access_admit` decides by, for its explanation.
MINUTES = "greatest(0, extract(epoch FROM clock_timestamp() - levels_at)::float8) / 60"
REQUESTS_NOW = f"greatest(0, requests_level - {MINUTES} * %(requests_per_minute)s)"
TOKENS_NOW = f"greatest(0, tokens_level - {MINUTES} * %(tokens_per_minute)s)"
UTC8_NOW = "(clock_timestamp() AT TIME ZONE 'UTC' + interval '8 hours')"
TODAY = f"{UTC8_NOW}::date"
# `>=`: should the database's clock be set back over midnight, the later day goes on counting.
DAY_TOKENS_NOW = f"(CASE WHEN day >= {TODAY} THEN day_tokens ELSE 0 END)"

ADMIT_SQL = """
SELECT access_admit(%(organization_id)s, %(call_id)s::uuid, %(gateway_id)s::uuid, %(tokens)s, %(concurrency)s,
                    %(requests_per_minute)s, %(tokens_per_minute)s, %(tokens_per_day)s)
"""
USED_SQL = f"""
SELECT in_flight, {REQUESTS_NOW}, {TOKENS_NOW}, {DAY_TOKENS_NOW},
       extract(epoch FROM {TODAY} + interval '1 day' - {UTC8_NOW})::float8
FROM access_ratestate WHERE organization_id = %(organization_id)s
"""
OPEN_SQL = f"""
INSERT INTO access_ratestate (organization_id, levels_at, day)
VALUES (%(organization_id)s, clock_timestamp(), {TODAY}) ON CONFLICT DO NOTHING
"""

FINISH_SQL = "SELECT access_finish_call(%(call_id)s, %(tokens_used)s)"

HEARTBEAT_SQL = """
INSERT INTO access_gateway (id, host, pid, started_at, heartbeat_at)
VALUES (%(gateway_id)s, %(host)s, %(pid)s, clock_timestamp(), clock_timestamp())
ON CONFLICT (id) DO UPDATE SET heartbeat_at = clock_timestamp(), host = excluded.host, pid = excluded.pid
"""
# A gateway may die before its first heartbeat: then the call's own age counts. And a call may be lost by a gateway
# that lives: none runs for as long as ABANDONED_AFTER_SECONDS.
DEAD_CALL = """
(coalesce((SELECT g.heartbeat_at FROM access_gateway g WHERE g.id = c.gateway_id), c.started_at)
    < clock_timestamp() - make_interval(secs => %(dead_after_seconds)s)
 OR c.started_at < clock_timestamp() - make_interval(secs => %(abandoned_after_seconds)s))
"""
ORGANIZATIONS_WITH_DEAD_CALLS_SQL = f"""
SELECT DISTINCT c.organization_id FROM access_callinflight c WHERE {DEAD_CALL} ORDER BY 1
"""
# SKIP LOCKED: another reaper, or the call's own end, is at work on that row.
REAP_SQL = f"""
WITH ended AS (
    DELETE FROM access_callinflight WHERE id IN (
        SELECT c.id FROM access_callinflight c
        WHERE c.organization_id = %(organization_id)s AND {DEAD_CALL} FOR UPDATE SKIP LOCKED)
    RETURNING id, tokens_reserved, (started_at AT TIME ZONE 'UTC' + interval '8 hours')::date AS started_on
), total AS (
    SELECT count(*) AS calls, coalesce(sum(tokens_reserved), 0) AS tokens,
           coalesce(sum(tokens_reserved) FILTER (WHERE started_on = {TODAY}), 0) AS tokens_today
    FROM ended
), given_back AS (
    UPDATE access_ratestate AS r
    SET in_flight = r.in_flight - total.calls,
        tokens_level = greatest(0, r.tokens_level - total.tokens),
        day_tokens = CASE WHEN r.day = {TODAY} THEN greatest(0, r.day_tokens - total.tokens_today)
                          ELSE r.day_tokens END
    FROM total WHERE r.organization_id = %(organization_id)s AND total.calls > 0
)
SELECT id FROM ended
"""
FORGET_GATEWAYS_SQL = """
DELETE FROM access_gateway g
WHERE g.heartbeat_at < clock_timestamp() - make_interval(secs => %(forget_after_seconds)s)
  AND NOT EXISTS (SELECT 1 FROM access_callinflight c WHERE c.gateway_id = g.id)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapedCall:
    """A call whose gateway died: it holds no place any more."""

    call_id: UUID
    organization_id: str


def open_state(*, organization_id: str) -> None:
    """The organization's row, unless it is there. Admission makes a missing one by itself."""
    with connection.cursor() as cursor:
        cursor.execute(OPEN_SQL, {"organization_id": organization_id})


def admit_call(caller: Caller, *, call_id: UUID, gateway_id: UUID, tokens: int) -> None:
    """Take one place and `tokens` (prompt + max_tokens) for a call; LimitExceeded says which limit stands in
    the way.

    Runs in the caller's transaction; the call holds its place until `finish_call` or `reap`.
    """
    _admit(caller, tokens=tokens, call_id=call_id, gateway_id=gateway_id)


def admit_tokens(caller: Caller, *, tokens: int) -> None:
    """Count one request and `tokens` for work that holds no place, such as creating a cache object."""
    _admit(caller, tokens=tokens, call_id=None, gateway_id=None)


def finish_call(*, call_id: UUID, tokens_used: int) -> bool:
    """Free the call's place and give back the tokens it did not use. False: it was reaped before."""
    with connection.cursor() as cursor:
        cursor.execute(FINISH_SQL, {"call_id": call_id, "tokens_used": tokens_used})
        return cursor.fetchone() is not None


def heartbeat(*, gateway_id: UUID, host: str, pid: int) -> None:
    """This gateway lives. To be called several times within DEAD_AFTER_SECONDS."""
    with connection.cursor() as cursor:
        cursor.execute(HEARTBEAT_SQL, {"gateway_id": gateway_id, "host": host, "pid": pid})


def reap(*, dead_after_seconds: int = DEAD_AFTER_SECONDS) -> list[ReapedCall]:
    """End the calls of gateways whose heartbeat is older, and give back all they reserved: unproven use is
    free.

    Outside a transaction each organization is one statement and one commit. Safe to run twice at once.
    """
    reaped: list[ReapedCall] = []
    dead = {"dead_after_seconds": dead_after_seconds, "abandoned_after_seconds": ABANDONED_AFTER_SECONDS}
    with connection.cursor() as cursor:
        cursor.execute(ORGANIZATIONS_WITH_DEAD_CALLS_SQL, dead)
        for (organization_id,) in cursor.fetchall():
            cursor.execute(REAP_SQL, {**dead, "organization_id": organization_id})
            reaped += [
                ReapedCall(call_id=call_id, organization_id=organization_id)
                for (call_id,) in cursor.fetchall()
            ]
        cursor.execute(FORGET_GATEWAYS_SQL, {"forget_after_seconds": FORGET_GATEWAY_AFTER_SECONDS})
    return reaped


def limits_of(caller: Caller) -> dict[str, Any]:
    """The parameters of `access_admit` that say who asks and what its tier allows."""
    tier = caller.tier
    return {
        "organization_id": caller.organization_id,
        "concurrency": tier.concurrency,
        "requests_per_minute": tier.requests_per_minute,
        "tokens_per_minute": tier.tokens_per_minute,
        "tokens_per_day": tier.tokens_per_day,
    }


def _admit(caller: Caller, *, tokens: int, call_id: UUID | None, gateway_id: UUID | None) -> None:
    tier = caller.tier
    values = limits_of(caller) | {"tokens": tokens, "call_id": call_id, "gateway_id": gateway_id}
    _require_possible(caller, tokens=tokens)
    with connection.cursor() as cursor:
        for _ in range(ATTEMPTS_MAX):
            cursor.execute(ADMIT_SQL, values)
            if cursor.fetchone() is not None:
                return
            cursor.execute(USED_SQL, values)
            used = cursor.fetchone()
            if used is None:
                cursor.execute(OPEN_SQL, values)
            else:
                _refuse(caller, Used(*used), calls=0 if call_id is None else 1, tokens=tokens)
    # Room appeared between each refusal and its explanation: the organization is busy, whichever limit it
    # was.
    raise LimitExceeded(
        f"Your account {caller.account_label} request reached max concurrency: {tier.concurrency}, "
        f"please try again after {CONCURRENCY_RETRY_SECONDS} seconds",
        retry_after_seconds=CONCURRENCY_RETRY_SECONDS,
    )


@dataclass(frozen=True, slots=True)
class Used:
    """What an organization has used of its limits right now."""

    in_flight: int
    requests: float
    tokens: float
    day_tokens: int
    day_ends_in_seconds: float


def _require_possible(caller: Caller, *, tokens: int) -> None:
    """A call above a whole minute's or day's tokens can never pass: say so, and give no time to wait."""
    tier = caller.tier
    for name, unit, limit in (("TPM", "minute", tier.tokens_per_minute), ("TPD", "day", tier.tokens_per_day)):
        if limit is not None and tokens > limit:
            raise LimitExceeded(
                f"Your account {caller.account_label} request reached {name} rate limit, current:{tokens}, "
                f"limit:{limit}; this request alone counts more tokens than {tier.slug} has in a {unit}, so "
                "a retry cannot succeed: shorten the prompt, lower max_tokens or move to a higher tier"
            )


def _refuse(caller: Caller, used: Used, *, calls: int, tokens: int) -> None:
    """Raise for the first limit that is reached; return when none is any more."""
    tier, request = caller.tier, f"Your account {caller.account_label} request reached"
    if calls and used.in_flight + calls > tier.concurrency:
        _raise(f"{request} max concurrency: {tier.concurrency}", CONCURRENCY_RETRY_SECONDS)
    if used.requests + 1 > tier.requests_per_minute:
        missing = used.requests + 1 - tier.requests_per_minute
        _raise(f"{request} max request: {tier.requests_per_minute}", missing * 60 / tier.requests_per_minute)
    if used.tokens + tokens > tier.tokens_per_minute:
        missing = used.tokens + tokens - tier.tokens_per_minute
        _raise(
            f"{request} TPM rate limit, current:{math.ceil(used.tokens)}, limit:{tier.tokens_per_minute}",
            missing * 60 / tier.tokens_per_minute,
        )
    if tier.tokens_per_day is not None and used.day_tokens + tokens > tier.tokens_per_day:
        _raise(
            f"{request} TPD rate limit, current:{used.day_tokens}, limit:{tier.tokens_per_day}",
            used.day_ends_in_seconds,
        )


def _raise(sentence: str, wait_seconds: float) -> None:
    seconds = max(1, math.ceil(wait_seconds))
    raise LimitExceeded(f"{sentence}, please try again after {seconds} seconds", retry_after_seconds=seconds)
