"""The operators' pages: every table opens, every action asks why, acts and is audited, no secret leaks."""

from __future__ import annotations

from decimal import Decimal
from uuid import uuid4

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.urls import reverse
from django.utils import timezone

from billing import accounts, clock
from cacheplane.access import api_keys, gates, organizations, rate_limits, tiers
from cacheplane.access.models import ApiKey, AuditEntry, FeatureGateEntry, FeatureOpening, Organization, Tier

pytestmark = pytest.mark.django_db

TABLES = [
    "tier",
    "tieroverride",
    "organization",
    "project",
    "apikey",
    "featuregate",
    "featureopening",
    "featuregateentry",
    "ratestate",
    "gateway",
    "callinflight",
    "auditentry",
]


@pytest.fixture
def operator(client):
    user = get_user_model().objects.create_superuser("ada")
    client.force_login(user)
    return client


@pytest.fixture
def new():
    return organizations.create(name="Acme", tier_slug="tier0", operator="test")


@pytest.fixture
def one_row_in_every_table(new, gateway_id):
    caller = api_keys.authenticate(new.issued_key.secret)
    rate_limits.heartbeat(gateway_id=gateway_id, host="host-a", pid=7)
    rate_limits.admit_call(caller, call_id=uuid4(), gateway_id=gateway_id, tokens=5)
    gates.open_for(
        new.organization, feature=gates.CONTEXT_CACHING, until=None, reason="guest", operator="test"
    )
    return new


def _action_url(model: str, name: str, object_id: str | None = None) -> str:
    return reverse(f"admin:access_{model}_{name}", args=[object_id] if object_id else [])


def _act(client, url: str, **data: str):
    """What the page shows first (it must change nothing), then what it answers to the filled form."""
    before = AuditEntry.objects.count()
    assert client.get(url).status_code == 200
    assert AuditEntry.objects.count() == before
    return client.post(url, data)


@pytest.mark.parametrize("model", TABLES)
def test_every_table_is_listed_searched_and_opened_without_a_secret(operator, one_row_in_every_table, model):
    row = apps.get_model("access", model).objects.first()
    listing = reverse(f"admin:access_{model}_changelist")
    for url in (listing, f"{listing}?q=acme", reverse(f"admin:access_{model}_change", args=[row.pk])):
        page = operator.get(url)
        assert page.status_code == 200
        assert one_row_in_every_table.issued_key.secret not in page.content.decode()
        assert one_row_in_every_table.issued_key.key.digest not in page.content.decode()


@pytest.mark.parametrize("model", ["auditentry", "ratestate", "gateway", "callinflight", "apikey"])
def test_what_is_read_only_cannot_be_added_changed_or_deleted(operator, one_row_in_every_table, model):
    row = apps.get_model("access", model).objects.first()
    assert operator.get(reverse(f"admin:access_{model}_add")).status_code == 403
    assert operator.post(reverse(f"admin:access_{model}_change", args=[row.pk]), {}).status_code == 403
    assert (
        operator.post(reverse(f"admin:access_{model}_delete", args=[row.pk]), {"post": "yes"}).status_code
        == 403
    )


def test_an_organization_is_made_with_its_key_shown_once(operator):
    answer = _act(
        operator,
        _action_url("organization", "create_organization"),
        name="Acme",
        tier="tier5",
        currency="CNY",
        kind="sandbox",
    )
    organization = Organization.objects.get()
    secret = answer.context["issued"].secret
    assert secret in answer.content.decode()
    assert "no-store" in answer["Cache-Control"]
    assert (tiers.tier_now(organization).slug, organization.kind) == ("tier5", "sandbox")
    assert api_keys.authenticate(secret).organization_id == organization.id
    assert secret not in str(list(operator.session.items()))


def test_a_key_is_issued_and_revoked(operator, new):
    url = _action_url("organization", "issue_key", new.organization.id)
    answer = _act(operator, url, project=new.project.id, name="laptop", reason="for Bob")
    key = ApiKey.objects.get(name="laptop")
    assert answer.context["issued"].secret in answer.content.decode()
    answer = _act(operator, _action_url("apikey", "revoke", key.id), reason="Bob left")
    assert answer.status_code == 302
    key.refresh_from_db()
    assert key.revoked_at is not None
    last = AuditEntry.objects.first()
    assert (last.action, last.operator, last.reason) == ("api_key.revoke", "ada", "Bob left")


def test_a_key_of_another_organizations_project_cannot_be_issued(operator, new):
    other = organizations.create(name="Other", tier_slug="tier0", operator="test")
    url = _action_url("organization", "issue_key", new.organization.id)
    answer = operator.post(url, {"project": other.project.id, "name": "laptop", "reason": "x"})
    assert "project" in answer.context["form"].errors
    assert not ApiKey.objects.filter(name="laptop").exists()


