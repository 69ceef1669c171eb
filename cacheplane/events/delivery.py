"""Sending what the outbox holds: at least once, under a stable id, with no transaction open meanwhile.

A row that is due is claimed by moving its time on by a lease: a sender that dies is followed by the next, which sends
the same under the same id.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import aiohttp
import msgspec
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult
from django.conf import settings
from django.db import connection, transaction
from django.db.models import DateTimeField, ExpressionWrapper, F, Value
from yarl import URL

from billing import clock
from cacheplane.access import audit
from cacheplane.errors import InvalidRequest
from cacheplane.events import addresses, endpoints, signing
from cacheplane.events.addresses import AddressRefused
from cacheplane.events.models import (
    DELIVERED,
    FAILED,
    PENDING,
    Delivery,
    DeliveryAttempt,
    OutboxEvent,
    WebhookEndpoint,
)

log = structlog.get_logger(__name__)

ENDPOINTS_AT_ONCE, REQUESTS_PER_ENDPOINT = 32, 4
TIMEOUT_SECONDS = 10.0
"""For one request with all that belongs to it: the name, the connection, the answer's head."""
LEASE_SECONDS: int = settings.WEBHOOK_LEASE_SECONDS
"""After that a sender that has said nothing is taken for dead; longer than a request may take."""
RETRY_SECONDS = (5, 60, 300, 1_800, 7_200, 21_600, 86_400)
"""How long after each failed try the next one follows; after the last the delivery has failed."""
JITTER_PERCENT = 20
REST = timedelta(minutes=1)
"""An endpoint that fails twice without a success in between gets nothing for so long: others need the senders."""
DISABLE_AFTER = timedelta(days=3)
"""An endpoint that has only failed for so long is disabled."""
KEPT = timedelta(days=30)
SWEEP_ROWS = 1_000
GONE = 410
USER_AGENT = "cacheplane-webhooks/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to send one delivery. It holds while the row's fence is still `fence`."""

    delivery_id: str
    endpoint_id: str
    fence: int
    tries: int
    url: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a request: a status, or the reason why there is none."""

    duration_ms: int
    http_status: int | None = None
    error: str = ""

    @property
    def is_success(self) -> bool:
        return self.http_status is not None and 200 <= self.http_status < 300


def deliver_due() -> int:
    """Send what is due, one batch; how many requests were made."""
    at = clock.now()
    claims = claim_due(at=at)
    if claims:
        outcomes = asyncio.run(_send_all(claims))
        for claim, outcome in zip(claims, outcomes, strict=True):
            report(claim, outcome)
    return len(claims)


# --- Claiming --------------------------------------------------------------------------------------------------

CLAIM = """
WITH due AS (
    SELECT endpoint_id, min(next_at) AS first FROM events_delivery
     WHERE state = 'pending' AND next_at <= %(at)s GROUP BY endpoint_id ORDER BY first LIMIT %(endpoints)s
), chosen AS (
    SELECT one.id FROM due, LATERAL (
        SELECT id FROM events_delivery
         WHERE endpoint_id = due.endpoint_id AND state = 'pending' AND next_at <= %(at)s
         ORDER BY next_at LIMIT %(each)s FOR UPDATE SKIP LOCKED) AS one
)
UPDATE events_delivery AS delivery SET next_at = %(until)s, tries = tries + 1, fence = fence + 1
  FROM chosen WHERE delivery.id = chosen.id
