"""What a month would have cost by another price list: exact, and nothing is written."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from billing import clock, previews, price_book
from billing.errors import DraftRefused, PriceRefused
from billing.models import LedgerEntry, MeterEvent, Price
from tests.domain.billing.conftest import FAMILY, MODEL

pytestmark = pytest.mark.django_db

DRAFT = f"""meter,model,currency,tier,per_million
call,{FAMILY},CNY,,10000
storage,{FAMILY},CNY,,4
prompt,{MODEL},CNY,tier3,6
"""
JULY = {"first": datetime(2024, 6, 30, 16, tzinfo=UTC), "end": datetime(2024, 7, 31, 16, tzinfo=UTC)}


@pytest.fixture
def month(new_payer):
    """Two organizations that used something in July 2024, one of them something in August too."""
    one, other = new_payer(recharged="100"), new_payer(recharged="100")
    one.create("cache-1", tokens=100_000, seconds=600)
    one.call(prompt=1000, completion=100, subject="cache-1")
    one.pass_time(minutes=4).close("cache-1")
    other.call(prompt=7, completion=3)
    one.at = datetime(2024, 7, 31, 16, tzinfo=UTC)
    one.call(prompt=1000, subject="cache-1")
    return one, other


def compared(rows) -> dict[str, tuple[Decimal, Decimal]]:
    return {row.name: (row.old, row.new) for row in rows}


def spent_in_july(*payers) -> Decimal:
    entries = LedgerEntry.objects.filter(
        meter_event__occurred_at__gte=JULY["first"],
        meter_event__occurred_at__lt=JULY["end"],
        organization_id__in=[payer.organization_id for payer in payers],
    )
    return sum((entry.amount for entry in entries), Decimal(0))


def test_a_month_by_the_book_and_by_the_draft(month):
    one, other = month
    found = previews.preview(previews.parse(DRAFT), **JULY)
    assert (found.facts, found.new_items) == (MeterEvent.objects.count() - 2, ())
    assert compared(found.meters) == {
        "call": (Decimal("0.02"), Decimal("0.01")),
        "completion": (103 * Decimal("0.000012"),) * 2,
        "creation": (Decimal("2.4"),) * 2,
        "prompt": (1007 * Decimal("0.000012"),) * 2,
        "storage": (Decimal("4"), Decimal("1.6")),
    }
    [total] = found.totals
    assert total.old == spent_in_july(one, other)
    assert (total.currency, total.difference) == ("CNY", Decimal("-2.41"))
    assert sum(row.new for row in found.models) == sum(row.new for row in found.organizations) == total.new
    assert [row.name for row in found.organizations] == [one.organization_id, other.organization_id]
    assert found.organizations[0].old == spent_in_july(one)


def test_one_organization_alone(month):
    _, other = month
    found = previews.preview(previews.parse(DRAFT), **JULY, organization_id=other.organization_id)
    assert [row.name for row in found.organizations] == [other.organization_id]
    assert found.totals[0].old == spent_in_july(other)


def test_a_month_in_which_nothing_was_used_is_empty(db):
    found = previews.preview(previews.parse(DRAFT), **JULY)
    assert (found.facts, found.totals, found.organizations) == (0, (), ())


def test_a_price_that_changed_within_the_month_is_rated_as_it_was(payer):
    """Storage was halved on 2024-08-07; the draft asks 4 all over the month."""
    for day in (1, 20):
        payer.at = datetime(2024, 8, day, 12, tzinfo=UTC)
        payer.store(f"cache-{day}", tokens=100_000, seconds=60)
        payer.pass_time(minutes=2).close(f"cache-{day}")
    first, end = previews.month("2024-08")
    [storage] = previews.preview(previews.parse(DRAFT), first=first, end=end).meters
    assert (storage.old, storage.new) == (Decimal("1.5"), Decimal("0.8"))


def test_a_tiers_price_in_the_draft_is_for_that_tier_from_when_the_account_had_it(new_payer):
    payer, other = (new_payer(recharged="100") for _ in range(2))
    payer.at = other.at = clock.now() - timedelta(minutes=1)
    payer.call(prompt=1000)
    payer.change_tier("tier3")
    payer.at = other.at = clock.now()
    payer.call(prompt=1000)
    other.call(prompt=1000)
    found = previews.preview(
        previews.parse(DRAFT), first=payer.at - timedelta(hours=1), end=payer.at + timedelta(hours=1)
    )
    assert compared(found.organizations) == {
        payer.organization_id: (Decimal("0.024"), Decimal("0.018")),
        other.organization_id: (Decimal("0.012"), Decimal("0.012")),
    }


def test_a_tiers_price_in_the_book_beats_the_drafts_price_for_all(new_payer):
    start = clock.now() + timedelta(minutes=10)
    price_book.publish(
        meter="call",
        model=FAMILY,
        currency="CNY",
        tier="tier3",
        per_million=Decimal(15_000),
        valid_from=start,
    )
    payer = new_payer(recharged="100")
    payer.change_tier("tier3")
    payer.at = start
    payer.call(subject="cache-1")
    for draft, new in (
        (DRAFT, "0.015"),
        (f"meter,model,tier,per_million\ncall,{FAMILY},tier3,1000", "0.001"),
    ):
        found = previews.preview(previews.parse(draft), first=start, end=start + timedelta(hours=1))
        assert found.totals[0].new == Decimal(new)


def test_nothing_is_written(month):
    before = [list(model.objects.order_by("pk").values()) for model in (Price, LedgerEntry, MeterEvent)]
    previews.preview(previews.parse(DRAFT), **JULY)
    assert before == [
        list(model.objects.order_by("pk").values()) for model in (Price, LedgerEntry, MeterEvent)
    ]


# --- Drafts and months ----------------------------------------------------------------------------------------


def test_a_draft_in_json_is_read_to_the_last_digit_and_currency_and_tier_may_be_left_out():
    text = f'[{{"meter": "call", "model": "{FAMILY}", "per_million": 20000.125}}]'
    [item] = previews.parse(text)
    assert (item.per_million, item.currency, item.tier) == (Decimal("20000.125"), "CNY", "")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "1 to 1000 items"),
        ("meter,model,per_million", "1 to 1000 items"),
        ("meter,model\ncall,m", "Item 1: per_million missing"),
        ("meter,model,per_million,price\ncall,m,1,2", "Item 1: price unknown"),
        ("meter,model,per_million\ncalls,m,1", "Item 1: meter got 'calls', it takes one of creation"),
        ("meter,model,per_million,currency\ncall,m,1,EUR", "currency got 'EUR'"),
        ("meter,model,per_million\ncall,m,0.0001", "Item 1: per_million got '0.0001'"),
        ("meter,model,per_million\ncall,m,-1", "per_million got '-1'"),
        ("meter,model,per_million\ncall,m,NaN", "per_million got 'NaN'"),
        ("meter,model,per_million\ncall,m,1e400", "per_million got '1e400'"),
        ("meter,model,per_million\ncall,m,1\ncall,m,2", "Item 2: call m CNY is there twice"),
        ('[{"meter": "call", "model": 5, "per_million": 1}]', "Item 1: model takes a text"),
        ('[{"meter": "call", "model": "m", "per_million": true}]', "per_million got True"),
        ("[1]", "list of objects"),
        ("{}", "list of objects"),
        ("[", "no JSON"),
    ],
)
def test_a_draft_that_is_not_right_says_where(text, named):
    with pytest.raises(DraftRefused) as refusal:
        previews.parse(text)
    assert named in refusal.value.message


def test_a_month_is_one_of_utc_plus_8():
    assert previews.month("2024-07") == (JULY["first"], JULY["end"])
    assert previews.last_month(datetime(2024, 7, 31, 16, tzinfo=UTC)) == "2024-07"
    assert previews.last_month(datetime(2024, 7, 31, 15, tzinfo=UTC)) == "2024-06"
    for wrong in ("2024-13", "july", "9999-12", ""):
        with pytest.raises(DraftRefused, match="written like 2024-07"):
            previews.month(wrong)


# --- The command ----------------------------------------------------------------------------------------------


def run(tmp_path, *arguments: str, draft: str = DRAFT) -> str:
    file = tmp_path / "draft.csv"
    file.write_text(draft)
    output = StringIO()
    call_command("preview_prices", str(file), *arguments, stdout=output)
    return output.getvalue()


def test_the_command_prints_tables_or_one_json_object(month, tmp_path):
    printed = run(tmp_path, "--month", "2024-07")
    assert "-2.410000000" in printed and month[0].organization_id in printed
    made = json.loads(run(tmp_path, "--month", "2024-07", "--json"))
    assert made["totals"][0]["difference"] == "-2.410000000"
    alone = run(tmp_path, "--month", "2024-07", "--organization", month[1].organization_id)
    assert month[0].organization_id not in alone


def test_the_command_names_what_is_new_and_what_is_wrong(db, tmp_path):
    assert "call of unheard-of in CNY" in run(tmp_path, draft="meter,model,per_million\ncall,unheard-of,1\n")
    for arguments, named in (
        (["--month", "7"], "2024-07"),
        (["--organization", "org-nobody"], "No organization"),
    ):
        with pytest.raises(CommandError, match=named):
            run(tmp_path, *arguments)


# --- Announcing -----------------------------------------------------------------------------------------------


def test_all_prices_of_a_draft_are_announced_or_none(db):
    start = clock.now() + timedelta(hours=1)
    count = Price.objects.count()
    with pytest.raises(PriceRefused, match="ahead"):
        previews.announce(previews.parse(DRAFT), valid_from=clock.now() + timedelta(seconds=299))
    assert Price.objects.count() == count
    previews.announce(previews.parse(DRAFT), valid_from=start)
    assert Price.objects.filter(valid_from=start).count() == 3


def test_accounts_reckon_with_a_storage_price_that_is_announced(payer, django_capture_on_commit_callbacks):
    payer.at = clock.now()
    payer.store("cache-1", tokens=1_000_000, seconds=1200)
    with django_capture_on_commit_callbacks(execute=True):
        previews.announce(previews.parse(DRAFT), valid_from=payer.at + timedelta(minutes=10))
    assert payer.exhaust_at is None, "10 minutes at 5 and 10 at 4 are 90"
