"""Operations drawn at random, over three weeks around a price change; the audit looks in between and at the end."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import transaction

from billing import audit, clock, holds
from billing.errors import BillingError
from billing.models import Hold, LedgerEntry

pytestmark = pytest.mark.django_db

START = datetime(2024, 8, 6, 12, tzinfo=UTC)
"""Four hours before storage becomes cheaper."""
STEPS = 1200
STEPS_BETWEEN_AUDITS = 60


class NothingThere(Exception):
    """Drawn too early: there is no hold, or no object, to do it to."""


class Wanderer:
    """One payer that does something at random at each step, allowed or not."""

    def __init__(self, payer: Any, rng: random.Random, number: int) -> None:
        self.payer, self.rng, self.number = payer, rng, number
        self.references: list[Any] = []
        self.subjects: list[str] = []
        self.done: Counter[str] = Counter()

    def step(self) -> None:
        self.payer.pass_time(
            seconds=self.rng.choice([0, 0.000001, 1, 59, 60, 61, 600, self.rng.random() * 3000])
        )
        name = self.rng.choice(CHOICES)
        try:
            getattr(self, f"do_{name}")()
            self.done[name] += 1
        except (BillingError, NothingThere) as error:
            self.done[f"{name}: {type(error).__name__}"] += 1
        balance = self.payer.balance
        assert balance.available >= 0
        assert balance.cash + balance.voucher == balance.held + balance.owed + balance.available

    def amount(self, most: int) -> Decimal:
        return Decimal(self.rng.randrange(1, most * 1000)) / 1000

    def one_of(self, latest: list[Any]) -> Any:
        if not latest:
            raise NothingThere
        return self.rng.choice(latest)

    def do_recharge(self) -> None:
        self.payer.recharge(self.amount(20), idempotency_key=f"{self.number}:{self.rng.randrange(10_000)}")

    def do_voucher(self) -> None:
        self.payer.voucher(self.amount(10), hours=self.rng.choice([None, 0.01, 0.5, 1, 6]))

    def do_hold(self) -> None:
        self.references.append(self.payer.hold(self.amount(3)))

    def do_grow(self) -> None:
        with transaction.atomic():
            holds.extend(
                self.payer.locked(),
                reference=self.one_of(self.references[-3:]),
                kind="call",
                subject="",
                amount=self.amount(2),
                at=self.payer.at,
            )

    def do_void(self) -> None:
        self.payer.void(self.one_of(self.references[-5:]))

    def do_settle_call(self) -> None:
        self.payer.settle_call(
            self.one_of(self.references[-5:]),
            prompt=self.rng.randrange(1000, 120_000),
            cached=self.rng.randrange(1000),
            completion=self.rng.randrange(200),
            subject=self.rng.choice([None, "cache-x"]),
            started_at=self.payer.at - timedelta(seconds=self.rng.randrange(30)),
        )

    def do_create(self) -> None:
        subject = f"cache-{self.number}-{len(self.subjects)}"
        self.payer.create(subject, tokens=self.rng.randrange(1, 40_000), seconds=self.rng.randrange(1, 7200))
        self.subjects.append(subject)

    def do_extend(self) -> None:
        self.payer.extend(self.one_of(self.subjects[-4:]), seconds=self.rng.randrange(-100, 7200))

    def do_close(self) -> None:
        self.payer.close(self.one_of(self.subjects[-4:]))

    def do_lose(self) -> None:
        at = self.payer.at - timedelta(seconds=self.rng.randrange(200))
        self.payer.close(self.one_of(self.subjects[-4:]), at=at)

    def do_settle(self) -> None:
        self.payer.settle()

    def do_correct(self) -> None:
        entries = LedgerEntry.objects.filter(organization_id=self.payer.organization_id)
        self.payer.correct(self.rng.choice(entries.order_by("-id")[:10]))


CHOICES = [
    *["hold"] * 5,
    *["settle_call"] * 5,
    *["create"] * 4,
    *["extend"] * 3,
    *["close", "settle", "recharge"] * 2,
    *["void", "grow", "lose", "voucher", "correct"],
]


def wander(payers: list[Any], *, seed: int, steps: int) -> Counter[str]:
    """Returns how often each operation was done, or refused and why."""
    rng = random.Random(seed)
    wanderers = [Wanderer(payer, rng, number) for number, payer in enumerate(payers)]
    for step in range(steps):
        rng.choice(wanderers).step()
        if step % STEPS_BETWEEN_AUDITS == 0:
            assert audit.violations(clock.now()) == [], f"seed {seed}, step {step}"
    return sum((wanderer.done for wanderer in wanderers), Counter())


def test_whatever_is_done_in_whatever_order_the_promises_hold(new_payer):
    payers = [new_payer(recharged="5", at=START) for _ in range(3)]
    done = wander(payers, seed=20240806, steps=STEPS)
    print(f"\n{STEPS} operations, seed 20240806: {dict(done.most_common())}")
    for name in set(CHOICES):
        assert done[name] > 0, f"no {name} was ever allowed"
    assert done["hold: InsufficientFunds"] > 0
    assert LedgerEntry.objects.filter(kind="lapse").exists()
    for payer in payers:
        payer.pass_time(hours=100).settle()
        for reference in Hold.objects.filter(organization_id=payer.organization_id, state="open").values_list(
            "reference", flat=True
        ):
            payer.void(reference)
        assert payer.balance.held == 0
