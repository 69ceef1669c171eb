"""Callers of each tier, and many of them at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.apps import apps
from django.db import connection, transaction

from cacheplane.access import api_keys
from cacheplane.access.callers import Caller
from cacheplane.access.models import Organization, Project, Tier
from cacheplane.errors import ControlPlaneError

THREADS_MAX = 32


@pytest.fixture(autouse=True)
def _no_caller_is_remembered():
    """Another test's callers live in this process's cache, and their organizations are gone."""
    api_keys._cache.clear()
    yield
    api_keys._cache.clear()


@pytest.fixture
def organization(db) -> Organization:
    return Organization.objects.create(name="Acme", tier_id="tier0")


@pytest.fixture
def project(organization) -> Project:
    return Project.objects.create(organization=organization, name="default")


@pytest.fixture
def issued(project) -> api_keys.IssuedKey:
    return api_keys.issue(project=project, name="laptop", operator="test")


@pytest.fixture
def make_caller() -> Callable[..., Caller]:
    """Makes a caller of a new organization; keyword arguments replace limits of its tier.

    Asks for no database itself: the test says whether its rows are committed.
    """

    def make(tier_slug: str = "tier0", **limits: int | None) -> Caller:
        organization = Organization.objects.create(name="Acme", tier_id=tier_slug)
        project = Project.objects.create(organization=organization, name="default")
        secret = api_keys.issue(project=project, name="default", operator="test").secret
        caller = api_keys.authenticate(secret)
        return replace(caller, tier=replace(caller.tier, **limits))

    return make


@pytest.fixture
def committed_rows(django_db_setup, django_db_blocker):
    """The test's rows are committed, so that other threads see them, and taken away one by one afterwards.

    pytest-django's own way is to empty every table: it would take the tiers and prices with it, which the
    migrations made and which, being append-only, cannot be put back by saving them.
    """
    with django_db_blocker.unblock():
        if not Tier.objects.exists():
            import_module("cacheplane.access.migrations.0003_tiers_and_gates").seed(apps, None)
        before = list(Organization.objects.values_list("id", flat=True))
        yield
        _remove_organizations(except_ids=before)
        connection.close()


def _remove_organizations(*, except_ids: list[str]) -> None:
    tables = ["callinflight", "ratestate", "featuregateentry", "apikey", "project", "auditentry"]
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE access_auditentry DISABLE TRIGGER audit_entry_is_append_only")
        for table in tables:
            cursor.execute(f"DELETE FROM access_{table} WHERE NOT organization_id = ANY(%s)", [except_ids])
        cursor.execute("DELETE FROM access_organization WHERE NOT id = ANY(%s)", [except_ids])
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE access_auditentry ENABLE TRIGGER audit_entry_is_append_only")


@dataclass(frozen=True)
class Outcome:
    value: Any = None
    error: ControlPlaneError | None = None


@pytest.fixture
def at_once() -> Callable[[list[Callable[[], Any]]], list[Outcome]]:
    return _at_once


def _at_once(works: list[Callable[[], Any]]) -> list[Outcome]:
    """Run all on up to THREADS_MAX threads, each with a connection of its own, from one starting shot."""
    thread_count = min(THREADS_MAX, len(works))
    start = threading.Barrier(thread_count)

    def run_share(share: list[Callable[[], Any]]) -> list[Outcome]:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            start.wait(timeout=20)
            return [_outcome(work) for work in share]
        finally:
            connection.close()

    with ThreadPoolExecutor(thread_count) as threads:
        shares = [works[index::thread_count] for index in range(thread_count)]
        return [outcome for outcomes in threads.map(run_share, shares) for outcome in outcomes]


def _outcome(work: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(value=work())
    except ControlPlaneError as error:
        return Outcome(error=error)


@pytest.fixture
def gateway_id() -> UUID:
    return uuid4()
