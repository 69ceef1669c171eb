"""The short way of a call's money leads where the long way leads, or is not taken."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction

from billing import charging, clock, holds, plain_calls, price_book
from billing.errors import BillingError
from billing.models import BillingAccount, Hold, LedgerAccount, LedgerEntry, MeterEvent
from tests.domain.billing.conftest import FAMILY, MODEL, Payer, make_payer

pytestmark = pytest.mark.django_db

CURRENCY = "CNY"
KEY, REQUEST = "ak-test", "req-test"
WAY = Callable[[], None]


def world(payer: Payer) -> dict[str, Any]:
    """All that a call's money may touch, without what differs between two equal runs: ids and instants."""
    of = {"organization_id": payer.organization_id}
    purses = {purse.id: (purse.kind, purse.expires_at) for purse in LedgerAccount.objects.filter(**of)}
    account = BillingAccount.objects.get(**of)
    return {
        "account": (account.storage_commitment, account.committed_until, account.exhaust_at),
        "purses": sorted(
            (str(purses[purse.id]), purse.posted, purse.held, purse.entry_count)
            for purse in LedgerAccount.objects.filter(**of)
        ),
        "holds": sorted(
            (
                str(hold.reference),
                str(purses[hold.purse_id]),
                hold.amount,
                hold.kind,
                hold.subject,
                hold.state,
            )
            for hold in Hold.objects.filter(**of)
        ),
        "events": sorted(
            MeterEvent.objects.filter(**of).values_list(
                *("source", "source_key", "meter", "subject", "model", "quantity", "unit"),
                *("occurred_at", "api_key_id", "request_id", "first_minute", "end_minute"),
                *("cached_tokens", "called_model"),
            ),
            key=str,
        ),
        "entries": sorted(
            [
                (
                    *(entry.kind, entry.amount, str(purses.get(entry.purse_id)), entry.purse_sequence),
                    *(entry.balance_after, entry.debit_id, entry.credit_id, entry.currency, entry.quantity),
                    *(
                        entry.unit_price,
                        entry.price_id,
                        entry.idempotency_key,
                        entry.reason,
                        entry.request_id,
                    ),
                    (entry.meter_event.source_key if entry.meter_event else None),
                )
                for entry in LedgerEntry.objects.filter(**of).select_related("meter_event")
            ],
            key=str,
        ),
    }


def after(payer: Payer, way: WAY) -> dict[str, Any] | None:
    """The world after `way`, which is then undone; None when it was refused."""
    try:
        with transaction.atomic():
            way()
            seen = world(payer)
            transaction.set_rollback(True)
            return seen
    except BillingError:
        return None
    except DatabaseError as error:
        assert getattr(error.__cause__, "sqlstate", None) == plain_calls.NOT_PLAIN, error
        return None


def a_payer(dice: random.Random) -> Payer:
    """Vouchers and cash, some of them spent, some held; storage that the money covers, nearly, or not."""
    now = clock.now()
    payer = make_payer(at=now)
    for _ in range(dice.randint(0, 2)):
        expiry = dice.choice([None, now + timedelta(hours=1), now + timedelta(days=30)])
        payer.recharge(dice.choice(["0.01", "0.5", "3"]), purse="voucher", expires_at=expiry)
    if dice.random() < 0.7:
        payer.recharge(dice.choice(["0.02", "1", "50"]))
    if dice.random() < 0.4:
        try:
            payer.store("kept", tokens=dice.choice([10, 1_000]), seconds=dice.choice([1_800, 36_000]))
        except BillingError:
            pass  # it cannot pay for that: a payer without storage
    if dice.random() < 0.3:
        try:
            payer.hold(dice.choice(["0.01", "0.4"]))
        except BillingError:
            pass
    return payer


def way_of_hold(payer: Payer, reference: uuid.UUID, amount: Decimal) -> tuple[WAY, WAY]:
    def long() -> None:
        account = payer.locked()
        at = account.locked_at
        holds.place(account, reference=reference, kind="call", subject="s", amount=amount, at=at)

    def short() -> None:
        now = clock.now()
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT billing_hold_plainly(%s, %s, %s, 'call', 's', %s, %s, %s)",
                [payer.organization_id, CURRENCY, reference, amount, now, now + timedelta(minutes=1)],
            )

    return long, short


def way_of_settling(
    payer: Payer, reference: uuid.UUID, *, subject: str | None, prompt: int, completion: int
) -> tuple[WAY, WAY]:
    started_at = clock.now()
    used = {
        "call_id": str(reference),
        "subject": subject,
        "family": FAMILY,
        "model": MODEL,
        "prompt_tokens": prompt,
        "cached_tokens": prompt // 2,
        "completion_tokens": completion,
        "started_at": started_at,
        "api_key_id": KEY,
        "request_id": REQUEST,
    }

    def long() -> None:
        account = payer.locked()
        charging.charge_call(account, hold_reference=reference, at=account.locked_at, **used)

    def short() -> None:
        charges = plain_calls.charges(
            payer.organization_id, charging.call_events(**used), started_at=started_at
        )
        assert charges is not None
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT billing_settle_plainly(%s, %s, %s, %s, %s)",
                [payer.organization_id, charges.currency, reference, charges.total, charges.rows],
            )

    return long, short


def known_prices(payer: Payer) -> None:
    payer.locked()
    for meter, model in (("prompt", MODEL), ("completion", MODEL), ("call", FAMILY)):
        price_book.price_at(
            organization_id=payer.organization_id, meter=meter, model=model, currency=CURRENCY, at=clock.now()
        )