RETURNING delivery.id, delivery.fence, delivery.tries
"""
"""A few of each endpoint, so that one that is slow, or has much to be told, does not keep the others waiting."""


def claim_due(*, at: datetime) -> list[Claim]:
    values: dict[str, datetime | int] = {
        "at": at,
        "until": at + timedelta(seconds=LEASE_SECONDS),
        "endpoints": ENDPOINTS_AT_ONCE,
        "each": REQUESTS_PER_ENDPOINT,
    }
    with connection.cursor() as cursor:
        cursor.execute(CLAIM, values)
        claimed = {id_: (fence, tries) for id_, fence, tries in cursor.fetchall()}
    if not claimed:
        return []
    rows = Delivery.objects.filter(id__in=claimed).select_related("event", "endpoint").order_by("id")
    return [_claim(row, *claimed[row.id], at=at) for row in rows]


def _claim(row: Delivery, fence: int, tries: int, *, at: datetime) -> Claim:
    body = body_of(row.event)
    proof = signing.headers(
        event_id=row.event_id,
        body=body,
        endpoint_id=row.endpoint_id,
        salts=row.endpoint.salts_at(at),
        at=at,
    )
    return Claim(
        delivery_id=row.id,
        endpoint_id=row.endpoint_id,
        fence=fence,
        tries=tries,
        url=row.endpoint.url,
        headers={"Content-Type": "application/json", "User-Agent": USER_AGENT, **proof},
        body=body,
    )


def body_of(event: OutboxEvent) -> bytes:
    return msgspec.json.encode({"type": event.type, "timestamp": event.at.isoformat(), "data": event.data})


# --- Sending ---------------------------------------------------------------------------------------------------


class _Checked(AbstractResolver):
    """Answers with the addresses that were checked, whatever is asked."""

    def __init__(self, checked: list[str]) -> None:
        self._checked = checked

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._checked
        ]

    async def close(self) -> None:
        pass


async def _send_all(claims: list[Claim]) -> list[Outcome]:
    # A resolver that hangs is left behind: nobody waits for its thread.
    names = ThreadPoolExecutor(len(claims), thread_name_prefix="webhook-names")
    try:
        return await asyncio.gather(*(send(claim, names=names) for claim in claims))
    finally:
        names.shutdown(wait=False, cancel_futures=True)


async def send(claim: Claim, *, names: ThreadPoolExecutor) -> Outcome:
    """One request; whatever goes wrong is an outcome. A redirect is an answer that is no success."""
    started = time.monotonic()
    status, error = None, ""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            status = await _post(claim, names=names)
    except TimeoutError:
        error = "timeout"
    except (AddressRefused, InvalidRequest):
        error = "address_refused"
    except (socket.gaierror, UnicodeError):
        error = "name_not_found"
    except (aiohttp.ClientError, OSError) as failure:
        error = type(failure).__name__
    return Outcome(duration_ms=int((time.monotonic() - started) * 1000), http_status=status, error=error[:64])


async def _post(claim: Claim, *, names: ThreadPoolExecutor) -> int:
    url = URL(addresses.checked_url(claim.url))
    host, port = url.raw_host, url.port
    assert host is not None and port is not None
    checked = await asyncio.get_running_loop().run_in_executor(names, addresses.resolve, host, port)
    connector = aiohttp.TCPConnector(resolver=_Checked(checked), use_dns_cache=False, force_close=True)
    async with (
        aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, auto_decompress=False
        ) as session,
        session.post(url, data=claim.body, headers=claim.headers, allow_redirects=False) as answer,
    ):
        # The body is not read: the connection is closed with what is left of it.
        answer.close()
        return answer.status


# --- Writing down ----------------------------------------------------------------------------------------------


def report(claim: Claim, outcome: Outcome) -> None:
    """What came of a claim; nothing when the claim was lost meanwhile."""
    with transaction.atomic():
        # The endpoint first, everywhere: who disables or deletes one locks it before its deliveries.
        failing = _mark_endpoint(claim, outcome)
        at = clock.now()
        claimed = Delivery.objects.filter(id=claim.delivery_id, fence=claim.fence, state=PENDING)
        if not claimed.update(**_after(claim, outcome, at=at)):
            return
        DeliveryAttempt.objects.create(
            delivery_id=claim.delivery_id,
            at=at,
            duration_ms=outcome.duration_ms,
            http_status=outcome.http_status,
            error=outcome.error,
        )
        if failing is not None:
            _give_rest(claim, failing, at=at)
            _disable_when_hopeless(failing, outcome, at=at)


def _mark_endpoint(claim: Claim, outcome: Outcome) -> WebhookEndpoint | None:
    """Write down since when it fails; the endpoint as it was before, locked, when it failed now."""
    rows = WebhookEndpoint.objects.filter(id=claim.endpoint_id)
    if outcome.is_success:
        rows.filter(failing_since__isnull=False).update(failing_since=None)
        return None
    before = rows.select_for_update(no_key=True).first()
    rows.filter(failing_since__isnull=True).update(failing_since=clock.now())
    return before


def _give_rest(claim: Claim, failing: WebhookEndpoint, *, at: datetime) -> None:
    if failing.failing_since is not None:
        others = failing.deliveries.filter(state=PENDING, next_at__lt=at + REST)
        others.exclude(id=claim.delivery_id).update(next_at=at + REST)


def _after(claim: Claim, outcome: Outcome, *, at: datetime) -> dict[str, Any]:
    if outcome.is_success:
        return {"state": DELIVERED, "delivered_at": at, "next_at": None}
    if claim.tries > len(RETRY_SECONDS):
        return {"state": FAILED, "next_at": None}
    wait = RETRY_SECONDS[claim.tries - 1]
    jitter_ms = random.randint(0, wait * 10 * JITTER_PERCENT)
    return {"next_at": at + timedelta(seconds=wait, milliseconds=jitter_ms)}


def _disable_when_hopeless(row: WebhookEndpoint, outcome: Outcome, *, at: datetime) -> None:
    if outcome.http_status == GONE:
        reason = "it answered 410: gone"
    elif row.failing_since is not None and row.failing_since <= at - DISABLE_AFTER:
        reason = f"it has only failed for {DISABLE_AFTER.days} days"
    else:
        return
    if endpoints.disable(row.id, reason=reason, at=at):
        log.warning("webhook_disabled", endpoint_id=row.id, reason=reason)
        audit.record(
            operator="system",
            action="webhook_endpoint.disable",
            subject=row.id,
            organization_id=row.organization_id,
            reason=reason,
        )


# --- Sweeping --------------------------------------------------------------------------------------------------


def sweep(*, at: datetime) -> int:
    """Forget what was told long ago, by the clock of who was told, with its deliveries; how many events."""
    offset = F("organization__billing_account__clock_offset")
    long_ago = ExpressionWrapper(Value(at - KEPT) + offset, output_field=DateTimeField())
    old = OutboxEvent.objects.filter(at__lt=long_ago).exclude(deliveries__state=PENDING)
    ids = list(old.order_by("at").values_list("id", flat=True)[:SWEEP_ROWS])
    OutboxEvent.objects.filter(id__in=ids).delete()
    return len(ids)
