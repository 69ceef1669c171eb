"""Many at once on one account, each on a connection of its own: what is affordable passes, and nothing else."""

from __future__ import annotations

import json
import random
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from django.db import connection, transaction

from billing import accounts, charging, clock, holds, invoicing, price_book, statements, storage, verification
from billing.errors import BillingError, InsufficientFunds
from billing.models import LedgerEntry, MeterEvent
from billing.periods import day_at

pytestmark = pytest.mark.django_db(transaction=True)


def all_at_once(works: list[Callable[[], Any]]) -> list[Any]:
    """Run each on a thread and a connection of its own, from one starting shot; errors of billing are outcomes."""
    start = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        try:
            connection.ensure_connection()
            start.wait(timeout=60)
            return work()
        except BillingError as error:
            return error
        finally:
            connection.close()

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(run, works))


def errors_of(outcomes: list[Any], kind: type[BillingError]) -> int:
    return sum(isinstance(outcome, kind) for outcome in outcomes)


def test_of_fifty_holds_on_money_for_twenty_exactly_twenty_pass(payer):
    outcomes = all_at_once([lambda: payer.hold(5) for _ in range(50)])
    assert errors_of(outcomes, InsufficientFunds) == 30
    assert (payer.balance.held, payer.available) == (100, 0)


def test_the_same_over_several_purses_with_storage_owed(new_payer):
    payer = new_payer(recharged="30")
    for hours in (5, 9, None):
        payer.voucher(10, hours=hours)
    payer.store("cache-1", tokens=1_000_000, seconds=6000)
    outcomes = all_at_once([lambda: payer.hold(7) for _ in range(50)])
    assert errors_of(outcomes, InsufficientFunds) == 50 - 7
    assert (payer.balance.held, payer.available) == (49, 1)


def test_whole_calls_at_once_spend_what_there_is_and_no_more(new_payer):
    """Money for 50 calls of ¥0.02, 120 callers, sixty at a time: hold, settle, some of them twice."""
    payer = new_payer(recharged="1")

    def call() -> int:
        reference = uuid.uuid4()
        with transaction.atomic():
            account = accounts.lock(payer.organization_id, reference=reference)
            holds.place(
                account, reference=reference, kind="call", subject="c", amount=Decimal("0.02"), at=payer.at
            )
        for _ in range(random.choice([1, 2])):
            payer.settle_call(reference, prompt=10, cached=10, subject="cache-1")
        return 1

    outcomes = all_at_once([call for _ in range(60)])
    outcomes += all_at_once([call for _ in range(60)])
    assert sum(outcome == 1 for outcome in outcomes) == 50
    assert errors_of(outcomes, InsufficientFunds) == 70
    assert payer.balance.cash == 0
    assert MeterEvent.objects.filter(meter="call").count() == 50


def test_one_recharge_told_many_times_at_once_is_booked_once(payer):
    outcomes = all_at_once([lambda: payer.recharge(5, idempotency_key="order-1") for _ in range(20)])
    assert sum(outcome.is_new for outcome in outcomes) == 1
    assert len({outcome.entry.pk for outcome in outcomes}) == 1
    assert payer.balance.cash == 105


def test_one_settlement_told_many_times_at_once_is_charged_once(payer):
    reference = payer.hold(20)
    outcomes = all_at_once([lambda: payer.settle_call(reference, prompt=1_000_000) for _ in range(20)])
    assert {outcome.total for outcome in outcomes} == {12}
    assert payer.available == 88


def test_settling_and_voiding_race_for_one_outcome(payer):
    for _ in range(10):
        reference, before = payer.hold(1), payer.balance.cash
        settled, voided = all_at_once(
            [partial(payer.settle_call, reference, prompt=1000), partial(payer.void, reference)]
        )
        charged = payer.balance.cash != before
        assert voided is not charged
        assert isinstance(settled, BillingError) is not charged
    assert payer.balance.held == 0


def test_one_entry_is_undone_once(payer):
    payer.call(prompt=1_000_000, hold=12)
    [entry] = payer.entries(kind="prompt")
    outcomes = all_at_once([lambda: payer.correct(entry) for _ in range(10)])
    assert sum(isinstance(outcome, LedgerEntry) for outcome in outcomes) == 1
    assert payer.available == 100


def test_a_month_is_invoiced_once(payer):
    payer.call(prompt=1_000_000, hold=12)
    later = payer.at + timedelta(days=60)
    made = all_at_once([lambda: invoicing.make(payer.organization_id, at=later) for _ in range(8)])
    assert sorted(map(len, made)) == [0] * 7 + [1]


def test_statements_made_while_money_moves_prove_themselves(new_payer):
    """Each is a whole: what is booked while it is read is on it, with all that belongs to it, or is not."""
    payer = new_payer(recharged="20", at=clock.now())
    payer.voucher(1, hours=1)
    payer.store("cache-1", tokens=10_000, seconds=3600)
    today = day_at(payer.at)

    def read() -> list[verification.Proof]:
        period = {"start": today - timedelta(days=1), "end": today + timedelta(days=2)}
        made = [statements.statement(payer.organization_id, **period) for _ in range(10)]
        return [verification.verify(json.dumps(each.as_document()).encode()) for each in made]

    def call() -> None:
        for _ in range(15):
            payer.call(prompt=3000, completion=100, subject="cache-1")

    outcomes = all_at_once([read, read, call, call, call])
    assert [len(proofs) for proofs in outcomes[:2]] == [10, 10]
    assert len(payer.entries(kind="prompt")) >= 45


