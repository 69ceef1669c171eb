"""The operators' pages: every table can be read, none can be rewritten, and money moves with a reason."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.test import Client
from django.urls import reverse

from billing import clock, exports, invoicing
from billing.models import BillingAccount, LedgerEntry, Price, PricedItem

pytestmark = pytest.mark.django_db

TABLES = [model._meta.model_name for model in apps.get_app_config("billing").get_models()]
ADD_ONLY = {"price", "priceditem"}


@pytest.fixture
def operator(db) -> Client:
    client = Client()
    client.force_login(get_user_model().objects.create_superuser("ada"))
    return client


@pytest.fixture
def onlooker(db) -> Client:
    """May log in to the admin and view, nothing else."""
    from django.contrib.auth.models import Permission

    user = get_user_model().objects.create_user("bob", is_staff=True)
    user.user_permissions.set(
        Permission.objects.filter(content_type__app_label="billing", codename__startswith="view")
    )
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def busy(payer):
    payer.create("cache-1", tokens=10_000)
    payer.call(prompt=100, completion=10, subject="cache-1")
    payer.pass_time(minutes=5).settle()
    invoicing.make(payer.organization_id, at=payer.at + timedelta(days=31))
    payer.change_tier("tier3")
    position = exports.position_of("file:///srv/usage")
    exports.move(position, exports.next_batch(position, limit=100, below=2**63 - 1))
    return payer


def first_of(table: str):
    model = apps.get_model("billing", table)
    return model.objects.order_by("pk").first()


@pytest.mark.parametrize("table", TABLES)
def test_every_table_can_be_listed_searched_and_opened(operator, busy, table):
    listed = reverse(f"admin:billing_{table}_changelist")
    assert operator.get(listed).status_code == 200
    assert operator.get(listed, {"q": busy.organization_id}).status_code == 200
    page = operator.get(reverse(f"admin:billing_{table}_change", args=[first_of(table).pk]))
    assert page.status_code == 200


@pytest.mark.parametrize("table", TABLES)
def test_no_row_can_be_changed_or_deleted_and_only_prices_added(operator, busy, table):
    row = first_of(table)
    assert operator.post(reverse(f"admin:billing_{table}_change", args=[row.pk]), {"x": 1}).status_code == 403
    assert (
        operator.post(reverse(f"admin:billing_{table}_delete", args=[row.pk]), {"post": "yes"}).status_code
        == 403
    )
    assert operator.get(reverse(f"admin:billing_{table}_add")).status_code == (
        200 if table in ADD_ONLY else 403
    )


def test_rows_of_one_organization_are_a_click_away(operator, busy, new_payer):
    new_payer(recharged="7")
    page = operator.get(
        reverse("admin:billing_ledgerentry_changelist"), {"organization_id": busy.organization_id}
    )
    assert page.status_code == 200
    assert {row.organization_id for row in page.context["cl"].result_list} == {busy.organization_id}


def test_a_system_accounts_sum_is_computed(operator, busy):
    page = operator.get(reverse("admin:billing_ledgeraccount_changelist"), {"kind__exact": "funding_cash"})
    assert "-100.000000000" in page.content.decode()


# --- Recharge and reverse -------------------------------------------------------------------------------------


@pytest.fixture
def recharge_url(payer) -> str:
    return reverse("admin:billing_billingaccount_recharge", args=[payer.organization_id])


def test_a_recharge_with_a_reason(operator, payer, recharge_url):
    page = operator.get(recharge_url)
    key = str(page.context["form"]["key"].value())
    filled = {"amount": "12.5", "purse": "voucher", "reason": "sorry", "key": key}
    for _ in range(2):
        assert operator.post(recharge_url, filled).status_code == 302
    entry = LedgerEntry.objects.filter(organization_id=payer.organization_id).latest("id")
    assert (entry.amount, entry.purse.kind, entry.reason, entry.operator) == (
        Decimal("12.5"),
        "voucher",
        "sorry",
        "ada",
    )
    assert payer.balance.voucher == Decimal("12.5"), "one page is one recharge"


@pytest.mark.parametrize(
    "mistake",
    [
        {"reason": ""},
        {"amount": "0"},
        {"amount": "1.0000000001"},
        {"purse": "revenue_call"},
        {"expires_at": "2000-01-01T00:00"},
        {"purse": "cash", "expires_at": "2999-01-01T00:00"},
        {"key": ""},
    ],
)
def test_a_recharge_that_is_not_right_stays_on_its_page(operator, payer, recharge_url, mistake):
    key = "6f9619ff-8b86-4d01-b42d-00c04fc964ff"
    answer = operator.post(
        recharge_url, {"amount": "1", "purse": "voucher", "reason": "r", "key": key} | mistake
    )
    assert answer.status_code == 200
    assert answer.context["form"].errors
    assert payer.available == 100


def test_an_entry_is_reversed_with_a_reason(operator, busy):
    charge = busy.entries(kind="call")[0]
    url = reverse("admin:billing_ledgerentry_correct", args=[charge.pk])
    assert operator.get(url).status_code == 200
    assert operator.post(url, {"reason": ""}).status_code == 200
    assert operator.post(url, {"reason": "charged by mistake"}).status_code == 302
    refused = operator.post(url, {"reason": "again"})
    assert "undone already" in refused.content.decode()
    [reversal] = busy.entries(kind="reversal")
    assert (reversal.reverses, reversal.operator, reversal.reason) == (charge, "ada", "charged by mistake")


def test_who_may_only_look_moves_nothing(onlooker, payer, recharge_url):
    assert onlooker.get(reverse("admin:billing_billingaccount_changelist")).status_code == 200
    answer = onlooker.post(recharge_url, {"amount": "1", "purse": "cash", "reason": "mine"})
    assert answer.status_code in (302, 403)
    assert payer.available == 100


# --- Prices ---------------------------------------------------------------------------------------------------


def announce(operator: Client, item: PricedItem, start, per_million: str = "3") -> int:
    return operator.post(
        reverse("admin:billing_price_add"),
        {
            "priced_item": item.pk,
            "per_million": per_million,
            "reason": "It was agreed.",
            "valid_from_0": start.strftime("%Y-%m-%d"),
            "valid_from_1": start.strftime("%H:%M:%S"),
        },
    ).status_code


def test_a_price_is_announced_for_the_future_and_accounts_reckon_with_it(
    operator, payer, django_capture_on_commit_callbacks
):
    item = PricedItem.objects.get(meter="storage")
    payer.at = clock.now()
    payer.store("cache-1", tokens=1_000_000, seconds=1200)
    start = (payer.at + timedelta(minutes=10)).replace(microsecond=0)
    with django_capture_on_commit_callbacks(execute=True):
        assert announce(operator, item, start, per_million="3") == 302
    assert list(item.prices.order_by("valid_from").values_list("per_million", flat=True)) == [10, 5, 3]
    account = BillingAccount.objects.get(organization_id=payer.organization_id)
    minutes_before = -((payer.segments["cache-1"].started_at - start) // timedelta(minutes=1))
    assert account.storage_commitment == 5 * minutes_before + 3 * (20 - minutes_before)


def test_a_price_for_the_past_or_at_once_is_not(operator, db):
    item = PricedItem.objects.get(meter="storage")
    for start in (clock.now() - timedelta(days=1), clock.now() + timedelta(minutes=1)):
        assert announce(operator, item, start) == 200
    assert Price.objects.filter(priced_item=item).count() == 2
