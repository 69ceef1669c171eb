"""An operator's actions on cache objects: each asks why, acts once and is audited, or says why it did not."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from billing import accounts, clock
from billing.models import MeterEvent
from cacheplane.access.models import AuditEntry
from cacheplane.caching.models import ACTIVE, ERROR, EXPIRED, PENDING, CacheObject, CacheObjectEvent
from cacheplane.kv.models import KVState

pytestmark = pytest.mark.django_db


def _url(action: str, row: CacheObject) -> str:
    return reverse(f"admin:caching_cacheobject_{action}", args=[row.pk])


def _act(client: Client, action: str, row: CacheObject, **data: Any) -> Any:
    """The page that asks first, which changes nothing; then what it answers to the filled form."""
    url = _url(action, row)
    before = CacheObject.objects.filter(pk=row.pk).values().get()
    assert client.get(url).status_code == 200
    assert CacheObject.objects.filter(pk=row.pk).values().get() == before
    return client.post(url, {"reason": "the customer asked", **data})


def _audited(row: CacheObject) -> list[tuple[str, str, str, str | None]]:
    entries = AuditEntry.objects.filter(subject=row.pk)
    return [(entry.action, entry.operator, entry.reason, entry.organization_id) for entry in entries]


def _entry(action: str, row: CacheObject) -> tuple[str, str, str, str]:
    return (action, "ada", "the customer asked", row.organization_id)


def _complaint(answer: Any) -> str:
    assert answer.status_code == 200, "a refusal shows the form again"
    return " ".join(answer.context["form"].non_field_errors())


def _creations(row: CacheObject) -> int:
    return MeterEvent.objects.filter(meter="creation", subject=row.pk).count()


@pytest.mark.parametrize("state", ["active", "pending"])
def test_an_object_is_expired_now(operator: Client, organization: Any, state: str):
    row = getattr(organization, state)()
    assert _act(operator, "expire", row).status_code == 302
    row.refresh_from_db()
    assert (row.status, row.kv_state_id, row.segment_id, row.hold_reference) == (EXPIRED, None, None, None)
    assert row.expired_at <= clock.now()
    assert not KVState.objects.filter(doomed_at__isnull=True).exists()
    assert _audited(row) == [_entry("cache_object.expire", row)]
    assert CacheObjectEvent.objects.filter(cache_id=row.pk, kind="expired", actor="ada").count() == 1


@pytest.mark.parametrize("state", ["expired", "failed"])
def test_what_has_ended_is_not_expired_again_and_the_form_says_why(
    operator: Client, organization: Any, state: str
):
    row = getattr(organization, state)()
    assert "can be expired" in _complaint(_act(operator, "expire", row))
    assert _audited(row) == []


@pytest.mark.parametrize("state", ["active", "pending"])
def test_an_object_that_lives_is_extended_from_now_on(operator: Client, organization: Any, state: str):
    row = getattr(organization, state)(ttl_seconds=60)
    assert _act(operator, "extend", row, ttl_seconds="7200").status_code == 302
    row.refresh_from_db()
    assert row.status == state
    assert timedelta(seconds=7_100) < row.expired_at - clock.now() <= timedelta(seconds=7_200)
    assert _audited(row) == [_entry("cache_object.extend", row)]
    assert AuditEntry.objects.get(subject=row.pk).detail == {"ttl_seconds": 7_200}


@pytest.mark.parametrize("action", ["extend", "recompute"])
@pytest.mark.parametrize("state", ["expired", "failed"])
def test_an_ended_object_is_revived_through_pending(
    operator: Client, organization: Any, state: str, action: str
):
    row = getattr(organization, state)()
    assert _act(operator, action, row, ttl_seconds="600").status_code == 302
    row.refresh_from_db()
    assert (row.status, row.creation_fee_due, row.attempts) == (PENDING, True, 0)
    assert row.hold_reference is not None
    assert _audited(row) == [_entry(f"cache_object.{action}", row)]


def test_an_active_object_is_recomputed_free_of_charge_and_keeps_its_end(operator: Client, organization: Any):
    row = organization.active()
    ends, kv_id = row.expired_at, row.kv_state_id
    assert _act(operator, "recompute", row, ttl_seconds="600").status_code == 302
    row.refresh_from_db()
    assert (row.status, row.creation_fee_due, row.expired_at) == (PENDING, False, ends)
    assert KVState.objects.get(id=kv_id).doomed_at is not None
    assert _creations(row) == 1
    assert _audited(row) == [_entry("cache_object.recompute", row)]


def test_a_pending_object_is_not_recomputed_and_the_form_says_why(operator: Client, organization: Any):
    row = organization.pending()
    assert "pending" in _complaint(_act(operator, "recompute", row, ttl_seconds="600"))
    assert _audited(row) == []


@pytest.mark.parametrize("action", ["extend", "recompute"])
def test_a_revival_that_cannot_be_paid_is_refused_in_the_form(
    operator: Client, organization: Any, action: str
):
    row = organization.failed()
    CacheObject.objects.filter(pk=row.pk).update(tokens=2_000_000_000)
    at = clock.now()
    free = accounts.balance(row.organization_id, at).available
    assert free == Decimal("200")
    assert "is needed" in _complaint(_act(operator, action, row, ttl_seconds="600"))
    row.refresh_from_db()
    assert row.status == ERROR
    assert accounts.balance(row.organization_id, at).available == free
    assert _audited(row) == []


@pytest.mark.parametrize("ttl_seconds", ["0", "-1", "", "1.5", "2592001", "9" * 40])
def test_a_lifetime_that_the_tier_does_not_allow_is_refused_in_the_form(
    operator: Client, organization: Any, ttl_seconds: str
):
    row = organization.active()
    answer = _act(operator, "extend", row, ttl_seconds=ttl_seconds)
    assert "ttl_seconds" in answer.context["form"].errors
    assert _audited(row) == []


@pytest.mark.parametrize("action", ["expire", "extend", "recompute"])
@pytest.mark.parametrize("reason", ["", "   ", "x" * 501])
def test_nothing_happens_without_a_reason(operator: Client, organization: Any, action: str, reason: str):
    row = organization.active()
    answer = _act(operator, action, row, ttl_seconds="600", reason=reason)
    assert answer.status_code == 200 and answer.context["form"].errors
    row.refresh_from_db()
    assert row.status == ACTIVE
    assert _audited(row) == []


@pytest.mark.parametrize("action", ["expire", "extend", "recompute"])
def test_an_object_that_is_gone_is_a_404(operator: Client, organization: Any, action: str):
    row = organization.pending()
    url = _url(action, row)
    CacheObject.objects.filter(pk=row.pk).delete()
    assert operator.get(url).status_code == 404
    assert operator.post(url, {"reason": "x", "ttl_seconds": "60"}).status_code == 404


@pytest.mark.parametrize("action", ["expire", "extend", "recompute"])
def test_who_may_only_look_may_not_act(client: Client, organization: Any, action: str):
    row = organization.active()
    reader = get_user_model().objects.create_user("rita", is_staff=True)
    reader.user_permissions.add(Permission.objects.get(codename="view_cacheobject"))
    client.force_login(reader)
    page = client.get(reverse("admin:caching_cacheobject_change", args=[row.pk]))
    assert page.status_code == 200
    assert _url(action, row) not in page.content.decode()
    assert client.post(_url(action, row), {"reason": "x", "ttl_seconds": "60"}).status_code == 403
    row.refresh_from_db()
    assert row.status == ACTIVE


def test_a_post_without_the_forms_token_is_refused(organization: Any):
    row = organization.active()
    client = Client(enforce_csrf_checks=True)
    client.force_login(get_user_model().objects.create_superuser("eve"))
    assert client.post(_url("expire", row), {"reason": "x"}).status_code == 403
    row.refresh_from_db()
    assert row.status == ACTIVE


def test_the_list_shows_the_status_of_now_and_not_the_one_written_last(operator: Client, organization: Any):
    over, alive = organization.active(), organization.active()
    CacheObject.objects.filter(pk=over.pk).update(expired_at=clock.now() - timedelta(seconds=1))
    listing = reverse("admin:caching_cacheobject_changelist")
    shown = {row.pk: row.status_at(row.read_at) for row in operator.get(listing).context["cl"].result_list}
    assert shown == {over.pk: EXPIRED, alive.pk: ACTIVE}
    for status, expected in ((EXPIRED, [over.pk]), (ACTIVE, [alive.pk]), (PENDING, []), (ERROR, [])):
        found = operator.get(listing, {"status": status}).context["cl"].result_list
        assert [row.pk for row in found] == expected


def test_texts_are_folded_away_escaped_and_cut(operator: Client, organization: Any):
    row = organization.pending()
    content = "<script>alert(1)</script>" + "灯塔" * 20_000
    CacheObject.objects.filter(pk=row.pk).update(messages=[{"role": "system", "content": content}])
    page = operator.get(reverse("admin:caching_cacheobject_change", args=[row.pk])).content.decode()
    assert "<details>" in page and "&lt;script&gt;alert(1)" in page
    assert "<script>alert(1)" not in page
    assert page.count("灯塔") < 20_000


def test_the_list_reads_no_texts(operator: Client, organization: Any):
    organization.pending()
    listing = operator.get(reverse("admin:caching_cacheobject_changelist"))
    assert {"messages", "tools"} <= listing.context["cl"].result_list[0].get_deferred_fields()


def test_the_page_of_an_object_leads_to_what_was_counted_for_it(operator: Client, organization: Any):
    row, _other = organization.active(), organization.active()
    page = operator.get(reverse("admin:caching_cacheobject_change", args=[row.pk])).content.decode()
    url = f"{reverse('admin:billing_meterevent_changelist')}?q={row.pk}"
    assert url in page
    shown = operator.get(url).context["cl"].result_list
    assert [(event.meter, event.subject) for event in shown] == [("creation", row.pk)]
