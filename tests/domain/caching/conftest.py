"""Cache objects as the control plane makes them, without an engine: bytes are said to have been saved. And time that
passes for one object, by moving all that it knows of time back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import transaction
from django.db.models import F, Max, Sum

from billing import accounts, audit, charging, clock
from billing.budgets import Budget
from billing.models import BillingAccount, LedgerEntry, StorageSegment
from cacheplane.access import api_keys, organizations
from cacheplane.access.callers import Caller
from cacheplane.caching import budgets, changes, lifecycle, uses
from cacheplane.caching.changes import Change
from cacheplane.caching.lifetimes import Auto, Fixed, Lifetime
from cacheplane.caching.models import CacheObject, CacheObjectEvent, new_cache_id
from cacheplane.engines.models import Engine
from cacheplane.kv.store import SavedKV

FAMILY, TOKENS = "moonshot-v1", 1_000
CREATION, STORAGE = Decimal("0.024"), Decimal("0.005")
"""Of 1,000 tokens, at the first prices: a creation, and a minute."""
HOUR = Fixed(ttl_seconds=3600)


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


@dataclass
class Owner:
    """A caller, and what happens to its objects."""

    caller: Caller
    engine: Engine
    saved: list[str] = field(default_factory=list)

    @property
    def organization_id(self) -> str:
        return self.caller.organization_id

    def recharge(self, amount: str) -> None:
        at = clock.now()
        charging.recharge(
            organization_id=self.organization_id,
            amount=Decimal(amount),
            purse="cash",
            reason="test",
            operator="test",
            idempotency_key=f"test:{self.organization_id}:{at.isoformat()}",
            at=at,
        )

    def pending(
        self,
        lifetime: Lifetime = HOUR,
        *,
        budget: Budget | None = None,
        model: str = FAMILY,
    ) -> CacheObject:
        """As a creation leaves one; also one that waits for its schedule."""
        with transaction.atomic():
            account = accounts.lock(self.organization_id)
            at = account.locked_at
            until = lifetime.until(at)
            row = CacheObject(
                id=new_cache_id(),
                organization_id=self.organization_id,
                project_id=self.caller.project_id,
                api_key_id=self.caller.api_key_id,
                model=model,
                messages=[{"role": "system", "content": "x"}],
                message_count=1,
                digest="0" * 64,
                tokens=TOKENS,
                created_at=at,
                expired_at=until or at,
                budget_amount=budget.amount if budget else None,
                budget_per=budget.per if budget else "",
                **lifetime.columns(at),
            )
            budgets.require_creation(account, row, at=at)
            if until is not None:
                row.hold_reference = lifecycle.hold_creation(
                    account, cache_id=row.id, model=model, tokens=TOKENS, at=at
                )
            row.save(force_insert=True)
            if until is None:
                lifecycle.keep_closed(row, at=at)
        return self.read(row)

    def compute(self, row: CacheObject) -> CacheObject:
        """A worker takes it, and its bytes are saved."""
        claim = lifecycle.claim_next(owner="test")
        assert claim is not None and claim.cache_id == row.id
        self.saved.append(f"{row.id}.{claim.fence}.kv")
        saved = SavedKV(
            engine_id=self.engine.id,
            filename=self.saved[-1],
            n_tokens=TOKENS,
            size_bytes=5,
            sha256="0" * 64,
            blake3="0" * 64,
            fingerprint="f" * 64,
        )
        lifecycle.activate(claim, saved)
        return self.read(row)

    def active(self, lifetime: Lifetime = HOUR, **about: Any) -> CacheObject:
        return self.compute(self.pending(lifetime, **about))

    def read(self, row: CacheObject) -> CacheObject:
        return CacheObject.objects.with_what_decides_status().get(id=row.id)

    def status(self, row: CacheObject) -> str:
        return self.read(row).status_at(clock.now())

    def change(self, row: CacheObject, **wanted: Any) -> CacheObject:
        return changes.change(
            self.organization_id, row.id, Change(**wanted), actor="ak-1", cached_tokens_max=None
        )

    def call(self, row: CacheObject, *, is_hit: bool = True, reset_seconds: int | None = None) -> CacheObject:
        """The settlement of a call, as far as the object's end goes."""
        with transaction.atomic():
            account = accounts.lock(self.organization_id)
            uses.use(
                account,
                lifecycle.locked(self.organization_id, row.id),
                is_hit=is_hit,
                reset_seconds=reset_seconds,
                at=account.locked_at,
                actor="ak-1",
                cached_tokens_max=None,
            )
        return self.read(row)

    def pass_time(self, row: CacheObject, *, seconds: float = 0, minutes: float = 0) -> CacheObject:
        """What it knows of time lies further back, with its storage."""
        by = timedelta(seconds=seconds, minutes=minutes)
        times = ("expired_at", "created_at", "activated_at", "wanted_until", "used_at", "cap_at", "reopen_at")
        CacheObject.objects.filter(id=row.id).update(**{name: F(name) - by for name in times})
        stored = StorageSegment.objects.filter(organization_id=self.organization_id, closed_at__isnull=True)
        stored.filter(subject=row.id).update(started_at=F("started_at") - by, ends_at=F("ends_at") - by)
        BillingAccount.objects.filter(organization_id=self.organization_id).update(
            committed_until=stored.aggregate(last=Max("ends_at"))["last"], exhaust_at=F("exhaust_at") - by
        )
        return self.read(row)

    def events(self, row: CacheObject, kind: str | None = None) -> list[dict[str, Any]]:
        """Details, in order; of one kind if it is said."""
        found = CacheObjectEvent.objects.filter(cache_id=row.id).order_by("at", "id")
        return [event.detail for event in found if kind is None or event.kind == kind]

    def kinds(self, row: CacheObject) -> list[str]:
        found = CacheObjectEvent.objects.filter(cache_id=row.id).order_by("at", "id")
        return list(found.values_list("kind", flat=True))

    def spent(self, *kinds: str) -> Decimal:
        entries = LedgerEntry.objects.filter(organization_id=self.organization_id)
        return entries.filter(kind__in=kinds).aggregate(sum=Sum("amount"))["sum"] or Decimal(0)

    def lived(self, row: CacheObject) -> timedelta:
        """From the beginning of its storage to its planned end."""
        read = self.read(row)
        assert read.segment is not None
        return read.expired_at - read.segment.started_at


@pytest.fixture
def new_owner(db: None, engine: Engine) -> Callable[..., Owner]:
    def make(*, money: str = "100", tier: str = "tier5") -> Owner:
        new = organizations.create(name="Acme", tier_slug=tier, operator="test")
        made = Owner(caller=api_keys.authenticate(new.issued_key.secret), engine=engine)
        if Decimal(money):
            made.recharge(money)
        return made

    return make


@pytest.fixture
def owner(new_owner: Callable[..., Owner]) -> Owner:
    return new_owner()


@pytest.fixture
def auto() -> Auto:
    return Auto(cap_seconds=86_400)


@pytest.fixture
def books(db: None) -> Iterator[None]:
    """After the test the invariants hold."""
    yield
    assert audit.violations(clock.now()) == []


def at_least(found: datetime, wanted: datetime) -> bool:
    """Equal but for the moment that the test itself took."""
    return timedelta(0) <= found - wanted < timedelta(seconds=5)
