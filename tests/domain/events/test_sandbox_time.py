"""A sandbox's objects end, and are told of, by its clock; what machines do about them keeps the machine's."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from billing import accounts, clock
from billing.models import LedgerEntry
from cacheplane.access import api_keys, organizations
from cacheplane.caching import lifecycle
from cacheplane.caching.models import ACTIVE, EXPIRED, CacheObject, IdempotencyKey
from cacheplane.engines.models import Engine
from cacheplane.events.models import Delivery, OutboxEvent
from tests.domain.events.conftest import recharge
from tests.domain.events.test_cache_objects import active, engine, pending, told
from workers import expiry
from workers import metering as metering_jobs
from workers import webhooks as jobs

pytestmark = pytest.mark.django_db

__all__ = ["engine"]
DAY = timedelta(days=1)


@pytest.fixture
def sandbox() -> Any:
    new = organizations.create(name="Rehearsal", tier_slug="tier5", operator="test", kind="sandbox")
    recharge(new.organization.id, "100")
    return api_keys.authenticate(new.issued_key.secret)


@pytest.fixture
def other() -> Any:
    new = organizations.create(name="Acme", tier_slug="tier5", operator="test")
    recharge(new.organization.id, "100")
    return api_keys.authenticate(new.issued_key.secret)


def set_forward(caller: Any, by: timedelta) -> None:
    """The clock alone, as if nobody had walked the jump: what is late must be found by the sweeps."""
    with transaction.atomic():
        account = accounts.lock(caller.organization_id)
        accounts.advance_clock(account, to=account.locked_at + by)


def status(row: CacheObject) -> str:
    return CacheObject.objects.get(id=row.id).status


def test_the_sweep_ends_what_is_over_by_its_own_clock_and_nothing_else(
    sandbox: Any, other: Any, engine: Engine
) -> None:
    theirs, ours = active(sandbox, engine), active(other, engine)
    expiry.expire()
    assert (status(theirs), status(ours)) == (ACTIVE, ACTIVE)
    set_forward(sandbox, DAY)
    expiry.expire()
    assert (status(theirs), status(ours)) == (EXPIRED, ACTIVE)


def test_an_object_that_is_over_by_its_clock_is_computed_no_more(sandbox: Any, other: Any) -> None:
    pending(sandbox)
    ours = pending(other)
    set_forward(sandbox, DAY)
    claim = lifecycle.claim_next(owner="w")
    assert claim is not None and claim.cache_id == ours.id
    assert lifecycle.claim_next(owner="w") is None


def test_a_failed_attempt_is_tried_again_in_machine_time(sandbox: Any) -> None:
    set_forward(sandbox, 10 * DAY)
    row = pending(sandbox)
    claim = lifecycle.claim_next(owner="w")
    assert claim is not None
    lease = CacheObject.objects.get(id=row.id).lease_until
    assert lease is not None and lease < clock.now() + DAY
    assert lifecycle.fail_attempt(claim, reason="the engine is away")
    retry = CacheObject.objects.get(id=row.id).retry_at
    assert retry is not None and retry < clock.now() + DAY
    CacheObject.objects.filter(id=row.id).update(attempts=3, lease_until=clock.now() - timedelta(seconds=1))
    lifecycle.fail_exhausted_attempts()
    assert status(row) == "error"


def test_an_idempotency_key_lives_a_day_of_the_machines(sandbox: Any) -> None:
    from cacheplane.caching import idempotency
    from cacheplane.caching.idempotency import Once

    set_forward(sandbox, 10 * DAY)
    once = Once(key="k", body_digest="0" * 64)
    with transaction.atomic():
        account = accounts.lock(sandbox.organization_id)
        idempotency.remember(sandbox.organization_id, once, cache_id="cache-1", at=account.machine_at)
    assert IdempotencyKey.objects.get().created_at < clock.now()
    set_forward(sandbox, 10 * DAY)
    assert idempotency.made_by(sandbox.organization_id, once, at=clock.now()) == "cache-1"


def test_a_reminder_comes_when_its_clock_is_near_the_end(
    listen: Callable[..., Any], sandbox: Any, engine: Engine
) -> None:
    listen(sandbox.organization_id, "cache.expiring", expiring_lead_seconds=300)
    row = active(sandbox, engine, ttl_seconds=86_400)
    jobs.watch_for_webhooks()
    assert told() == []
    set_forward(sandbox, DAY - timedelta(seconds=200))
    jobs.watch_for_webhooks()
    jobs.watch_for_webhooks()
    assert told() == ["cache.expiring"]
    assert timedelta() < row.expired_at - OutboxEvent.objects.get().at < timedelta(seconds=300)
    assert Delivery.objects.get().next_at - clock.now() < timedelta(minutes=1)


def test_a_voucher_lapses_by_its_clock(sandbox: Any) -> None:
    from decimal import Decimal

    from billing import charging

    at = clock.now_of(sandbox.organization_id)
    charging.recharge(
        organization_id=sandbox.organization_id,
        amount=Decimal(7),
        purse="voucher",
        reason="test",
        operator="test",
        idempotency_key="voucher",
        at=at,
        expires_at=at + DAY,
    )
    metering_jobs.settle_storage()
    assert not LedgerEntry.objects.filter(kind="lapse").exists()
    set_forward(sandbox, 2 * DAY)
    metering_jobs.settle_storage()
    assert LedgerEntry.objects.get(kind="lapse").amount == 7


def test_what_it_was_told_long_ago_by_its_clock_is_forgotten(
    listen: Callable[..., Any], sandbox: Any, engine: Engine
) -> None:
    set_forward(sandbox, 300 * DAY)
    listen(sandbox.organization_id)
    active(sandbox, engine)
    Delivery.objects.update(state="delivered", next_at=None)
    jobs.sweep_webhooks()
    assert OutboxEvent.objects.count() == 1
    set_forward(sandbox, 31 * DAY)
    jobs.sweep_webhooks()
    assert OutboxEvent.objects.count() == 0
