"""Callers of each tier, and many of them at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection

from cacheplane.access import api_keys
from cacheplane.access.callers import Caller
from cacheplane.access.models import Organization, Project
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
def make_caller(db) -> Callable[..., Caller]:
    """A caller of a new organization; keyword arguments replace limits of its tier."""

    def make(tier_slug: str = "tier0", **limits: int | None) -> Caller:
        organization = Organization.objects.create(name="Acme", tier_id=tier_slug)
        project = Project.objects.create(organization=organization, name="default")
        secret = api_keys.issue(project=project, name="default", operator="test").secret
        caller = api_keys.authenticate(secret)
        return replace(caller, tier=replace(caller.tier, **limits))

    return make


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