def test_a_key_is_rotated(operator, new):
    url = _action_url("apikey", "rotate", new.issued_key.key.id)
    answer = _act(operator, url, grace_seconds="60", reason="yearly")
    assert api_keys.authenticate(answer.context["issued"].secret).organization_id == new.organization.id
    assert api_keys.authenticate(new.issued_key.secret).organization_id == new.organization.id


def test_the_gate_is_opened_and_its_entry_ended(operator, new):
    caller = api_keys.authenticate(new.issued_key.secret)
    url = _action_url("organization", "open_gate", new.organization.id)
    assert _act(operator, url, feature="context_caching", until="", reason="beta guest").status_code == 302
    gates.require(caller, feature=gates.CONTEXT_CACHING, at=timezone.now())
    entry = FeatureGateEntry.objects.get()
    assert (entry.created_by, entry.ends_at, entry.reason) == ("ada", None, "beta guest")
    _act(operator, _action_url("featuregateentry", "end_entry", str(entry.pk)), reason="over")
    entry.refresh_from_db()
    assert entry.ends_at <= timezone.now()


def test_a_gate_opened_until_the_past_is_refused_in_the_form(operator, new):
    url = _action_url("organization", "open_gate", new.organization.id)
    answer = operator.post(url, {"feature": "context_caching", "until": "2024-01-01T00:00", "reason": "x"})
    assert answer.context["form"].errors == {"until": ["This lies in the past."]}
    assert not FeatureGateEntry.objects.exists()


def test_an_organization_is_suspended_and_resumed(operator, new):
    for name, state in (("suspend", "suspended"), ("resume", "active")):
        _act(operator, _action_url("organization", name, new.organization.id), reason="because")
        new.organization.refresh_from_db()
        assert new.organization.state == state
    answer = operator.post(_action_url("organization", "resume", new.organization.id), {"reason": "again"})
    assert "is active already" in answer.content.decode()


def test_without_a_reason_nothing_happens(operator, new):
    before = AuditEntry.objects.count()
    for name in ("suspend", "set_tier", "open_gate", "close_gate", "recharge", "issue_key"):
        answer = operator.post(_action_url("organization", name, new.organization.id), {"reason": "  "})
        assert "reason" in answer.context["form"].errors
    assert AuditEntry.objects.count() == before


def test_a_recharge_clicked_twice_is_money_once(operator, new):
    url = _action_url("organization", "recharge", new.organization.id)
    key = operator.get(url).context["form"]["idempotency_key"].value()
    for _ in range(2):
        data = {"amount": "100.5", "purse": "cash", "reason": "transfer 77", "idempotency_key": str(key)}
        assert operator.post(url, data).status_code == 302
    assert accounts.balance(new.organization.id, clock.now()).cash == Decimal("100.5")
    assert AuditEntry.objects.filter(action="organization.recharge", operator="ada").exists()


def test_a_tiers_limits_are_edited_with_a_reason_and_audited(operator):
    tier = Tier.objects.get(slug="tier0")
    fields = [field.name for field in Tier._meta.fields if getattr(tier, field.name) is not None]
    data = {name: str(getattr(tier, name)) for name in fields} | {"concurrency": "2", "reason": "launch week"}
    assert operator.post(reverse("admin:access_tier_change", args=["tier0"]), data).status_code == 302
    assert Tier.objects.get(slug="tier0").concurrency == 2
    entry = AuditEntry.objects.get(action="tier.change")
    assert (entry.subject, entry.reason) == ("tier0", "launch week")
    assert entry.detail == {"concurrency": {"from": 1, "to": 2}}


def test_an_opening_is_added_for_a_lower_tier(operator):
    data = {
        "gate": "context_caching",
        "minimum_tier": "tier3",
        "opens_at_0": "2024-08-01",
        "opens_at_1": "00:00:00",
        "reason": "second wave",
    }
    assert operator.post(reverse("admin:access_featureopening_add"), data).status_code == 302
    assert FeatureOpening.objects.filter(minimum_tier_id="tier3").exists()
    assert AuditEntry.objects.get(action="featureopening.add").reason == "second wave"


def test_a_colleague_who_may_only_look_cannot_act(client, new):
    viewer = get_user_model().objects.create_user("bob", is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client.force_login(viewer)
    assert (
        client.get(reverse("admin:access_organization_change", args=[new.organization.id])).status_code == 200
    )
    for name in ("suspend", "recharge", "issue_key", "open_gate"):
        url = _action_url("organization", name, new.organization.id)
        assert client.post(url, {"reason": "x"}).status_code == 403
    assert (
        client.post(_action_url("apikey", "revoke", new.issued_key.key.id), {"reason": "x"}).status_code
        == 403
    )


def test_nobody_acts_without_logging_in(client, new):
    url = _action_url("organization", "suspend", new.organization.id)
    assert client.post(url, {"reason": "x"}).status_code == 302
    new.organization.refresh_from_db()
    assert new.organization.state == "active"


def test_an_action_on_nothing_is_not_found(operator):
    assert operator.get(_action_url("organization", "suspend", "org-nobody")).status_code == 404
