"""A payer whose clock the test holds, and the audit after every test that moves money."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection, transaction

from billing import accounts, audit, charging, clock, holds, price_tiers, storage
from billing.accounts import Balance, LockedAccount
from billing.charging import ChargedCall, Recharged
from billing.models import LedgerEntry, StorageSegment
from cacheplane.access.models import Organization

SHANGHAI = timezone(timedelta(hours=8))
STORAGE_HALVED = datetime(2024, 8, 7, tzinfo=SHANGHAI)
"""From ¥10 to ¥5 per million token-minutes."""
NOON = datetime(2024, 7, 15, 12, tzinfo=UTC)
FAMILY, MODEL = "moonshot-v1", "moonshot-v1-8k"


BLOCKER = pytest.StashKey[Any]()
ROWS_OF_MIGRATIONS = pytest.StashKey[str]()


@pytest.fixture(scope="session", autouse=True)
def tables_can_be_flushed(
    request: pytest.FixtureRequest, django_db_setup: None, django_db_blocker: Any
) -> None:
    """Tests with transactions of their own are tidied up by TRUNCATE, which the ledger refuses to everybody."""
    request.config.stash[BLOCKER] = django_db_blocker
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        rows = json.loads(connection.creation.serialize_db_to_string())
        # Django's own come back by themselves, with other numbers.
        ours = [row for row in rows if row["model"].split(".")[0] not in ("contenttypes", "auth")]
        request.config.stash[ROWS_OF_MIGRATIONS] = json.dumps(ours)
        cursor.execute(
            "SELECT tgrelid::regclass, tgname FROM pg_trigger WHERE tgname LIKE 'billing%is_never_emptied'"
        )
        for table, trigger in cursor.fetchall():
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """The flush after such a test takes what migrations have put there (prices, tiers): it is put back.

    After the last test of all the test database is gone, and the connection is another database's again.
    """
    yield
    marker = item.get_closest_marker("django_db")
    if nextitem is not None and marker is not None and marker.kwargs.get("transaction"):
        with item.config.stash[BLOCKER].unblock():
            connection.creation.deserialize_db_from_string(item.config.stash[ROWS_OF_MIGRATIONS])
            connection.close()


@pytest.fixture
def audit_clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After the test every promise of billing is checked against all rows.

    What others registered is left out: here storage is opened for subjects that are no cache objects.
    """
    monkeypatch.setattr(audit, "_registered", {})
    yield
    assert audit.violations(clock.now()) == []


@pytest.fixture(autouse=True)
def _audited(audit_clean: None) -> None:
    pass


def make_payer(*, recharged: str = "0", at: datetime = NOON) -> Payer:
    organization = Organization.objects.create(name="Payer", tier_id="tier0")
    accounts.open_account(organization.id)
    payer = Payer(organization_id=organization.id, at=at)
    if Decimal(recharged):
        payer.recharge(recharged)
    return payer


@pytest.fixture
def new_payer(db: None) -> Callable[..., Payer]:
    return make_payer


@pytest.fixture
def payer(db: None) -> Payer:
    """An organization with ¥100 in cash, at noon of 2024-07-15, when storage is ¥10 per million token-minutes."""
    return make_payer(recharged="100")


