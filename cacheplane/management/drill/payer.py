"""A payer: every operation of billing as one organization's, at an instant that its owner sets."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import transaction

from billing import accounts, charging, holds, price_tiers, storage
from billing.accounts import Balance, LockedAccount
from billing.charging import ChargedCall, Recharged
from billing.models import LedgerEntry, StorageSegment
from cacheplane.access.models import Organization

FAMILY, MODEL = "moonshot-v1", "moonshot-v1-8k"


def make_payer(*, recharged: str = "0", at: datetime, family: str = FAMILY, model: str = MODEL) -> Payer:
    organization = Organization.objects.create(name="Payer", tier_id="tier0")
    accounts.open_account(organization.id)
    payer = Payer(organization_id=organization.id, at=at, family=family, model=model)
    if Decimal(recharged):
        payer.recharge(recharged)
    return payer


@dataclass
class Payer:
    """Every operation of billing as one organization's call at `at`, each in a transaction of its own."""

    organization_id: str
    at: datetime
    family: str = FAMILY
    model: str = MODEL
    segments: dict[str, StorageSegment] = field(default_factory=dict)

    def pass_time(self, *, seconds: float = 0, minutes: float = 0, hours: float = 0) -> Payer:
        self.at += timedelta(seconds=seconds, minutes=minutes, hours=hours)
        return self

    def locked(self, reference: uuid.UUID | None = None) -> LockedAccount:
        return accounts.lock(self.organization_id, reference=reference)

    @property
    def balance(self) -> Balance:
        return accounts.balance(self.organization_id, self.at)

    @property
    def available(self) -> Decimal:
        return self.balance.available

    @property
    def exhaust_at(self) -> datetime | None:
        return self.balance.exhaust_at

    def entries(self, **conditions: Any) -> list[LedgerEntry]:
        return list(
            LedgerEntry.objects.filter(organization_id=self.organization_id, **conditions).order_by("id")
        )

    def spent(self, kind: str) -> Decimal:
        return sum((entry.amount for entry in self.entries(kind=kind)), Decimal(0))

    def recharge(
        self, amount: str | Decimal, *, purse: str = "cash", at: datetime | None = None, **options: Any
    ) -> Recharged:
        options.setdefault("idempotency_key", str(uuid.uuid4()))
        with transaction.atomic():
            return charging.recharge(
                organization_id=self.organization_id,
                amount=Decimal(amount),
                purse=purse,
                reason="test",
                operator="ada",
                at=at or self.at,
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
                self.locked(reference),
                reference=reference,
                kind=kind,
                subject="cache-x",
                amount=Decimal(amount),
                at=self.at,
            )
        return reference

    def void(self, reference: uuid.UUID) -> bool:
        with transaction.atomic():
            return holds.void(self.locked(reference), reference=reference, at=self.at)

    def settle_call(
        self,
        reference: uuid.UUID,
        *,
        prompt: int = 0,
        cached: int = 0,
        completion: int = 0,
        subject: str | None = None,
        call_id: str | None = None,
        model: str | None = None,
        started_at: datetime | None = None,
    ) -> ChargedCall:
        with transaction.atomic():
            return charging.charge_call(
                self.locked(reference),
                hold_reference=reference,
                call_id=call_id or f"call-{reference}",
                subject=subject,
                family=self.family,
                model=model or self.model,
                prompt_tokens=prompt,
                cached_tokens=cached,
                completion_tokens=completion,
                started_at=started_at or self.at,
                at=self.at,
                api_key_id="key-1",
                request_id="req-1",
            )

    def call(self, *, hold: str | Decimal = "1", **used: Any) -> ChargedCall:
        return self.settle_call(self.hold(hold), **used)

    def create(
        self, subject: str, *, tokens: int, seconds: float = 3600, key: str | None = None
    ) -> ChargedCall:
        """A creation as the control plane does it: hold at the request; charge and start storing on activation."""
        with transaction.atomic():
            account = self.locked()
            quote = charging.creation_quote(
                organization_id=self.organization_id,
                model=self.family,
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
                model=self.family,
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
            model=self.family,
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
