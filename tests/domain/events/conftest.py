"""Organizations with endpoints, and a receiver that they point at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from billing import charging, clock
from cacheplane.access import organizations
from cacheplane.events import endpoints
from cacheplane.events.endpoints import IssuedSecret
from cacheplane.events.models import EVENT_TYPES
from tests.receiver import Receiver, receiving


@pytest.fixture
def receiver(settings: Any) -> Iterator[Receiver]:
    settings.WEBHOOK_ALLOW_PRIVATE_HOSTS = True
    with receiving() as made:
        yield made


@pytest.fixture
def new_organization(db: None) -> Callable[..., str]:
    def make(*, money: str = "100") -> str:
        new = organizations.create(name="Acme", tier_slug="tier5", operator="test")
        recharge(new.organization.id, money)
        return new.organization.id

    return make


def recharge(organization_id: str, money: str) -> None:
    at = clock.now()
    charging.recharge(
        organization_id=organization_id,
        amount=Decimal(money),
        purse="cash",
        reason="test",
        operator="test",
        idempotency_key=f"test:{organization_id}:{at.isoformat()}",
        at=at,
    )


@pytest.fixture
def organization_id(new_organization: Callable[..., str]) -> str:
    return new_organization()


@pytest.fixture
def listen(receiver: Receiver) -> Callable[..., IssuedSecret]:
    """An endpoint of an organization, at the receiver."""

    def make(organization_id: str, *events: str, **about: Any) -> IssuedSecret:
        return endpoints.create(
            organization_id, url=receiver.url, events=events or EVENT_TYPES, actor="ak-test", **about
        )

    return make
