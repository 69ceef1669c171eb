"""An operator drains an engine, and decides under which names it serves."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from cacheplane.access.models import AuditEntry
from cacheplane.engines import registry, slots
from cacheplane.engines.models import Engine, ServedModel
from cacheplane.errors import EngineOverloaded, NotFound

pytestmark = pytest.mark.django_db

DRAIN, UNDRAIN = "admin:engines_engine_drain", "admin:engines_engine_undrain"


def _act(client: Client, name: str, key: Any, **data: str) -> Any:
    url = reverse(name, args=[key])
    assert client.get(url).status_code == 200
    return client.post(url, {"reason": "new disk", **data})


def _lease(engine: Engine) -> slots.SlotLease | None:
    return slots.lease_for_call(engine_id=engine.pk, owner="call-1", seconds=30, wanted=None)


def test_a_drained_engine_gets_no_call_until_it_is_taken_back(operator: Client, organization: Any):
    engine = organization.engine
    assert _act(operator, DRAIN, engine.pk).status_code == 302
    assert _lease(engine) is None
    with pytest.raises(EngineOverloaded):
        registry.engine_for("moonshot-v1")
    assert _act(operator, UNDRAIN, engine.pk).status_code == 302
    assert _lease(engine) is not None
    entries = AuditEntry.objects.filter(subject=engine.name).order_by("id")
    assert [(entry.action, entry.operator, entry.reason) for entry in entries] == [
        ("engine.drain", "ada", "new disk"),
        ("engine.undrain", "ada", "new disk"),
    ]


@pytest.mark.parametrize(("action", "is_draining"), [(DRAIN, True), (UNDRAIN, False)])
def test_what_stands_so_already_is_said_in_the_form(
    operator: Client, organization: Any, action: str, is_draining: bool
):
    Engine.objects.update(is_draining=is_draining)
    answer = _act(operator, action, organization.engine.pk)
    assert answer.status_code == 200
    assert "already" in " ".join(answer.context["form"].non_field_errors())
    assert not AuditEntry.objects.filter(subject=organization.engine.name).exists()


def test_an_engine_is_not_drained_without_a_reason(operator: Client, organization: Any):
    assert _act(operator, DRAIN, organization.engine.pk, reason=" ").context["form"].errors
    organization.engine.refresh_from_db()
    assert not organization.engine.is_draining


def test_the_lists_say_which_slots_are_in_use(operator: Client, organization: Any):
    assert _lease(organization.engine) is not None
    page = operator.get(reverse("admin:engines_engine_changelist"))
    assert [row.leased_slots for row in page.context["cl"].result_list] == [1]
    rows = operator.get(reverse("admin:engines_engineslot_changelist")).context["cl"].result_list
    assert sorted(row.is_leased for row in rows) == [False, True]


def test_a_name_is_added_changed_and_withdrawn_each_with_a_reason(operator: Client, organization: Any):
    fields = {"family": "moonshot-v1", "window_tokens": "32768", "owned_by": "us"}
    add = reverse("admin:engines_servedmodel_add")
    assert operator.post(add, {"name": "moonshot-v1-64k", **fields}).status_code == 200, "no reason given"
    assert not ServedModel.objects.filter(name="moonshot-v1-64k").exists()
    named = {"name": "moonshot-v1-64k", **fields, "reason": "asked for"}
    assert operator.post(add, named).status_code == 302
    change = reverse("admin:engines_servedmodel_change", args=["moonshot-v1-64k"])
    wider = {**fields, "window_tokens": "65536", "reason": "more room"}
    assert operator.post(change, wider).status_code == 302
    assert registry.served_model("moonshot-v1-64k").window_tokens == 65_536
    answer = _act(operator, "admin:engines_servedmodel_withdraw", "moonshot-v1-64k", reason="retired")
    assert answer.status_code == 302
    with pytest.raises(NotFound):
        registry.served_model("moonshot-v1-64k")
    entries = AuditEntry.objects.filter(subject="moonshot-v1-64k").order_by("id")
    assert [entry.reason for entry in entries] == ["asked for", "more room", "retired"]


def test_a_name_with_a_wider_window_than_any_engine_is_refused_in_the_form(
    operator: Client, organization: Any
):
    answer = operator.post(
        reverse("admin:engines_servedmodel_add"),
        {"name": "m", "family": "f", "window_tokens": "131073", "owned_by": "us", "reason": "x"},
    )
    assert "window_tokens" in answer.context["adminform"].form.errors
    assert not ServedModel.objects.filter(name="m").exists()


def test_a_family_is_put_on_an_engine_and_taken_off_with_a_reason(operator: Client, organization: Any):
    add = reverse("admin:engines_modelfamily_add")
    assert operator.post(add, {"name": "aurora", "reason": "asked for"}).status_code == 302
    with pytest.raises(EngineOverloaded, match="No engine serves the model family aurora"):
        registry.engine_for("aurora")
    change = reverse("admin:engines_modelfamily_change", args=["aurora"])
    assert (
        operator.post(change, {"engine": str(organization.engine.pk), "reason": "it has room"}).status_code
        == 302
    )
    assert registry.engine_for("aurora") == organization.engine
    entries = AuditEntry.objects.filter(subject="aurora").order_by("id")
    assert [(entry.action, entry.reason) for entry in entries] == [
        ("modelfamily.add", "asked for"),
        ("modelfamily.change", "it has room"),
    ]


def test_a_name_without_a_window_picks_one_of_its_family(operator: Client, organization: Any):
    fields = {"family": "moonshot-v1", "window_tokens": "", "owned_by": "us", "reason": "asked for"}
    add = reverse("admin:engines_servedmodel_add")
    assert operator.post(add, {"name": "moonshot-v1-any", **fields}).status_code == 302
    serving = registry.serving("moonshot-v1-any")
    assert serving.fitting(8_192).model == "moonshot-v1-8k"
    assert serving.fitting(8_193).model == "moonshot-v1-32k"
    assert serving.fitting(10**9).model == "moonshot-v1-128k"
    assert registry.serving("moonshot-v1-8k").fitting(10**9).model == "moonshot-v1-8k"
