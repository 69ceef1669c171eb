"""What is told of cache objects: each change of a status, in its own transaction, and the end that comes near."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from billing import accounts, clock
from cacheplane.access import api_keys, organizations
from cacheplane.caching import lifecycle, reminders
from cacheplane.caching.models import CacheObject, new_cache_id
from cacheplane.engines.models import Engine
from cacheplane.events import endpoints
from cacheplane.events.models import ExpiringNotice, OutboxEvent, WebhookEndpoint
from cacheplane.kv.store import SavedKV
from tests.domain.events.conftest import recharge
from workers import expiry

pytestmark = pytest.mark.django_db

FAMILY, TOKENS = "moonshot-v1", 1_000
TEXT = "The lighthouse at Hoek was built in 1864."


@pytest.fixture
def engine(tmp_path: Any) -> Engine:
    return Engine.objects.create(
        name="test",
        kind="llamacpp",
        url="http://127.0.0.1:9",
        kv_dir=str(tmp_path),
        model="nano",
        build="test",
        fingerprint="f" * 64,
        total_slots=1,
        window_tokens=8192,
        persist=True,
    )


@pytest.fixture
def new_caller(db: None) -> Callable[[], Any]:
    def make() -> Any:
        new = organizations.create(name="Acme", tier_slug="tier5", operator="test")
        recharge(new.organization.id, "100")
        return api_keys.authenticate(new.issued_key.secret)

    return make


@pytest.fixture
def caller(new_caller: Callable[[], Any]) -> Any:
    return new_caller()


def pending(caller: Any, *, ttl_seconds: int = 3600) -> CacheObject:
    with transaction.atomic():
        account = accounts.lock(caller.organization_id)
        at, cache_id = account.locked_at, new_cache_id()
        hold = lifecycle.hold_creation(account, cache_id=cache_id, model=FAMILY, tokens=TOKENS, at=at)
        return CacheObject.objects.create(
            id=cache_id,
            organization_id=caller.organization_id,
            project_id=caller.project_id,
            api_key_id=caller.api_key_id,
            model=FAMILY,
            name="the handbook",
            messages=[{"role": "system", "content": TEXT}],
            message_count=1,
            digest="0" * 64,
            tokens=TOKENS,
            created_at=at,
            expired_at=at + timedelta(seconds=ttl_seconds),
            hold_reference=hold,
        )


def active(caller: Any, engine: Engine, *, ttl_seconds: int = 3600) -> CacheObject:
    row = pending(caller, ttl_seconds=ttl_seconds)
    claim = lifecycle.claim_next(owner="host-7:1:00000000")
    assert claim is not None and claim.cache_id == row.id
    saved = SavedKV(
        engine_id=engine.id,
        filename=f"{row.id}.1.kv",
        n_tokens=TOKENS,
        size_bytes=5,
        sha256="0" * 64,
        blake3="0" * 64,
        fingerprint=engine.fingerprint,
    )
    assert lifecycle.activate(claim, saved)
    return CacheObject.objects.get(id=row.id)


def told() -> list[str]:
    return list(OutboxEvent.objects.order_by("id").values_list("type", flat=True))


@pytest.fixture
def endpoint(listen: Callable[..., Any], caller: Any) -> WebhookEndpoint:
    return listen(caller.organization_id, expiring_lead_seconds=300).endpoint


def test_a_life_is_told(endpoint: WebhookEndpoint, caller: Any, engine: Engine) -> None:
    row = active(caller, engine)
    assert told() == ["cache.active"]
    CacheObject.objects.filter(id=row.id).update(expired_at=clock.now() - timedelta(milliseconds=1))
    expiry.expire()
    expiry.expire()
    assert told() == ["cache.active", "cache.expired"]
    lifecycle.extend(caller.organization_id, row.id, actor="ak-1", ttl_seconds=900)
    lifecycle.delete(caller.organization_id, row.id, actor="ak-1")
    assert told() == ["cache.active", "cache.expired", "cache.deleted"]
    data = OutboxEvent.objects.filter(type="cache.active").get().data
    assert data == {
        "id": row.id,
        "object": "context_cache_object",
        "model": FAMILY,
        "name": "the handbook",
        "tokens": TOKENS,
        "created_at": int(row.created_at.timestamp()),
        "expired_at": int(row.expired_at.timestamp()),
    }


def test_a_failure_is_told_without_an_engine_s_words(endpoint: WebhookEndpoint, caller: Any) -> None:
    pending(caller)
    claim = lifecycle.claim_next(owner="host-7:1:00000000")
    assert claim is not None
    lifecycle.fail_attempt(claim, reason=f"I cannot read: {TEXT}", is_final=True)
    event = OutboxEvent.objects.get()
    assert event.type == "cache.error"
    assert event.data["error"] == {"type": "precompute_failed"}
    assert "lighthouse" not in str(event.data) and "host-7" not in str(event.data)


def test_what_ends_by_an_operator_or_by_deletion_is_told_once(
    endpoint: WebhookEndpoint, caller: Any, engine: Engine
) -> None:
    one, two = active(caller, engine), active(caller, engine)
    OutboxEvent.objects.all().delete()
    lifecycle.expire_now(caller.organization_id, one.id, actor="ada")
    lifecycle.delete(caller.organization_id, two.id, actor="ak-1")
    assert list(OutboxEvent.objects.order_by("id").values_list("type", "subject")) == [
        ("cache.expired", one.id),
        ("cache.deleted", two.id),
    ]


def test_a_change_that_fails_late_is_neither_made_nor_told(
    endpoint: WebhookEndpoint, caller: Any, engine: Engine
) -> None:
    row = active(caller, engine)
    OutboxEvent.objects.all().delete()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        lifecycle.expire_now(caller.organization_id, row.id, actor="ada")
        raise ZeroDivisionError
    row.refresh_from_db()
    assert row.status == "active"
    assert told() == []


def test_nobody_is_told_of_somebody_else_s_objects(
    endpoint: WebhookEndpoint, new_caller: Callable[[], Any], engine: Engine
) -> None:
    stranger = new_caller()
    active(stranger, engine, ttl_seconds=60)
    assert reminders.tell_expiring() == 0
    assert told() == []


# --- The end comes near ----------------------------------------------------------------------------------------


def test_the_end_is_told_once_and_again_after_it_was_far(
    endpoint: WebhookEndpoint, caller: Any, engine: Engine
) -> None:
    row = active(caller, engine, ttl_seconds=301)
    OutboxEvent.objects.all().delete()
    assert reminders.tell_expiring() == 0
    lifecycle.extend(caller.organization_id, row.id, actor="ak-1", ttl_seconds=299)
    assert [reminders.tell_expiring() for _ in range(2)] == [1, 0]
    lifecycle.extend(caller.organization_id, row.id, actor="ak-1", ttl_seconds=290)
    assert reminders.tell_expiring() == 0, "it is still near"
    lifecycle.extend(caller.organization_id, row.id, actor="ak-1", ttl_seconds=900)
    assert reminders.tell_expiring() == 0
    lifecycle.extend(caller.organization_id, row.id, actor="ak-1", ttl_seconds=200)
    assert reminders.tell_expiring() == 1
    assert told() == ["cache.expiring"] * 2
    end = int(CacheObject.objects.get(id=row.id).expired_at.timestamp())
    assert OutboxEvent.objects.latest("id").data["expired_at"] == end
    lifecycle.delete(caller.organization_id, row.id, actor="ak-1")
    reminders.tell_expiring()
    assert not ExpiringNotice.objects.exists()


def test_each_endpoint_has_its_own_lead(listen: Callable[..., Any], caller: Any, engine: Engine) -> None:
    early = listen(caller.organization_id, "cache.expiring", expiring_lead_seconds=4000).endpoint
    listen(caller.organization_id, "cache.expiring", expiring_lead_seconds=60)
    listen(caller.organization_id, "cache.active")
    off = listen(caller.organization_id, "cache.expiring", expiring_lead_seconds=4000).endpoint
    endpoints.disable(off.id, reason="test", at=clock.now())
    active(caller, engine)
    assert reminders.tell_expiring() == 1
    assert ExpiringNotice.objects.get().endpoint_id == early.id


def test_an_end_for_want_of_money_is_told_too(endpoint: WebhookEndpoint, caller: Any, engine: Engine) -> None:
    from billing.models import BillingAccount

    row = active(caller, engine)
    assert reminders.tell_expiring() == 0
    soon = clock.now() + timedelta(seconds=100)
    BillingAccount.objects.filter(organization_id=caller.organization_id).update(exhaust_at=soon)
    assert reminders.tell_expiring() == 1
    assert OutboxEvent.objects.get(type="cache.expiring").data["expired_at"] == int(soon.timestamp())
    assert row.expired_at > soon


def test_what_is_pending_or_over_does_not_end_soon(
    endpoint: WebhookEndpoint, caller: Any, engine: Engine
) -> None:
    row = active(caller, engine, ttl_seconds=60)
    pending(caller, ttl_seconds=60)
    CacheObject.objects.filter(id=row.id).update(expired_at=clock.now() - timedelta(milliseconds=1))
    assert reminders.tell_expiring() == 0


def test_the_end_of_one_that_is_kept_while_it_earns_is_not_told(
    caller: Any, engine: Engine, listen: Callable[..., Any]
) -> None:
    listen(caller.organization_id, "cache.expiring", expiring_lead_seconds=600)
    row = active(caller, engine, ttl_seconds=300)
    CacheObject.objects.filter(id=row.id).update(
        ttl_policy="auto", cap_seconds=900, cap_at=clock.now() + timedelta(seconds=900)
    )
    assert reminders.tell_expiring() == 0
    CacheObject.objects.filter(id=row.id).update(ttl_policy="fixed")
    assert reminders.tell_expiring() == 1
