"""Every table can be listed, searched and opened, and a longer list costs no more queries."""

from __future__ import annotations

from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.db import connection
from django.db.models import Model
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

pytestmark = pytest.mark.django_db

OURS = ("access", "billing", "caching", "engines", "events", "kv")
QUERIES_MAX = 24
"""Session, user, counts, filters, the date hierarchy, a sum for each system account; the rows are one query."""

registered = sorted(
    (model for model in admin.site._registry if model._meta.app_label in OURS),
    key=lambda model: model._meta.label,
)
each_table = pytest.mark.parametrize("model", registered, ids=lambda model: model._meta.label)
MONEY = ["ledgerentry", "ledgeraccount", "meterevent", "hold", "storagesegment", "storageline", "invoice"]


def _url(model: type[Model], view: str, *args: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{view}", args=args)


def test_no_table_of_ours_is_left_out():
    ours = {model for model in apps.get_models() if model._meta.app_label in OURS}
    assert {model._meta.label for model in ours - set(registered)} == set()


@each_table
def test_it_is_listed_searched_opened_and_added_to_as_its_permission_says(
    operator: Client, fill: Any, rf: Any, model: type[Model]
):
    made = fill("Acme")
    row = model._default_manager.first()
    assert row is not None, "the instance has nothing in this table, so this test would prove nothing"
    listing = _url(model, "changelist")
    page = operator.get(listing)
    assert page.status_code == 200
    assert page.context["cl"].result_count > 0
    secret = made.new.issued_key.secret
    for url in (listing, f"{listing}?q=acme", f"{listing}?o=1", _url(model, "change", row.pk)):
        opened = operator.get(url)
        assert opened.status_code == 200, url
        assert secret not in opened.content.decode()
    request = rf.get("/")
    request.user = page.context["user"]
    may_add = admin.site._registry[model].has_add_permission(request)
    assert operator.get(_url(model, "add")).status_code == (200 if may_add else 403)


@each_table
def test_a_longer_list_costs_no_more_queries(
    operator: Client, fill: Any, model: type[Model], django_assert_max_num_queries: Any
):
    fill("Acme")
    listing = _url(model, "changelist")
    operator.get(listing)  # what is looked up once per process is looked up now
    with CaptureQueriesContext(connection) as few:
        operator.get(listing)
    fill("Bolt")
    with django_assert_max_num_queries(min(len(few), QUERIES_MAX)):
        operator.get(listing)


@pytest.mark.parametrize("name", MONEY)
def test_money_is_read_only_even_for_a_superuser(operator: Client, fill: Any, name: str):
    fill("Acme")
    model = apps.get_model("billing", name)
    row = model.objects.first()
    before = list(model.objects.values())
    assert operator.get(_url(model, "add")).status_code == 403
    assert operator.post(_url(model, "add"), {}).status_code == 403
    assert operator.post(_url(model, "change", row.pk), {"amount": "1"}).status_code == 403
    assert operator.post(_url(model, "delete", row.pk), {"post": "yes"}).status_code == 403
    selected = {"action": "delete_selected", "_selected_action": str(row.pk), "post": "yes"}
    operator.post(_url(model, "changelist"), selected)
    assert list(model.objects.values()) == before


@pytest.mark.parametrize(
    "label",
    [
        *("caching.CacheObject", "caching.CacheObjectEvent", "caching.CacheTag", "caching.CacheTagChange"),
        *("caching.IdempotencyKey", "kv.KVState", "engines.EngineSlot"),
    ],
)
def test_what_the_system_writes_is_read_only_even_for_a_superuser(operator: Client, fill: Any, label: str):
    fill("Acme")
    model = apps.get_model(label)
    row = model.objects.first()
    assert operator.get(_url(model, "add")).status_code == 403
    assert operator.post(_url(model, "change", row.pk), {"status": "active"}).status_code == 403
    assert operator.post(_url(model, "delete", row.pk), {"post": "yes"}).status_code == 403


def test_the_first_page_of_the_admin_asks_for_a_login_and_opens_with_one(client: Client, operator: Client):
    assert operator.get(reverse("admin:index")).status_code == 200
    operator.logout()
    assert operator.get(reverse("admin:index")).status_code == 302
