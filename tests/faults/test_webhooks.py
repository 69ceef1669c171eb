"""Webhooks of a whole running instance, verified as their receivers do; also when their sender is killed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Client, Instance, wait_for
from tests.faults import harm
from tests.receiver import Got, Receiver, receiving

pytestmark = [pytest.mark.own_instance, pytest.mark.xdist_group("faults-webhooks")]

TOLD_SECONDS = 40.0
LEASE_OVER_SECONDS = 120.0
SENDERS = 4


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory, first_start: Path) -> Iterator[Instance]:
    yield from harm.own_instance(
        tmp_path_factory, first_start, WEBHOOK_ALLOW_PRIVATE_HOSTS="true", WEBHOOK_LEASE_SECONDS="15"
    )


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def listening(caller: Client, receiver: Receiver, *events: str, **fields: Any) -> dict[str, Any]:
    made = caller.request("POST", "/v1/webhooks", {"url": receiver.url, "events": events} | fields)
    assert made.status == 200, made.body
    return dict(made.json)


def received(
    receiver: Receiver, event_type: str, *, times: int = 1, seconds: float = TOLD_SECONDS
) -> list[Got]:
    wait_for(
        lambda: len(receiver.of_type(event_type)) >= times, seconds=seconds, what=f"{event_type} is received"
    )
    return receiver.of_type(event_type)


def test_a_life_is_told_from_active_to_deleted(
    caller: Client, new_caller: Any, receiver: Receiver, instance: Instance
) -> None:
    life = ["cache.active", "cache.expiring", "cache.expired", "cache.deleted"]
    endpoint = listening(caller, receiver, *life, expiring_lead_seconds=8)
    stranger = new_caller()
    with receiving() as elsewhere:
        listening(stranger, elsewhere, *life)
        cache_id = caller.active("The keeper wrote down the wind.", ttl=600)["id"]
        received(receiver, "cache.active")
        assert caller.request("PUT", f"/v1/caching/{cache_id}", {"ttl": 12}).status == 200
        assert receiver.types() == ["cache.active"], "its end is not near yet"
        received(receiver, "cache.expiring")
        assert caller.get(cache_id).json["status"] == "active"
        received(receiver, "cache.expired")
        assert caller.request("DELETE", f"/v1/caching/{cache_id}").status == 200
        received(receiver, "cache.deleted")
        assert elsewhere.got == [], "nobody else is told"
    assert receiver.types() == life
    for one in receiver.got:
        payload = one.verified(endpoint["secret"])
        assert payload["data"]["id"] == cache_id
        assert set(payload) == {"type", "timestamp", "data"}
        assert b"keeper" not in one.body
    assert len({one.id for one in receiver.got}) == len(life)
    listed = caller.request("GET", f"/v1/webhooks/{endpoint['id']}/deliveries?order=asc").json["data"]
    assert [row["event"]["type"] for row in listed] == life
    assert [row["event"]["id"] for row in listed] == [one.id for one in receiver.got]
    assert [(row["state"], row["attempts"][0]["http_status"]) for row in listed] == [("delivered", 204)] * 4
    assert endpoint["secret"] not in instance.logs()


def test_a_low_balance_is_told_once_for_each_crossing(new_caller: Any, receiver: Receiver) -> None:
    import uuid
    from decimal import Decimal

    from cacheplane.access import organizations

    caller = new_caller(money="5")
    endpoint = listening(caller, receiver, "balance.low", balance_threshold="4.99")
    assert (
        caller.chat({"role": "user", "content": "Who keeps the light? " * 200}, max_tokens=256).status == 200
    )
    assert caller.balance()["available_balance"] < Decimal("4.99")
    [low] = received(receiver, "balance.low")
    data = low.verified(endpoint["secret"])["data"]
    assert data["threshold"] == "4.99"
    assert Decimal(data["available_balance"]) < Decimal("4.99")

    def recharge() -> None:
        organizations.recharge(
            organization_id=caller.organization,
            amount=Decimal(1),
            purse="cash",
            reason="test",
            operator="test",
            idempotency_key=uuid.uuid4().hex,
        )

    def is_above() -> bool:
        from cacheplane.events.models import WebhookEndpoint

        return WebhookEndpoint.objects.get(id=endpoint["id"]).balance_low_at is None

    recharge()
    wait_for(is_above, seconds=TOLD_SECONDS, what="it was seen above")
    assert caller.request("PUT", f"/v1/webhooks/{endpoint['id']}", {"balance_threshold": "7"}).status == 200
    received(receiver, "balance.low", times=2)
    assert len({one.id for one in receiver.got}) == 2


def test_a_sender_that_is_killed_after_sending_is_followed_by_another(
    caller: Client, receiver: Receiver, instance: Instance
) -> None:
    endpoint = listening(caller, receiver, "cache.active")
    receiver.delay_seconds = 5
    sent = caller.request("POST", f"/v1/webhooks/{endpoint['id']}/test")
    assert sent.status == 200, sent.body
    received(receiver, "webhook.test")
    pid = harm.strike(instance, "worker")
    harm.wait_until_replaced(instance, "worker", pid)
    receiver.delay_seconds = 0
    first, second = received(receiver, "webhook.test", times=2, seconds=LEASE_OVER_SECONDS)[:2]
    assert (first.id, first.body) == (second.id, second.body)
    second.verified(endpoint["secret"])

    def is_delivered() -> bool:
        [row] = caller.request("GET", f"/v1/webhooks/{endpoint['id']}/deliveries").json["data"]
        return bool(row["state"] == "delivered")

    wait_for(is_delivered, seconds=TOLD_SECONDS, what="it is written down")


def test_senders_at_once_share_what_is_due_and_none_takes_another_s(
    caller: Client, receiver: Receiver, instance: Instance
) -> None:
    from django.db import connections
    from django.db.backends.postgresql.base import DatabaseWrapper

    from billing import clock
    from cacheplane.events import delivery

    about = {**connections["default"].settings_dict, **instance.database_settings()}
    start = threading.Barrier(SENDERS)

    def claim() -> list[str]:
        connections["default"] = DatabaseWrapper(about, "default")
        try:
            at = clock.now()
            start.wait(timeout=30)
            return [one.delivery_id for one in delivery.claim_due(at=at)]
        finally:
            connections["default"].close()

    with harm.paused(instance, "worker"):
        endpoints = [listening(caller, receiver, "cache.active")["id"] for _ in range(5)]
        sent = [
            caller.request("POST", f"/v1/webhooks/{endpoint}/test").json["id"]
            for endpoint in endpoints
            for _ in range(3)
        ]
        with ThreadPoolExecutor(SENDERS) as threads:
            taken = [row for claimed in threads.map(lambda _: claim(), range(SENDERS)) for row in claimed]
        for endpoint in endpoints:
            assert caller.request("DELETE", f"/v1/webhooks/{endpoint}").status == 200
    assert len(taken) == len(set(taken))
    assert set(sent) <= set(taken)
