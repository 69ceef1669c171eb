"""The operators' page on which a price list is tried on a month, and announced; and money's pages that earn tiers."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from billing import charging, clock, holds, previews
from billing.accounts import lock
from billing.models import LedgerEntry, Price, PricedItem
from cacheplane.access import organizations, tiers
from cacheplane.access.models import AuditEntry, Organization, TierOverride

pytestmark = pytest.mark.django_db

DRAFT = "meter,model,tier,per_million\nprompt,moonshot-v1-8k,,6\nprompt,moonshot-v1-8k,tier3,3\n"


@pytest.fixture
def url() -> str:
    return reverse("admin:billing_price_preview")


@pytest.fixture
def used(organization: Any) -> Any:
    """1,000 prompt tokens, used now."""
    account = lock(organization.organization_id)
    reference, at = uuid4(), account.locked_at
    holds.place(account, reference=reference, kind="call", subject="x", amount=Decimal(1), at=at)
    charging.charge_call(
        account,
        hold_reference=reference,
        call_id="call-1",
        subject=None,
        family="moonshot-v1",
        model="moonshot-v1-8k",
        prompt_tokens=1000,
        cached_tokens=0,
        completion_tokens=0,
        started_at=at,
        at=at,
        api_key_id="",
        request_id="",
    )
    return organization


def test_a_draft_is_tried_and_nothing_is_announced(operator: Client, used: Any, url: str):
    assert operator.get(url).status_code == 200
    before = Price.objects.count()
    page = operator.post(
        url, {"draft": DRAFT, "month": f"{clock.now().astimezone(previews.CALENDAR):%Y-%m}", "try": ""}
    )
    shown = page.content.decode()
    assert page.status_code == 200 and not page.context["form"].errors
    assert "-0.006000000" in shown and used.organization_id in shown
    assert (Price.objects.count(), AuditEntry.objects.filter(action="price.announce").count()) == (before, 0)


def test_it_is_announced_with_a_reason_and_audited(operator: Client, url: str):
    start = (clock.now() + timedelta(hours=1)).replace(second=0, microsecond=0)
    given = {"draft": DRAFT, "month": "2024-07", "announce": "", "valid_from": f"{start:%Y-%m-%dT%H:%M}"}
    refused = operator.post(url, given)
    assert "reason" in refused.context["form"].errors
    assert operator.post(url, given | {"reason": "the new list"}).status_code == 302
    announced = Price.objects.filter(valid_from=start).order_by("per_million")
    assert [(price.per_million, price.priced_item.tier) for price in announced] == [(3, "tier3"), (6, "")]
    entry = AuditEntry.objects.get(action="price.announce")
    assert (entry.operator, entry.reason, len(entry.detail["prices"])) == ("ada", "the new list", 2)


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"draft": "meter,model,per_million\ncalls,m,1"}, "meter got"),
        ({"month": "July"}, "2024-07"),
        ({"valid_from": "2024-01-01T00:00"}, "seconds ahead"),
        ({"draft": DRAFT.replace("tier3", "tier33")}, "No tier is called tier33"),
    ],
)
def test_what_is_wrong_stays_on_the_page_and_announces_nothing(operator: Client, url: str, mistake, said):
    start = clock.now() + timedelta(hours=1)
    given = {"draft": DRAFT, "month": "2024-07", "announce": "", "reason": "x"}
    before = Price.objects.count()
    answer = operator.post(url, given | {"valid_from": f"{start:%Y-%m-%dT%H:%M}"} | mistake)
    assert said in str(answer.context["form"].errors)
    assert Price.objects.count() == before
    assert not PricedItem.objects.exclude(tier="").exists()


def test_who_may_only_look_at_prices_announces_none(client: Client, url: str):
    viewer = get_user_model().objects.create_user("bob", is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client.force_login(viewer)
    assert client.post(url, {"draft": DRAFT, "month": "2024-07"}).status_code in (302, 403)


def test_a_single_price_that_is_announced_is_audited_too_and_says_why(operator: Client):
    item = PricedItem.objects.get(meter="call")
    start = (clock.now() + timedelta(hours=1)).replace(microsecond=0)
    given = {"priced_item": item.pk, "per_million": "3"}
    given |= {"valid_from_0": f"{start:%Y-%m-%d}", "valid_from_1": f"{start:%H:%M:%S}"}
    refused = operator.post(reverse("admin:billing_price_add"), given | {"reason": " "})
    assert (refused.status_code, set(refused.context["adminform"].form.errors)) == (200, {"reason"})
    assert not AuditEntry.objects.filter(action="price.announce").exists()
    given |= {"reason": "Dearer disks."}
    assert operator.post(reverse("admin:billing_price_add"), given).status_code == 302
    entry = AuditEntry.objects.get(action="price.announce")
    assert (entry.subject, entry.detail["per_million"]) == ("call moonshot-v1 CNY", "3")
    assert entry.reason == "Dearer disks."


def test_a_tiers_price_is_ended_with_a_reason_and_one_for_all_is_not(operator: Client):
    now = clock.now().replace(second=0, microsecond=0)
    previews.announce(previews.parse(DRAFT), valid_from=now + timedelta(hours=1))
    price = Price.objects.get(priced_item__tier="tier3")
    url = reverse("admin:billing_price_end", args=[price.pk])
    given = {"ends_at": f"{now + timedelta(hours=2):%Y-%m-%dT%H:%M}", "reason": "the campaign is over"}
    assert operator.get(url).status_code == 200
    assert operator.post(url, given).status_code == 302
    price.refresh_from_db()
    assert price.valid_to == now + timedelta(hours=2)
    assert AuditEntry.objects.get(action="price.end").reason == "the campaign is over"
    assert "has an end already" in operator.post(url, given).content.decode()
    other = Price.objects.get(priced_item__tier="", priced_item__meter="call")
    refused = operator.post(reverse("admin:billing_price_end", args=[other.pk]), given)
    assert "does not just end" in refused.content.decode()


# --- Tiers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def acme() -> Organization:
    return organizations.create(name="Acme", operator="test").organization


def test_a_recharge_on_moneys_own_page_earns_the_tier_and_its_reversal_loses_it(
    operator: Client, acme: Organization
):
    url = reverse("admin:billing_billingaccount_recharge", args=[acme.pk])
    key = str(operator.get(url).context["form"]["key"].value())
    given = {"amount": "600", "purse": "cash", "reason": "transfer 7", "key": key}
    for _ in range(2):
        assert operator.post(url, given).status_code == 302
    acme.refresh_from_db()
    assert acme.tier_id == "tier3"
    assert AuditEntry.objects.filter(action="organization.recharge", reason="transfer 7").count() == 1
    entry = LedgerEntry.objects.get(organization=acme)
    undo = reverse("admin:billing_ledgerentry_correct", args=[entry.pk])
    assert operator.post(undo, {"reason": "bounced"}).status_code == 302
    acme.refresh_from_db()
    assert acme.tier_id == "tier0"


def test_the_organizations_page_shows_what_is_earned_what_was_given_and_what_holds(
    operator: Client, acme: Organization
):
    until = (clock.now() + timedelta(days=30)).replace(second=0, microsecond=0)
    url = reverse("admin:access_organization_set_tier", args=[acme.pk])
    given = {"tier": "tier4", "until": f"{until:%Y-%m-%dT%H:%M}", "reason": "pilot"}
    assert operator.post(url, given).status_code == 302
    assert TierOverride.objects.get().ends_at == until
    page = operator.get(reverse("admin:access_organization_change", args=[acme.pk])).content.decode()
    assert f"tier4 until {until:%Y-%m-%d %H:%M} UTC: pilot" in page
    assert "0.000000000" in page and "tier0" in page
    end = reverse("admin:access_organization_end_tier_override", args=[acme.pk])
    assert operator.post(end, {"reason": "over"}).status_code == 302
    assert tiers.tier_now(acme).slug == "tier0"
    assert "as earned" in operator.post(end, {"reason": "again"}).content.decode()


def test_an_organization_without_a_tier_given_earns_its_own(operator: Client):
    url = reverse("admin:access_organization_create_organization")
    assert operator.post(url, {"name": "Acme", "currency": "CNY", "kind": "standard"}).status_code == 200
    assert not TierOverride.objects.exists()
    refused = operator.post(url, {"name": "Acme", "currency": "USD", "kind": "standard"})
    assert "there is no USD price for" in refused.content.decode()
    assert Organization.objects.count() == 1
