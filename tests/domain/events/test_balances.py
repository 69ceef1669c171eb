"""`balance.low`: once for each crossing."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest
from django.db import transaction

from billing import accounts, clock, holds
from cacheplane.events import balances, endpoints
from cacheplane.events.balances import shown
from cacheplane.events.endpoints import Changes
from cacheplane.events.models import OutboxEvent, WebhookEndpoint
from tests.domain.events.conftest import recharge
from tests.receiver import Receiver
from workers import webhooks as jobs

pytestmark = pytest.mark.django_db


def spend(organization_id: str, amount: str) -> None:
    """Held money is money that is not available."""
    import uuid

    with transaction.atomic():
        account = accounts.lock(organization_id)
        holds.place(
            account,
            reference=uuid.uuid4(),
            kind="call",
            subject="test",
            amount=Decimal(amount),
            at=account.locked_at,
        )


def test_a_crossing_is_told_once_and_again_after_a_recharge_and_a_new_crossing(
    receiver: Receiver, listen, organization_id: str
) -> None:
    issued = listen(organization_id, "balance.low", balance_threshold=Decimal("20.000000001"))
    assert balances.tell_low() == 0
    spend(organization_id, "79.999999999")
    assert balances.tell_low() == 0, "what is at the threshold is not below it"
    spend(organization_id, "0.000000001")
    assert [balances.tell_low() for _ in range(3)] == [1, 0, 0]
    spend(organization_id, "10")
    assert balances.tell_low() == 0
    recharge(organization_id, "50")
    assert balances.tell_low() == 0
    spend(organization_id, "45")
    assert [balances.tell_low() for _ in range(2)] == [1, 0]
    jobs.deliver_webhooks()
    told = {one.id: one.verified(issued.secret)["data"] for one in receiver.of_type("balance.low")}
    assert sorted(data["available_balance"] for data in told.values()) == ["15", "20"]
    assert {data["threshold"] for data in told.values()} == {"20.000000001"}


def test_another_threshold_is_another_crossing(listen, organization_id: str) -> None:
    endpoint = listen(organization_id, "balance.low", balance_threshold=Decimal(200)).endpoint
    assert balances.tell_low() == 1
    endpoints.update(organization_id, endpoint.id, Changes(balance_threshold=Decimal(300)))
    assert balances.tell_low() == 1
    endpoints.update(organization_id, endpoint.id, Changes(balance_threshold=Decimal(50)))
    assert balances.tell_low() == 0


def test_each_organization_is_told_of_its_own(listen, new_organization: Callable[..., str]) -> None:
    poor, rich = new_organization(money="5"), new_organization(money="500")
    for organization_id in (poor, rich):
        listen(organization_id, "balance.low")
    assert balances.tell_low() == 1
    assert OutboxEvent.objects.get().organization_id == poor


def test_a_disabled_endpoint_is_not_told(listen, new_organization: Callable[..., str]) -> None:
    poor = new_organization(money="5")
    endpoint = listen(poor, "balance.low").endpoint
    endpoints.disable(endpoint.id, reason="test", at=clock.now())
    assert balances.tell_low() == 0
    assert WebhookEndpoint.objects.get().balance_low_at is None


@pytest.mark.parametrize(
    ("amount", "text"), [("10.000000000", "10"), ("0E-9", "0"), ("1E+2", "100"), ("-0.5", "-0.5")]
)
def test_amounts_are_shown_exactly(amount: str, text: str) -> None:
    assert shown(Decimal(amount)) == text
