"""Payers that do something at random at each step, allowed or not: all that money can do, in any order.

What is drawn follows from the seed, and from what came of it so far. A wanderer of the present lives by the clock and
goes the short way with its calls where that is taken; one of the past or of the future has a clock of its own, which
jumps.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

from django.db import transaction

from billing import charging, holds, money
from billing.charging import ChargedCall, Recharged
from billing.errors import BillingError
from billing.models import Hold, LedgerEntry
from cacheplane.management.drill import calls
from cacheplane.management.drill.calls import Call
from cacheplane.management.drill.payer import Payer

T = TypeVar("T")

STEPS_BETWEEN_BALANCES = 20
MESSAGES_KEPT = 20
JUMPS_SECONDS = (0, 0.000001, 1, 59, 60, 61, 600)


class NothingThere(Exception):
    """Drawn too early: there is no hold, no object or no message to do it to."""


class BrokenPromise(AssertionError):
    """What must never be seen was seen."""


@dataclass(slots=True, kw_only=True)
class Message:
    """Something that was told and took effect; `again` tells it once more and gives what it answers."""

    again: Callable[[], Any]
    answer: Any


@dataclass(kw_only=True)
class Wanderer:
    """One payer with a clock that jumps. `done` counts each operation, and each refusal with its reason."""

    payer: Payer
    rng: random.Random
    name: str
    done: Counter[str] = field(default_factory=Counter)
    references: deque[uuid.UUID] = field(default_factory=lambda: deque(maxlen=8))
    subjects: deque[str] = field(default_factory=lambda: deque(maxlen=4))
    messages: deque[Message] = field(default_factory=lambda: deque(maxlen=MESSAGES_KEPT))
    steps: int = 0

    @property
    def choices(self) -> Sequence[str]:
        return EVERYTHING

    def step(self) -> None:
        self.steps += 1
        self.pass_time()
        name = self.rng.choice(self.choices)
        try:
            getattr(self, f"do_{name}")()
            self.done[name] += 1
        except (BillingError, NothingThere) as error:
            self.done[f"{name}: {type(error).__name__}"] += 1
        if self.steps % STEPS_BETWEEN_BALANCES == 0:
            self.check_balance()

    def pass_time(self) -> None:
        self.payer.pass_time(seconds=self.rng.choice([*JUMPS_SECONDS, self.rng.random() * 3000]))

    def check_balance(self) -> None:
        balance = self.payer.balance
        adds_up = balance.cash + balance.voucher == balance.held + balance.owed + balance.available
        if balance.available < 0 or not adds_up:
            raise BrokenPromise(f"{self.name}, step {self.steps}: {balance}")

    def settle_everything(self) -> None:
        """Let all that is open come to its end: what is left is neither held nor owed."""
        self.pass_time()
        self.payer.pass_time(hours=100).settle()
        for reference in holds_of(self.payer):
            self.payer.void(reference)
        if self.payer.balance.held or self.payer.balance.owed:
            raise BrokenPromise(f"{self.name}: {self.payer.balance} after everything has ended")

    # --- What is drawn ---

    def amount(self, most: int) -> Decimal:
        return Decimal(self.rng.randrange(1, most * 1000)) / 1000

    def one_of(self, latest: Sequence[T]) -> T:
        if not latest:
            raise NothingThere
        return self.rng.choice(latest)

    def reference(self) -> uuid.UUID:
        return uuid.UUID(int=self.rng.getrandbits(128), version=4)

    def remember(self, again: Callable[[], T]) -> T:
        answer = again()
        self.messages.append(Message(again=again, answer=answer))
        return answer

    # --- Paying in ---

    def do_recharge(self) -> None:
        self._recharge(self.amount(20), purse="cash")

    def do_voucher(self) -> None:
        hours = self.rng.choice([None, 0.01, 0.5, 1, 6])
        until = {} if hours is None else {"expires_at": self.payer.at + timedelta(hours=hours)}
        self._recharge(self.amount(10), purse="voucher", **until)

    def _recharge(self, amount: Decimal, **options: Any) -> None:
        key = f"{self.name}:{self.reference()}"
        at = self.payer.at
        self.remember(lambda: self.payer.recharge(amount, idempotency_key=key, at=at, **options))

    def do_correct(self) -> None:
        entries = LedgerEntry.objects.filter(organization_id=self.payer.organization_id)
        self.payer.correct(self.one_of(list(entries.order_by("-id")[:10])))

    # --- Calls, the long way ---

    def do_hold(self) -> None:
        if len(self.references) == self.references.maxlen:
            self.payer.void(self.references.popleft())  # as the sweep does with what is forgotten
        reference = self.reference()
        self.payer.hold(self.amount(3), reference=reference)
        self.references.append(reference)

    def do_grow(self) -> None:
        reference = self.one_of(list(self.references)[-3:])
        with transaction.atomic():
            holds.extend(
                self.payer.locked(reference),
                reference=reference,
                kind="call",
                subject="",
                amount=self.amount(2),
                at=self.payer.at,
            )

    def do_hold_more(self) -> None:
        reference = self.one_of(list(self.references)[-3:])
        with transaction.atomic():
            charging.hold_more(
                self.payer.locked(reference),
                hold_reference=reference,
                subject="",
                model=self.payer.model,
                completion_tokens=self.rng.choice([1, 512, 100_000]),
                started_at=self.payer.at,
                at=self.payer.at,
            )

    def do_void(self) -> None:
        self.payer.void(self.one_of(list(self.references)[-5:]))

    def do_settle_call(self) -> None:
        reference = self.one_of(list(self.references)[-5:])
        used: dict[str, Any] = {
            "prompt": self.rng.randrange(1000, 120_000),
            "cached": self.rng.randrange(1000),
            "completion": self.rng.randrange(200),
            "subject": self.rng.choice([None, "cache-x"]),
            "started_at": self.payer.at - timedelta(seconds=self.rng.randrange(30)),
        }
        self.remember(lambda: self.payer.settle_call(reference, **used))

    # --- Storage ---

    def do_create(self) -> None:
        if len(self.subjects) == self.subjects.maxlen:
            self.payer.close(self.subjects[0])
            del self.payer.segments[self.subjects.popleft()]
        subject = f"cache-{self.name}-{self.reference().hex[:16]}"
        tokens, seconds = self.rng.randrange(1, 40_000), self.rng.randrange(1, 7200)
        self.payer.create(subject, tokens=tokens, seconds=seconds)
        self.subjects.append(subject)

    def do_extend(self) -> None:
        self.payer.extend(self.one_of(self.subjects), seconds=self.rng.randrange(-100, 7200))

    def do_close(self) -> None:
        subject = self.one_of(self.subjects)
        self.remember(lambda: self._minutes_when_closed(subject))

    def _minutes_when_closed(self, subject: str) -> int:
        if subject not in self.payer.segments:
            raise NothingThere
        return self.payer.close(subject).billed_minutes

    def do_lose(self) -> None:
        at = self.payer.at - timedelta(seconds=self.rng.randrange(200))
        self.payer.close(self.one_of(self.subjects), at=at)

    def do_settle(self) -> None:
        self.payer.settle()

    # --- Told once more ---

    def do_replay(self) -> None:
        message = self.one_of(self.messages)
        again = message.again()
        is_same = again == message.answer
        if isinstance(again, Recharged):
            is_same = not again.is_new and again.entry.pk == message.answer.entry.pk
        if isinstance(again, ChargedCall):
            is_same = (again.total, again.waived) == (message.answer.total, message.answer.waived)
        if not is_same:
            raise BrokenPromise(f"{self.name}: {message.answer} was told, and told again {again}")


class PresentWanderer(Wanderer):
    """Lives by the clock. Its calls are those of the gateway: hold, let it grow, settle or void."""

    open_calls: deque[Call]
    settled_calls: deque[Call]

    def __init__(self, *, payer: Payer, rng: random.Random, name: str) -> None:
        super().__init__(payer=payer, rng=rng, name=name)
        self.open_calls, self.settled_calls = deque(maxlen=6), deque(maxlen=4)

    @property
    def choices(self) -> Sequence[str]:
        return MOSTLY_CALLS

    def pass_time(self) -> None:
        self.payer.at = datetime.now(UTC)

    def do_call_hold(self) -> None:
        if len(self.open_calls) == self.open_calls.maxlen:
            self.do_call_settle()
        call = Call(
            organization_id=self.payer.organization_id,
            reference=self.reference(),
            family=self.payer.family,
            model=self.payer.model,
            subject=self.rng.choice([None, "cache-x"]),
            prompt=self.rng.randrange(100, 8_000),
            cached=self.rng.randrange(100),
            completion=self.rng.randrange(512),
            started_at=self.payer.at,
        )
        self.done["short holds" if calls.hold(call) else "long holds"] += 1
        self.open_calls.append(call)

    def do_call_settle(self) -> None:
        if not self.open_calls:
            raise NothingThere
        call = self.open_calls.popleft()
        self.done["short settlements" if calls.settle(call) else "long settlements"] += 1
        self.settled_calls.append(call)

    def do_call_grow(self) -> None:
        calls.hold_more(self.one_of(self.open_calls), completion=self.rng.choice([512, 50_000]))

    def do_call_void(self) -> None:
        if not self.open_calls:
            raise NothingThere
        calls.void(self.open_calls.pop())

    def do_call_again(self) -> None:
        call = self.one_of(self.settled_calls)
        before = self._charged_for(call)
        calls.settle(call)
        if self._charged_for(call) != before:
            raise BrokenPromise(f"{self.name}: a settlement that was told again charged again")

    def _charged_for(self, call: Call) -> Decimal:
        """Without what was paid back meanwhile."""
        keys = [f"{call.reference}:{meter}" for meter in ("call", "prompt", "completion")]
        entries = LedgerEntry.objects.filter(meter_event__source="call", meter_event__source_key__in=keys)
        return money.total(entries.values_list("amount", flat=True))


EVERYTHING = [
    *["hold"] * 5,
    *["settle_call"] * 5,
    *["create"] * 4,
    *["extend"] * 3,
    *["close", "settle", "recharge"] * 2,
    *["void", "grow", "hold_more", "lose", "voucher", "correct", "replay"],
]
MOSTLY_CALLS = [
    *["call_hold", "call_settle"] * 60,
    *["call_void", "call_grow", "create", "extend", "recharge"] * 2,
    *["hold", "settle_call", "close", "settle", "void", "lose", "voucher", "correct", "replay", "call_again"],
]


def holds_of(payer: Payer) -> list[uuid.UUID]:
    """The references of its open holds."""
    rows = Hold.objects.filter(organization_id=payer.organization_id, state=Hold.State.OPEN)
    return sorted(set(rows.values_list("reference", flat=True)))