def test_accounts_do_not_wait_for_each_other(payer, new_payer):
    """One account locked for good, another one spends: no row is shared that a call must write."""
    other = new_payer(recharged="10")
    with transaction.atomic():
        payer.locked()

        def spend() -> Decimal:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '2s'")
            return other.call(prompt=1000, subject="c").total

        assert all_at_once([spend]) == [Decimal("0.032")]


def test_everything_at_once_leaves_the_books_in_order(payer):
    """Calls, storage, settlement ticks and recharges on one account by sixteen threads."""

    def work(seed: int) -> Callable[[], None]:
        rng = random.Random(seed)

        def run() -> None:
            for step in range(12):
                try:
                    one_step(rng, f"cache-{seed}-{step}")
                except InsufficientFunds:
                    pass

        return run

    def one_step(rng: random.Random, subject: str) -> None:
        choice = rng.randrange(6)
        if choice <= 2:
            payer.call(hold=rng.choice([1, 3]), prompt=rng.randrange(300_000), completion=5, subject="c")
        elif choice == 3:
            payer.store(subject, tokens=rng.randrange(1, 500_000), seconds=rng.randrange(1, 900))
            if rng.random() < 0.7:
                payer.close(subject, at=payer.at + timedelta(seconds=rng.randrange(300)))
        elif choice == 4:
            payer.recharge(rng.randrange(1, 9), purse=rng.choice(["cash", "voucher"]))
        else:
            payer.settle()

    for outcome in all_at_once([work(seed) for seed in range(16)]):
        assert outcome is None or isinstance(outcome, BillingError)


def test_an_announcement_waits_for_who_is_reading_prices(payer):
    """A segment opened at the old list is committed before the new list is: repricing then finds it."""
    reading, announced = threading.Event(), threading.Event()
    order: list[str] = []

    def open_and_linger() -> None:
        with transaction.atomic():
            payer._open(payer.locked(), "cache-1", 1000, 600)
            reading.set()
            announced.wait(timeout=0.5)
            order.append("opened")

    def announce() -> None:
        reading.wait(timeout=20)
        price_book.publish(
            meter="storage",
            model="moonshot-v1",
            currency="CNY",
            per_million=Decimal(4),
            valid_from=clock.now() + timedelta(minutes=10),
        )
        order.append("announced")
        announced.set()

    all_at_once([open_and_linger, announce])
    assert order == ["opened", "announced"]
    assert storage.reprice() == 1
    assert (
        charging.creation_quote(
            organization_id=payer.organization_id, model="moonshot-v1", tokens=1, currency="CNY", at=payer.at
        ).fee
        > 0
    )


def test_a_tier_that_changes_under_calls_leaves_each_at_the_price_it_was_quoted(new_payer):
    """The audit after the test rates every call again by the tier of its instant."""
    payer, now = new_payer(recharged="1000"), clock.now()
    for tier, per_million in (("tier1", 1_000), ("", 7_000)):
        for meter in ("prompt", "completion"):
            price_book.publish(
                meter=meter,
                model="brand-new",
                currency="CNY",
                tier=tier,
                per_million=Decimal(per_million),
                valid_from=now,
            )

    def call() -> Decimal:
        reference = uuid.uuid4()
        with transaction.atomic():
            account = payer.locked()
            began = account.locked_at
            quote = charging.call_quote(
                organization_id=payer.organization_id,
                model="brand-new",
                currency="CNY",
                prompt_tokens=1000,
                completion_tokens=0,
                at=began,
            )
            holds.place(
                account, reference=reference, kind="call", subject="x", amount=quote, at=account.locked_at
            )
        with transaction.atomic():
            account = payer.locked()
            charged = charging.charge_call(
                account,
                hold_reference=reference,
                call_id=str(reference),
                subject=None,
                family="moonshot-v1",
                model="brand-new",
                prompt_tokens=1000,
                cached_tokens=0,
                completion_tokens=0,
                started_at=began,
                at=account.locked_at,
                api_key_id="",
                request_id="",
            )
        assert (charged.total, charged.waived) == (quote, 0)
        return quote

    flips = [partial(payer.change_tier, tier) for tier in ("tier1", "tier0") * 8]
    works: list[Callable[[], Any]] = [call] * 24 + flips
    random.Random(7).shuffle(works)
    everything = all_at_once(works)
    failed = [one for one in everything if isinstance(one, BaseException)]
    assert not failed, failed
    outcomes = [one for one in everything if isinstance(one, Decimal)]
    assert len(outcomes) == 24
    assert set(outcomes) <= {Decimal(1), Decimal(7)}
    assert payer.available == 1000 - sum(outcomes)
