"""What operators do with webhooks: each asks for a reason and is audited; a secret is shown once."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.urls import reverse

from cacheplane.access.models import AuditEntry
from cacheplane.events import endpoints
from cacheplane.events.models import DELIVERED, PENDING, Delivery, WebhookEndpoint

pytestmark = pytest.mark.django_db

URL = "https://hooks.example.com/x"


def act(client: Client, name: str, row: object = None, *, model: str = "webhookendpoint", **data: object):
    args = [row.pk] if row is not None else []
    return client.post(reverse(f"admin:events_{model}_{name}", args=args), {"reason": "asked for"} | data)


@pytest.fixture
def endpoint(organization) -> WebhookEndpoint:
    made = endpoints.create(organization.organization_id, url=URL, events=["cache.active"], actor="ak-1")
    return made.endpoint


def secret_in(page: str) -> str:
    found = re.search(r"whsec_[A-Za-z0-9+/=]+", page.replace("&#x3D;", "="))
    assert found is not None
    return found[0]


def test_an_endpoint_is_made_for_an_organization_and_its_secret_shown_once(
    operator: Client, organization
) -> None:
    page = act(
        operator,
        "create_endpoint",
        organization=organization.organization_id,
        url=URL,
        events=["cache.active", "balance.low"],
    )
    assert page.status_code == 200
    row = WebhookEndpoint.objects.get()
    assert (row.organization_id, row.events, row.created_by) == (
        organization.organization_id,
        ["balance.low", "cache.active"],
        "ada",
    )
    secret = secret_in(page.content.decode())
    entry = AuditEntry.objects.get(action="webhook_endpoint.create")
    assert (entry.subject, entry.reason, entry.operator) == (row.id, "asked for", "ada")
    for view in ("changelist", "change"):
        url = reverse(f"admin:events_webhookendpoint_{view}", args=[row.pk] if view == "change" else [])
        content = operator.get(url).content.decode()
        assert secret not in content and row.secret_salt not in content


def test_a_url_that_is_refused_leaves_nothing_behind(operator: Client, organization) -> None:
    page = act(
        operator,
        "create_endpoint",
        organization=organization.organization_id,
        url="https://127.0.0.1/",
        events=["cache.active"],
    )
    assert "takes a public address" in page.content.decode()
    assert not WebhookEndpoint.objects.exists()


def test_each_action_acts_and_is_audited(operator: Client, endpoint: WebhookEndpoint) -> None:
    salt = endpoint.secret_salt
    assert secret_in(act(operator, "rotate_secret", endpoint).content.decode())
    assert act(operator, "send_test", endpoint).status_code == 302
    assert Delivery.objects.get().state == PENDING
    assert act(operator, "disable", endpoint).status_code == 302
    endpoint.refresh_from_db()
    assert endpoint.disabled_at is not None and endpoint.secret_salt != salt
    assert act(operator, "enable", endpoint).status_code == 302
    endpoint.refresh_from_db()
    assert endpoint.disabled_at is None
    verbs = AuditEntry.objects.filter(subject=endpoint.id).order_by("id").values_list("action", flat=True)
    assert list(verbs) == [f"webhook_endpoint.{verb}" for verb in ("rotate", "test", "disable", "enable")]


def test_a_delivery_is_sent_again(operator: Client, endpoint: WebhookEndpoint) -> None:
    row = endpoints.send_test(endpoint.organization_id, endpoint.id)
    Delivery.objects.update(state=DELIVERED, next_at=None, tries=1)
    assert act(operator, "send_again", row, model="delivery").status_code == 302
    row.refresh_from_db()
    assert (row.state, row.tries, row.next_at is not None) == (PENDING, 0, True)
    assert AuditEntry.objects.get(action="webhook_delivery.send_again").subject == row.id


@pytest.mark.parametrize("name", ["create_endpoint", "rotate_secret", "send_test", "disable", "enable"])
def test_without_a_reason_nothing_happens(operator: Client, endpoint: WebhookEndpoint, name: str) -> None:
    before = WebhookEndpoint.objects.values().get()
    row = None if name == "create_endpoint" else endpoint
    assert act(operator, name, row, reason=" ").status_code == 200
    assert WebhookEndpoint.objects.values().get() == before
    assert not Delivery.objects.exists()


def test_who_may_only_look_may_not_act(client: Client, endpoint: WebhookEndpoint, fill: Callable) -> None:
    client.force_login(get_user_model().objects.create_user("bob", is_staff=True))
    for name in ("rotate_secret", "send_test", "disable", "enable"):
        assert act(client, name, endpoint).status_code == 403
