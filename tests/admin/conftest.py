"""Something in every table, made by the code that fills them in life; no engine is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
from django.contrib.auth import get_user_model
from django.db import transaction
from django.test import Client

from billing import accounts, charging, clock, invoicing
from billing.budgets import Budget
from billing.models import ExportPosition, ExportTally
from cacheplane.access import api_keys, gates, organizations, rate_limits
from cacheplane.access.models import FeatureGate
from cacheplane.access.organizations import NewOrganization
from cacheplane.caching import changes, idempotency, lifecycle, reminders, tags
from cacheplane.caching.idempotency import Once
from cacheplane.caching.models import CacheObject
from cacheplane.engines.models import Engine, EngineSlot, ModelFamily, ServedModel
from cacheplane.events import endpoints
from cacheplane.events.models import EVENT_TYPES, DeliveryAttempt
from cacheplane.kv.store import SavedKV

FAMILY = "moonshot-v1"
TOKENS = 1_000


@pytest.fixture(autouse=True)
def _no_caller_is_remembered():
    """Another test's callers live in this process's cache, and their organizations are gone."""
    api_keys._cache.clear()
    yield
    api_keys._cache.clear()


@pytest.fixture
def operator(client: Client, db: None) -> Client:
    client.force_login(get_user_model().objects.create_superuser("ada"))
    return client


@dataclass(frozen=True)
class PayingOrganization:
    """An organization with money and an engine, and what it takes to give it cache objects of every status."""

    engine: Engine
    new: NewOrganization

    @property
    def organization_id(self) -> str:
        return self.new.organization.id

    def pending(self, *, ttl_seconds: int = 3600) -> CacheObject:
        with transaction.atomic():
            account = accounts.lock(self.organization_id)
            at = clock.now()
            row = CacheObject(
                organization_id=self.organization_id,
                project_id=self.new.project.id,
                api_key_id=self.new.issued_key.key.id,
                model=FAMILY,
                name="the handbook",
                messages=[{"role": "system", "content": "A long text about lighthouses."}],
                message_count=1,
                digest="0" * 64,
                tokens=TOKENS,
                created_at=at,
                expired_at=at + timedelta(seconds=ttl_seconds),
            )
            row.hold_reference = lifecycle.hold_creation(
                account, cache_id=row.id, model=FAMILY, tokens=TOKENS, at=at
            )
            row.save(force_insert=True)
            lifecycle.note(row.id, row.organization_id, "created", at=at, actor=row.api_key_id, tokens=TOKENS)
        return row

    def active(self, *, ttl_seconds: int = 3600) -> CacheObject:
        row = self.pending(ttl_seconds=ttl_seconds)
        saved = SavedKV(
            engine_id=self.engine.id,
            filename=f"{row.id}.1.{uuid4().hex[:8]}.kv",
            n_tokens=TOKENS,
            size_bytes=TOKENS * 4096,
            sha256="0" * 64,
            blake3="1" * 64,
            fingerprint="2" * 64,
        )
        assert lifecycle.activate(self._claim(row), saved)
        row.refresh_from_db()
        return row

    def expired(self) -> CacheObject:
        row = self.active()
        lifecycle.expire_now(self.organization_id, row.id, actor="test")
        row.refresh_from_db()
        return row

    def failed(self) -> CacheObject:
        row = self.pending()
        assert lifecycle.fail_attempt(self._claim(row), reason="The engine said no.", is_final=True)
        row.refresh_from_db()
        return row

    def one_of_each(self) -> list[CacheObject]:
        return [self.expired(), self.failed(), self.active(), self.pending()]

    def _claim(self, row: CacheObject) -> lifecycle.Claim:
        """The claim of this object; older pending ones are claimed on the way and stay pending."""
        while claim := lifecycle.claim_next(owner="worker-1"):
            if claim.cache_id == row.id:
                return claim
        raise AssertionError("the object could not be claimed")


@pytest.fixture
def organization(db: None) -> PayingOrganization:
    return _make("Acme")


def _make(name: str) -> PayingOrganization:
    engine, _ = Engine.objects.get_or_create(
        name="default",
        defaults={
            "kind": "llamacpp",
            "url": "http://127.0.0.1:8090",
            "kv_dir": "/kv",
            "model": "/models/nano.gguf",
            "build": "b1",
            "fingerprint": "2" * 64,
            "total_slots": 2,
            "window_tokens": 131_072,
            "persist": True,
        },
    )
    for index in range(2):
        EngineSlot.objects.get_or_create(engine=engine, index=index)
    ModelFamily.objects.update_or_create(name=FAMILY, defaults={"engine": engine})
    ServedModel.objects.get_or_create(
        name=f"{FAMILY}-8k", defaults={"family_id": FAMILY, "window_tokens": 8_192}
    )
    new = organizations.create(name=name, tier_slug="tier5", operator="test")
    for purse in ("cash", "voucher"):
        charging.recharge(
            organization_id=new.organization.id,
            amount=Decimal("100"),
            purse=purse,
            reason="so that it can pay",
            operator="test",
            idempotency_key=f"test:{new.organization.id}:{purse}",
            at=clock.now(),
        )
    return PayingOrganization(engine=engine, new=new)


@pytest.fixture
def fill(db: None) -> Callable[[str], PayingOrganization]:
    """Makes an organization with something in every table that an organization has rows in."""
    return _fill


def _fill(name: str) -> PayingOrganization:
    made = _make(name)
    # Nothing is sent: the host is a private one, and so it is refused.
    endpoint = endpoints.create(
        made.organization_id,
        url="https://hooks.localhost/acme",
        events=EVENT_TYPES,
        expiring_lead_seconds=7 * 86_400,
        actor=made.new.issued_key.key.id,
    ).endpoint
    rows = made.one_of_each()
    reminders.tell_expiring()
    DeliveryAttempt.objects.create(
        delivery=endpoint.deliveries.latest("id"), at=clock.now(), duration_ms=12, http_status=500
    )
    with transaction.atomic():
        at = accounts.lock(made.organization_id).locked_at
        for row in rows:
            tags.point(made.organization_id, "acme", cache_id=row.id, at=at, actor="test")
        once = Once(key="acme", body_digest="0" * 64)
        idempotency.remember(made.organization_id, once, cache_id=rows[0].id, at=at)
    budget = Budget(amount=Decimal(1_000_000), per="month")
    changes.set_organization_budget(made.organization_id, budget, operator="test", reason="test")
    invoicing.make(made.organization_id, at=clock.now() + timedelta(days=40))
    position = ExportPosition.objects.create(sink=f"file:///srv/{name}")
    ExportTally.objects.create(
        position=position, meter="call", hour=at, currency="CNY", events=1, quantity=1, amount=Decimal("0.02")
    )
    gateway_id = uuid4()
    rate_limits.heartbeat(gateway_id=gateway_id, host="host-a", pid=7)
    caller = api_keys.authenticate(made.new.issued_key.secret)
    rate_limits.admit_call(caller, call_id=uuid4(), gateway_id=gateway_id, tokens=5)
    gates.open_for(
        made.new.organization,
        feature=FeatureGate.objects.get(slug="context_caching").slug,
        until=None,
        reason="guest",
        operator="test",
    )
    return made
