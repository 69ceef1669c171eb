"""Four short stories with their sums by hand, as a bookkeeper would check them. Amounts are in yuan.

Prices of July 2024, per 1,000,000: creation 24, a minute of storage 10, a call on an object 0.02 each; prompt and
completion of `moonshot-v1-8k` 12. After each story every invariant is run over all rows, and its statements are proved
by what stands on them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal

import pytest
from django.db import transaction

from billing import audit, clock, invoicing, statements, storage, verification
from billing.models import Price, PricedItem
from billing.periods import ZONE, month_of
from billing.statement_document import Statement
from tests.domain.billing.conftest import Payer, make_payer

pytestmark = pytest.mark.django_db

JULY, AUGUST = month_of(date(2024, 7, 1)), month_of(date(2024, 8, 1))


def at(day: int, hour: int, minute: int = 0, second: int = 0, *, month: int = 7) -> datetime:
    """A time of day in UTC+8, where the bills are written."""
    return datetime(2024, month, day, hour, minute, second, tzinfo=ZONE)


def yuan(*amounts: str) -> Decimal:
    return sum(map(Decimal, amounts), Decimal(0))


def closed_books(payer: Payer) -> tuple[Sequence[Statement], dict[str, Decimal]]:
    """The statements of July and August, proved, and the invoices by month; nothing in the books is off."""
    invoices = invoicing.make(payer.organization_id, at=at(1, 12, month=9))
    made = [
        statements.statement(payer.organization_id, start=month.start, end=month.end)
        for month in (JULY, AUGUST)
    ]
    verification.verify_all([json.dumps(statement.as_document()).encode() for statement in made])
    assert audit.violations(clock.now()) == []
    return made, {f"{invoice.month:%Y-%m}": invoice.amount for invoice in invoices}


def test_one_month_of_one_object():
    """A handbook of 20,000 tokens is kept for 30 days, and asked once a day."""
    payer = make_payer(at=at(1, 9))
    payer.recharge("10000")
    payer.create("handbook", tokens=20_000, seconds=30 * 86_400)
    for _ in range(30):
        # The prompt has 20,150 tokens, of which the object holds 20,000; the answer has 200.
        payer.call(prompt=20_150, cached=20_000, completion=200, subject="handbook")
        payer.pass_time(hours=24).settle()
    payer.close("handbook")

    creation = yuan("0.48")  # 20,000 tokens × 24 / 1,000,000
    kept = yuan("8640")  # 20,000 tokens × 43,200 minutes × 10 / 1,000,000: ¥0.20 a minute
    calls = yuan("0.60")  # 30 calls × 0.02
    prompts = yuan("0.054")  # 30 × 150 tokens × 12 / 1,000,000
    answers = yuan("0.072")  # 30 × 200 tokens × 12 / 1,000,000
    spent = yuan("8641.206")
    assert spent == creation + kept + calls + prompts + answers

    [july, august], invoices = closed_books(payer)
    assert july.sums == {
        "creation": -creation,
        "storage": -kept,
        "call": -calls,
        "prompt": -prompts,
        "completion": -answers,
        "recharge": yuan("10000"),
    }
    assert (july.opening, july.spent, july.closing) == (0, spent, yuan("1358.794"))
    assert [(meter.meter, meter.quantity) for meter in july.meters] == [
        ("creation", 20_000),
        ("storage", 864_000_000),
        ("call", 30),
        ("prompt", 4_500),
        ("completion", 6_000),
    ]
    assert (august.opening, august.closing, august.lines) == (july.closing, july.closing, ())
    assert invoices == {"2024-07": yuan("8641.21")}


def test_a_price_that_changes_at_midday():
    """At noon storage falls from 10 to 6 and tokens from 12 to 8. A minute or a call costs what it did as it began."""
    for meter, before, after in (("storage", 10, 6), ("prompt", 12, 8), ("completion", 12, 8)):
        item = PricedItem.objects.create(meter=meter, model="noon")
        Price.objects.create(priced_item=item, per_million=before, valid_from=at(1, 0), valid_to=at(16, 12))
        Price.objects.create(priced_item=item, per_million=after, valid_from=at(16, 12))
    payer = make_payer(recharged="100", at=at(16, 11, 50, 30))

    # 100,000 tokens from 11:50:30 to 12:05:00. That starts 15 minutes: at 11:50:30, 11:51:30 … 12:04:30.
    with transaction.atomic():
        segment = storage.open_segment(
            payer.locked(), subject="o", model="noon", tokens=100_000, at=payer.at, ends_at=at(16, 12, 5)
        )
    # Two calls of 10,000 tokens and an answer of 5,000; one begins a second before noon and ends after it.
    payer.at = at(16, 11, 59, 59)
    first = payer.hold("1")
    payer.at = at(16, 12)
    second = payer.hold("1")
    payer.at = at(16, 12, 3)
    for reference, started_at in ((first, at(16, 11, 59, 59)), (second, at(16, 12))):
        payer.settle_call(reference, prompt=10_000, completion=5_000, model="noon", started_at=started_at)
    payer.at = at(16, 12, 5)
    with transaction.atomic():
        storage.close(payer.locked(), segment, at=payer.at)

    [july, _], invoices = closed_books(payer)
    kept = [line for line in july.lines if line.entry.kind == "storage"]
    assert [(line.used.minutes, line.entry.unit_price, -line.entry.change) for line in kept] == [
        ((0, 10), yuan("0.000010"), yuan("10.00")),  # the ten that began until 11:59:30, ¥1.00 each
        ((10, 15), yuan("0.000006"), yuan("3.00")),  # the five from 12:00:30 on, ¥0.60 each
    ]
    tokens = [-line.entry.change for line in july.lines if line.entry.kind in ("prompt", "completion")]
    assert tokens == [
        *(yuan("0.12"), yuan("0.06")),  # begun before noon: 10,000 and 5,000 × 12 / 1,000,000
        *(yuan("0.08"), yuan("0.04")),  # begun at noon: × 8 / 1,000,000
    ]
    assert july.closing == yuan("86.70")  # 100 - 13.00 - 0.18 - 0.12
    assert invoices == {"2024-07": yuan("13.30")}


def test_a_refund():
    """A prompt that cost ¥24 on 31 July was sent by a broken client. On 1 August an operator gives it back."""
    payer = make_payer(recharged="50", at=at(31, 22))
    payer.call(prompt=2_000_000, completion=500, subject="handbook", hold="25")
    # 0.02 for the call + 2,000,000 × 12 / 1,000,000 = 24.00 + 500 × 12 / 1,000,000 = 0.006
    assert payer.available == yuan("50", "-24.026")
    payer.at = at(1, 10, month=8)
    [prompt] = payer.entries(kind="prompt")
    refund = payer.correct(prompt)
    assert (refund.reverses, refund.amount, refund.balance_after) == (prompt, 24, yuan("49.974"))

    [july, august], invoices = closed_books(payer)
    assert (july.spent, july.closing) == (yuan("24.026"), yuan("25.974"))
    assert (august.opening, august.spent, august.closing) == (yuan("25.974"), yuan("-24"), yuan("49.974"))
    # To date: July 24.026, rounded 24.03; August 0.026, rounded 0.03. What is paid in the end is 0.03.
    assert invoices == {"2024-07": yuan("24.03"), "2024-08": yuan("-24.00")}


def test_a_voucher_that_expires():
    """¥5 are given until noon. They still pay what was stored before, though booked after it; the rest lapses."""
    payer = make_payer(recharged="10", at=at(20, 11, 30))
    payer.recharge("5", purse="voucher", expires_at=at(20, 12))
    payer.store("handbook", tokens=10_000, seconds=3600)  # ¥0.10 a minute, from 11:30 to 12:30
    payer.at = at(20, 12, 30)
    payer.close("handbook")
    payer.settle()

    [july, august], invoices = closed_books(payer)
    kinds = {purse.id: purse.kind for purse in july.purses}
    assert [(kinds[line.entry.purse], line.entry.kind, line.entry.change) for line in july.lines] == [
        ("cash", "recharge", 10),
        ("voucher", "recharge", 5),
        ("voucher", "storage", -3),  # the thirty minutes that began from 11:30 to 11:59
        ("cash", "storage", -3),  # the thirty from 12:00 to 12:29
        ("voucher", "lapse", -2),  # 5 - 3
    ]
    assert (july.spent, july.closing, august.closing) == (6, 7, 7)
    assert invoices == {"2024-07": yuan("6.00")}, "what lapses is not spent"
