"""An organization's transfers: exact, complete, in order, and nobody else's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from itertools import product

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from billing import history
from billing.history import Filter, Window
from billing.models import LedgerAccount, system_account_id
from tests.domain.billing.conftest import NOON, Payer, make_payer

pytestmark = pytest.mark.django_db

ALL = Window(limit=1000)


def told(payer, window: Window = ALL, **filters):
    return history.page(payer.organization_id, Filter(**filters), window)


@pytest.fixture
def busy(payer):
    """A voucher and cash, storage, calls, a correction, and a waiver."""
    payer.voucher("0.05", hours=2)
    payer.create("cache-a", tokens=1000, seconds=600)
    payer.pass_time(minutes=3)
    payer.call(subject="cache-a", prompt=1100, cached=1000, completion=7, call_id="one")
    payer.close("cache-a")
    payer.correct(payer.entries(kind="call")[0])
    payer.pass_time(hours=3).settle()
    poor = "99.9"
    payer.hold(Decimal(poor) - (Decimal(100) - payer.available))
    payer.call(hold="0.000000001", prompt=1_000_000, call_id="two")
    return payer


def test_all_transfers_together_are_the_balance(busy):
    transfers = told(busy)
    assert {t.meter for t in transfers} >= {
        *("creation", "storage", "call", "tokens", "recharge", "reversal", "waiver")
    }
    balance = busy.balance
    assert sum(t.amount for t in transfers) == balance.cash + balance.voucher


def test_a_charge_split_over_purses_is_a_transfer_for_each(busy):
    parts = told(busy, meter="storage")
    assert {part.purse for part in parts} == {"voucher", "cash"}
    assert {part.quantity for part in parts} == {3000}
    assert sum(part.amount for part in parts) == -parts[0].quantity * parts[0].unit_price


def test_what_is_waived_moved_no_money_of_the_organization(busy):
    [waiver] = told(busy, meter="waiver")
    assert (waiver.amount, waiver.purse, waiver.balance_after) == (0, None, None)
    assert waiver.waived == 12 - sum(-t.amount for t in told(busy, meter="prompt")[:1])


def test_a_reversal_tells_what_it_undoes(busy):
    [reversal] = told(busy, meter="reversal")
    [fee] = told(busy, meter="call")
    assert (reversal.reverses, reversal.subject, reversal.amount) == (fee.id, "cache-a", -fee.amount)
    assert reversal.model == fee.model == "moonshot-v1"


def test_each_balance_follows_from_the_one_before(busy):
    left = {"cash": Decimal(0), "voucher": Decimal(0)}
    for transfer in told(busy, Window(limit=1000, newest_first=False)):
        if transfer.purse is not None:
            left[transfer.purse] += transfer.amount
            assert transfer.balance_after == left[transfer.purse]


@pytest.mark.parametrize(
    ("filters", "meters"),
    [
        ({"meter": "tokens"}, {"tokens"}),
        ({"subject": "cache-a"}, {"creation", "storage", "call", "tokens", "reversal"}),
        ({"subject": "cache-b"}, set()),
        ({"model": "moonshot-v1-8k"}, {"tokens", "waiver"}),
        ({"api_key_id": "key-1"}, {"creation", "call", "tokens", "reversal", "waiver"}),
        ({"api_key_id": "key-2"}, set()),
        ({"request_id": "req-1", "meter": "call"}, {"call"}),
    ],
)
def test_filters(busy, filters, meters):
    assert {t.meter for t in told(busy, **filters)} == meters


def test_tokens_are_prompt_and_completion(busy):
    assert {t.kind for t in told(busy, meter="tokens")} == {"prompt", "completion"}
    assert {t.kind for t in told(busy, meter="completion")} == {"completion"}
    assert {t.kind for t in told(busy, meter="storage")} == {None}


@pytest.mark.parametrize("newest_first", [True, False])
def test_pages_follow_each_other_without_a_gap(busy, newest_first):
    whole = [t.id for t in told(busy, Window(limit=1000, newest_first=newest_first))]
    pages, after = [], None
    while page := told(busy, Window(limit=3, newest_first=newest_first, after=after)):
        pages += [t.id for t in page]
        after = pages[-1]
    assert pages == whole
    assert sorted(whole, reverse=newest_first) == whole
    between = Window(limit=1000, newest_first=newest_first, after=whole[1], before=whole[-2])
    assert [t.id for t in told(busy, between)] == whole[2:-2]
    gathered = history.pages(busy.organization_id, Filter(), between, limit=4)
    assert [t.id for page in gathered for t in page] == whole[2:6]


def test_nobody_elses_are_told(busy):
    other = make_payer(recharged="1")
    assert [t.amount for t in told(other)] == [1]
    [entry] = other.entries()
    assert history.is_of(other.organization_id, entry.id)
    assert not history.is_of(busy.organization_id, entry.id)
    assert history.count_up_to(other.organization_id, Filter(), ALL, limit=10) == 1


def test_a_span_has_its_start_and_not_its_end(payer):
    for _ in range(5):
        payer.pass_time(hours=2).recharge("1")
    hours = [NOON + timedelta(hours=2 * n) for n in range(6)]
    for start in (None, *hours):
        for end in (None, *hours):
            expected = [h for h in hours if (start is None or h >= start) and (end is None or h < end)]
            assert [t.time for t in told(payer, start=start, end=end)] == expected[::-1], (start, end)


def test_what_was_written_late_is_in_its_span_all_the_same(payer):
    """An instant is read before the lock is waited for, so entries of two purses may stand in another order."""
    minute = timedelta(minutes=1)
    payer.at = NOON + 59 * minute
    payer.recharge("1")
    payer.at = NOON + 30 * minute
    payer.voucher("2")
    payer.at = NOON + timedelta(hours=5)
    payer.recharge("3")
    assert [t.time for t in told(payer)[1:3]] == [NOON + 30 * minute, NOON + 59 * minute]
    assert [t.amount for t in told(payer, start=NOON + 30 * minute, end=NOON + 31 * minute)] == [2]
    assert [t.amount for t in told(payer, start=NOON + 59 * minute, end=NOON + 60 * minute)] == [1]


# --- What a page costs -----------------------------------------------------------------------------------------

DEPTH, LIMIT = 6_000, 20
FILL = """
INSERT INTO billing_ledgerentry (debit_id, credit_id, amount, organization_id, currency, purse_id, purse_sequence,
    balance_after, idempotency_key, kind, reason, operator, request_id, created_at)