@dataclass
class Payer:
    """Every operation of billing as one organization's call at `at`, each in a transaction of its own."""

    organization_id: str
    at: datetime
    segments: dict[str, StorageSegment] = field(default_factory=dict)

    def pass_time(self, *, seconds: float = 0, minutes: float = 0, hours: float = 0) -> Payer:
        self.at += timedelta(seconds=seconds, minutes=minutes, hours=hours)
        return self

    def locked(self) -> LockedAccount:
        return accounts.lock(self.organization_id)

    @property
    def balance(self) -> Balance:
        return accounts.balance(self.organization_id, self.at)

    @property
    def available(self) -> Decimal:
        return self.balance.available

    @property
    def exhaust_at(self) -> datetime | None:
        return self.balance.exhaust_at

    def entries(self, **conditions: object) -> list[LedgerEntry]:
        return list(
            LedgerEntry.objects.filter(organization_id=self.organization_id, **conditions).order_by("id")
        )

    def spent(self, kind: str) -> Decimal:
        return sum((entry.amount for entry in self.entries(kind=kind)), Decimal(0))

    def recharge(self, amount: str | Decimal, *, purse: str = "cash", **options: object) -> Recharged:
        options.setdefault("idempotency_key", str(uuid.uuid4()))
        with transaction.atomic():
            return charging.recharge(
                organization_id=self.organization_id,
                amount=Decimal(amount),
                purse=purse,
                reason="test",
                operator="ada",
                at=self.at,
                **options,
            )

    def voucher(self, amount: str | Decimal, *, hours: float | None = None) -> Recharged:
        expires_at = None if hours is None else self.at + timedelta(hours=hours)
        return self.recharge(amount, purse="voucher", expires_at=expires_at)

    def hold(
        self, amount: str | Decimal, *, kind: str = "call", reference: uuid.UUID | None = None
    ) -> uuid.UUID:
        reference = reference or uuid.uuid4()
        with transaction.atomic():
            holds.place(
                self.locked(),
                reference=reference,
                kind=kind,
                subject="cache-x",
                amount=Decimal(amount),
                at=self.at,
            )
        return reference

    def void(self, reference: uuid.UUID) -> bool:
        with transaction.atomic():
            return holds.void(self.locked(), reference=reference, at=self.at)

    def settle_call(
        self,
        reference: uuid.UUID,
        *,
        prompt: int = 0,
        cached: int = 0,
        completion: int = 0,
        subject: str | None = None,
        call_id: str | None = None,
        model: str = MODEL,
        started_at: datetime | None = None,
    ) -> ChargedCall:
        with transaction.atomic():
            return charging.charge_call(
                self.locked(),
                hold_reference=reference,
                call_id=call_id or f"call-{reference}",
                subject=subject,
                family=FAMILY,
                model=model,
                prompt_tokens=prompt,
                cached_tokens=cached,
                completion_tokens=completion,
                started_at=started_at or self.at,
                at=self.at,
                api_key_id="key-1",
                request_id="req-1",
            )

    def call(self, *, hold: str | Decimal = "1", **used: object) -> ChargedCall:
        return self.settle_call(self.hold(hold), **used)

    def create(
        self, subject: str, *, tokens: int, seconds: float = 3600, key: str | None = None
    ) -> ChargedCall:
        """A creation as the control plane does it: hold at the request; charge and start storing on activation."""
        with transaction.atomic():
            account = self.locked()
            quote = charging.creation_quote(
                organization_id=self.organization_id,
                model=FAMILY,
                tokens=tokens,
                currency=account.currency,
                at=self.at,
            )
            reference = uuid.uuid4()
            holds.place(
                account, reference=reference, kind="creation", subject=subject, amount=quote.total, at=self.at
            )
        with transaction.atomic():
            account = self.locked()
            charged = charging.charge_creation(
                account,
                hold_reference=reference,
                source_key=key or f"{subject}:1",
                subject=subject,
                model=FAMILY,
                tokens=tokens,
                at=self.at,
                api_key_id="key-1",
                request_id="req-1",
            )
            self._open(account, subject, tokens, seconds)
        return charged

    def store(self, subject: str, *, tokens: int, seconds: float = 3600) -> StorageSegment:
        with transaction.atomic():
            return self._open(self.locked(), subject, tokens, seconds)

    def _open(self, account: LockedAccount, subject: str, tokens: int, seconds: float) -> StorageSegment:
        self.segments[subject] = storage.open_segment(
            account,
            subject=subject,
            model=FAMILY,
            tokens=tokens,
            at=self.at,
            ends_at=self.at + timedelta(seconds=seconds),
        )
        return self.segments[subject]

    def extend(self, subject: str, *, seconds: float) -> StorageSegment:
        with transaction.atomic():
            ends_at = self.at + timedelta(seconds=seconds)
            return storage.extend(self.locked(), self.segments[subject], ends_at=ends_at, at=self.at)

    def close(self, subject: str, *, at: datetime | None = None) -> StorageSegment:
        with transaction.atomic():
            return storage.close(self.locked(), self.segments[subject], at=at or self.at)

    def settle(self) -> LockedAccount:
        with transaction.atomic():
            account = self.locked()
            storage.settle(account, at=self.at)
            return account

    def change_tier(
        self, tier: str, *, hours: float | None = None, then: str | None = None, at: datetime | None = None
    ) -> bool:
        """Now, or `at`: whose prices it pays from then on, for some hours or for good."""
        with transaction.atomic():
            account = self.locked()
            at = at or account.locked_at
            until = None if hours is None else at + timedelta(hours=hours)
            return price_tiers.change(account, tier=tier, at=at, until=until, then=then)

    def correct(self, entry: LedgerEntry) -> LedgerEntry:
        with transaction.atomic():
            return charging.correct(
                organization_id=self.organization_id,
                entry_id=entry.pk,
                reason="a mistake",
                operator="ada",
                at=self.at,
            )

    def is_stored(self, subject: str) -> bool:
        segment = StorageSegment.objects.get(pk=self.segments[subject].pk)
        return storage.is_open_at(segment, self.balance.exhaust_at, self.at)
