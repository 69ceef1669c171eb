"""What the black-box tests share: callers whose books are looked at when the test is over."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from decimal import Decimal
from typing import Any

import pytest

from tests.api import books
from tests.conftest import Client, Instance, organization_of, using_database_of, wait_for


@pytest.fixture
def new_caller(new_caller: Callable[..., Client], ledger: None) -> Iterator[Callable[..., Client]]:
    """As ever. When the test is over their objects are deleted, so that no later test waits for their precompute,
    and no call of theirs holds money, a place or a slot."""
    made: list[Client] = []

    def make(**about: Any) -> Client:
        made.append(new_caller(**about))
        return made[-1]

    yield make
    for caller in made:
        for left in caller.request("GET", "/v1/caching?limit=100").json.get("data", []):
            caller.request("DELETE", f"/v1/caching/{left['id']}")
        wait_for(lambda: books.is_idle(caller), seconds=30, what="calls have given back all they took")  # noqa: B023


@pytest.fixture(scope="session")
def bystander(instance: Instance, django_db_blocker: Any) -> Iterator[Client]:
    """A caller for tests that move no money: when all are over, it has all that it had, and no object."""
    with using_database_of(instance, django_db_blocker):
        made = organization_of(instance)
    yield made
    with using_database_of(instance, django_db_blocker):
        assert books.purse(made) == (Decimal(1000), 0)
        assert books.spent(made) == {}
        assert books.is_idle(made)
    assert made.request("GET", "/v1/caching").json["data"] == []


@pytest.fixture
def outsider(new_caller: Callable[..., Client]) -> Client:
    """Somebody of another organization."""
    return new_caller()


@pytest.fixture
def no_precompute(instance_database: None) -> Callable[[], AbstractContextManager[None]]:
    """Within it nothing becomes active: the lane of precompute is taken, as a long prefill takes it."""

    @contextmanager
    def taken() -> Iterator[None]:
        from cacheplane.engines import registry, slots

        owner, engine_id = f"test:{uuid.uuid4().hex[:8]}", registry.engine_for("moonshot-v1").id
        lease = wait_for(
            lambda: slots.lease_for_prefill(engine_id=engine_id, owner=owner, seconds=60),
            seconds=60,
            what="the lane of precompute is free",
            every=0.05,
        )
        try:
            yield
        finally:
            slots.release(lease, resident=None, resident_organization=slots.UNKNOWN_ORGANIZATION)

    return taken


@pytest.fixture
def prose() -> Callable[[int], str]:
    """A text of about so many tokens, unlike any other test's."""

    def write(tokens: int) -> str:
        opening = f"Protocol {uuid.uuid4().hex} of {time.time_ns()}. "
        return opening + "The slot is free and the call is done. " * (tokens // 12)

    return write
