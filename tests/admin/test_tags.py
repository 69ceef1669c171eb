"""Operators find tags, see where they lead, and what they led to before."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import transaction
from django.test import Client
from django.urls import reverse

from billing import accounts
from cacheplane.caching import tags
from cacheplane.caching.models import CacheObject

pytestmark = pytest.mark.django_db


def _bind(row: CacheObject, tag: str) -> None:
    with transaction.atomic():
        at = accounts.lock(row.organization_id).locked_at
        tags.point(row.organization_id, tag, cache_id=row.id, at=at, actor="test")


def _listed(operator: Client, table: str, query: str) -> list[str]:
    page = operator.get(reverse(f"admin:caching_{table}_changelist") + f"?q={query}")
    assert page.status_code == 200
    return [str(row) for row in page.context["cl"].result_list]


def test_a_tag_is_found_by_its_name_its_object_and_its_owner(operator: Client, organization: Any, fill: Any):
    fill("Bolt")
    row = organization.pending()
    _bind(row, "release")
    for query in ("releas", row.id, organization.organization_id):
        assert _listed(operator, "cachetag", query) == [f"release → {row.id}"]


def test_the_page_of_an_object_names_its_tags(operator: Client, organization: Any):
    first, second = organization.pending(), organization.pending()
    for tag in ("release", "beta"):
        _bind(first, tag)
    page = operator.get(reverse("admin:caching_cacheobject_change", args=[first.pk])).content.decode()
    assert "beta, release" in page
    assert (
        "release"
        not in operator.get(reverse("admin:caching_cacheobject_change", args=[second.pk])).content.decode()
    )


def test_a_history_is_found_when_the_tag_is_gone(operator: Client, organization: Any):
    row = organization.pending()
    _bind(row, "release")
    with transaction.atomic():
        at = accounts.lock(row.organization_id).locked_at
        tags.release_all_of(row.organization_id, row.id, at=at, actor="test")
    assert _listed(operator, "cachetag", "release") == []
    assert _listed(operator, "cachetagchange", row.id) == ["release 1 released", "release 1 bound"]
