"""Operators' logins: each change of who may do what stands in the audit log, and no password does."""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.urls import reverse

from cacheplane.access.models import AuditEntry

pytestmark = pytest.mark.django_db

PASSWORD = "a-long-enough-passphrase-7"


def test_a_new_login_and_its_new_password_are_audited_without_the_password(operator: Client):
    made = operator.post(
        reverse("admin:auth_user_add"),
        {"username": "grace", "password1": PASSWORD, "password2": PASSWORD, "usable_password": "true"},
    )
    assert made.status_code == 302
    grace = get_user_model().objects.get(username="grace")
    changed = operator.post(
        reverse("admin:auth_user_password_change", args=[grace.pk]),
        {"password1": PASSWORD + "x", "password2": PASSWORD + "x", "usable_password": "true"},
    )
    assert changed.status_code == 302
    entries = AuditEntry.objects.filter(subject="grace").order_by("id")
    assert [(entry.action, entry.operator) for entry in entries] == [
        ("operator.add", "ada"),
        ("operator.change", "ada"),
    ]
    assert PASSWORD not in "".join(str(entry.detail) for entry in entries)


def test_a_deleted_login_is_audited(operator: Client):
    gone = get_user_model().objects.create_user("gone")
    operator.post(reverse("admin:auth_user_delete", args=[gone.pk]), {"post": "yes"})
    assert not get_user_model().objects.filter(username="gone").exists()
    assert AuditEntry.objects.filter(subject="gone", action="operator.delete", operator="ada").count() == 1


def test_login_without_a_destination_leads_to_the_admin(client: Client):
    get_user_model().objects.create_superuser("ada", password=PASSWORD)
    answer = client.post("/admin/login/", {"username": "ada", "password": PASSWORD})
    assert answer.status_code == 302 and answer["Location"] == reverse("admin:index")