@pytest.mark.parametrize("seed", range(4))
def test_both_ways_write_the_same(seed: int) -> None:
    dice = random.Random(seed)
    taken = {"hold": 0, "settle": 0}
    refused = {"hold": 0, "settle": 0}
    for _ in range(30):
        payer, reference = a_payer(dice), uuid.uuid4()
        known_prices(payer)
        amount = Decimal(dice.choice(["0.000000001", "0.02", "0.3", "0.5", "2"]))
        before = world(payer)
        long, short = way_of_hold(payer, reference, amount)
        by_the_long, by_the_short = after(payer, long), after(payer, short)
        assert by_the_short in (None, by_the_long), (seed, payer.organization_id)
        (refused if by_the_short is None else taken)["hold"] += 1
        assert world(payer) == before
        if by_the_long is None:
            continue
        long()
        if dice.random() < 0.3:
            payer.at = clock.now()
            payer.recharge("1", purse="voucher", expires_at=payer.at + timedelta(hours=2))
        long, short = way_of_settling(
            payer,
            reference,
            subject=dice.choice([None, "cache-x"]),
            prompt=dice.choice([1, 100, 1_000, 40_000]),
            completion=dice.choice([0, 7, 40]),
        )
        by_the_long, by_the_short = after(payer, long), after(payer, short)
        assert by_the_short in (None, by_the_long), (seed, payer.organization_id)
        (refused if by_the_short is None else taken)["settle"] += 1
        long()
    # Both kinds of case were met, or nothing was shown.
    assert min(taken.values()) >= 5 and min(refused.values()) >= 5, (taken, refused)


def test_the_usual_call_is_plain():
    payer = make_payer(recharged="10", at=clock.now())
    known_prices(payer)
    reference = uuid.uuid4()
    _, short = way_of_hold(payer, reference, Decimal("0.5"))
    short()
    _, settle = way_of_settling(payer, reference, subject="cache-x", prompt=1_000, completion=10)
    settle()
    assert payer.spent("call") == Decimal("0.02")
    assert payer.spent("prompt") == 500 * Decimal("0.000012")
    assert payer.spent("completion") == 10 * Decimal("0.000012")
    assert payer.balance.held == 0
    assert Hold.objects.get(reference=reference).state == "settled"
    told = MeterEvent.objects.filter(organization_id=payer.organization_id)
    assert {event.meter: (event.cached_tokens, event.called_model) for event in told} == {
        "call": (500, MODEL),
        "prompt": (None, ""),
        "completion": (None, ""),
    }


def test_a_settlement_is_made_once_and_only_of_an_open_hold():
    payer = make_payer(recharged="10", at=clock.now())
    known_prices(payer)
    reference = uuid.uuid4()
    _, never_held = way_of_settling(payer, reference, subject=None, prompt=10, completion=1)
    assert after(payer, never_held) is None
    way_of_hold(payer, reference, Decimal("0.5"))[1]()
    _, settle = way_of_settling(payer, reference, subject=None, prompt=10, completion=1)
    settle()
    before = world(payer)
    assert after(payer, settle) is None
    assert world(payer) == before


def test_an_account_that_may_run_out_takes_the_long_way():
    payer = make_payer(recharged="1", at=clock.now())
    payer.store("kept", tokens=1_000, seconds=36_000)
    assert payer.exhaust_at is not None
    _, short = way_of_hold(payer, uuid.uuid4(), Decimal("0.01"))
    assert after(payer, short) is None


def test_a_price_that_changes_meanwhile_takes_the_long_way():
    payer = make_payer(recharged="1", at=clock.now())
    now = clock.now()
    with connection.cursor() as cursor, pytest.raises(DatabaseError, match="not plain"):
        with transaction.atomic():
            cursor.execute(
                "SELECT billing_hold_plainly(%s, %s, %s, 'call', 's', %s, %s, %s)",
                [payer.organization_id, CURRENCY, uuid.uuid4(), Decimal(1), now - timedelta(minutes=1), now],
            )
    assert payer.balance.held == 0


def hold_with_margin(payer: Payer, amount: str, margin: int) -> bool:
    now = clock.now()
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(
                "SELECT billing_hold_plainly(%s, %s, %s, 'call', 's', %s, %s, %s, %s)",
                [
                    *(payer.organization_id, CURRENCY, uuid.uuid4(), Decimal(amount)),
                    *(now, now + timedelta(minutes=1), margin),
                ],
            )
    except DatabaseError:
        return False
    return True


def test_a_margin_is_asked_for_and_not_taken():
    payer = make_payer(recharged="1", at=clock.now())
    assert hold_with_margin(payer, "0.05", 20)
    assert payer.balance.held == Decimal("0.05")
    assert not hold_with_margin(payer, "0.05", 20), "0.95 is left, and 20 times that is 1.00"
    assert hold_with_margin(payer, "0.05", 19)
    assert hold_with_margin(payer, "0.90", 1)
    assert payer.balance.held == Decimal(1)


def test_a_margin_leaves_out_what_storage_will_take():
    payer = make_payer(recharged="10", at=clock.now())
    payer.store("kept", tokens=1_000, seconds=36_000)
    kept = BillingAccount.objects.get(organization_id=payer.organization_id).storage_commitment
    assert kept > 1
    free = payer.balance.cash - kept
    assert not hold_with_margin(payer, str(free / 10 + Decimal("0.001")), 10)
    assert hold_with_margin(payer, str(free / 10 - Decimal("0.001")), 10)