SELECT %(funding)s, %(purse)s, 1, %(organization)s, 'CNY', %(purse)s, n, n, %(organization)s || n, 'recharge', 'test',
    'test', '', %(noon)s::timestamptz + n * interval '1 minute'
FROM generate_series(1, %(rows)s) AS n ORDER BY n
"""


def nodes(plan: dict) -> Iterator[dict]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


@pytest.fixture
def crowd() -> list[Payer]:
    """Two payers with long histories, one after the other."""
    payers = [make_payer(), make_payer()]
    with connection.cursor() as cursor:
        for payer in payers:
            purse = LedgerAccount.objects.get(organization_id=payer.organization_id)
            about = {
                "funding": system_account_id("funding_cash", "CNY"),
                "purse": purse.id,
                "organization": payer.organization_id,
                "noon": NOON,
                "rows": DEPTH,
            }
            cursor.execute(FILL, about)
            # So that the audit finds what it should.
            LedgerAccount.objects.filter(id=purse.id).update(posted=DEPTH, entry_count=DEPTH)
        cursor.execute("ANALYZE billing_ledgerentry")
    return payers


def test_a_page_reads_its_own_rows_and_no_others_at_any_depth(crowd):
    ids = [sorted(entry.id for entry in payer.entries()) for payer in crowd]
    span = {"start": NOON + timedelta(days=2), "end": NOON + timedelta(days=3)}
    for (payer, own), newest_first, (depth, filters) in product(
        zip(crowd, ids, strict=True),
        (True, False),
        ((50, {}), (DEPTH // 2, {}), (DEPTH - 50, {}), (None, span), (None, {})),
    ):
        after = None if depth is None else own[depth]
        with CaptureQueriesContext(connection) as asked:
            found = told(payer, Window(limit=LIMIT, newest_first=newest_first, after=after), **filters)
        assert len(found) == LIMIT
        with connection.cursor() as cursor:
            cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + asked.captured_queries[-1]["sql"])
            (plan,) = cursor.fetchone()
        plan = (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]
        [page] = [node for node in nodes(plan) if node.get("Alias") == "billing_ledgerentry"]
        assert page["Index Name"] == "entries_of_organization", page
        read = page["Actual Rows"] + page.get("Rows Removed by Filter", 0)
        # Of a span, the hour before or after it is read too.
        assert read <= LIMIT + (61 if filters else 0), page
