"""Who pays in dollars: a price that is missing is named, never converted; and a tier's own price is what is paid."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tests.conftest import Client, Instance

FAMILY, MODEL = "moonshot-v1", "moonshot-v1-8k"
QUESTION = {"role": "user", "content": "When was it built?"}
HANDBOOK = "The lighthouse at Hoek was built in 1864. " * 20


@pytest.fixture
def caller(instance: Instance, instance_database: None) -> Client:
    """$10 on tier5. It is put together by hand: `organizations.create` asks for all prices first."""
    from django.db import transaction

    from billing import accounts, charging, clock
    from cacheplane.access import api_keys, rate_limits, tiers
    from cacheplane.access.models import Organization, Project

    with transaction.atomic():
        organization = Organization.objects.create(name="Test", tier_id="tier0")
        rate_limits.open_state(organization_id=organization.id)
        accounts.open_account(organization.id, currency="USD")
        tiers.override(organization_id=organization.id, tier_slug="tier5", reason="test", operator="test")
        project = Project.objects.create(organization=organization, name="default")
        issued = api_keys.issue(project=project, name="default", operator="test")
        charging.recharge(
            organization_id=organization.id,
            amount=Decimal(10),
            purse="cash",
            reason="test",
            operator="test",
            idempotency_key=f"test:{organization.id}",
            at=clock.now(),
        )
    client = instance.client(issued.secret)
    client.organization = organization.id
    return client


def publish(meter: str, model: str, per_million: str, **options: Any) -> None:
    from billing import clock, price_book

    price_book.publish(
        meter=meter,
        model=model,
        currency="USD",
        per_million=Decimal(per_million),
        valid_from=clock.now(),
        **options,
    )


def test_without_prices_in_its_currency_every_way_says_so_and_with_them_it_pays_its_tiers_own(caller):
    body = {"model": FAMILY, "messages": [{"role": "system", "content": HANDBOOK}], "ttl": 600}
    for answer, missing in (
        (caller.chat(QUESTION), f"No USD price for prompt of {MODEL} is in force"),
        (caller.request("POST", "/v1/caching", body), f"No USD price for creation of {FAMILY} is in force"),
        (caller.request("POST", "/v1/caching/estimate", body), "No USD price for creation"),
    ):
        assert answer.status == 503, answer.body
        assert answer.error["type"] == "server_error"
        assert answer.error["message"].startswith(missing)
    assert caller.balance()["available_balance"] == 10

    publish("prompt", MODEL, "1000", tier="tier5")  # before the price for all, it may start at once
    for meter in ("creation", "storage", "call"):
        publish(meter, FAMILY, "7000")
    for size in ("8k", "32k", "128k"):
        for meter in ("prompt", "completion"):
            publish(meter, f"{FAMILY}-{size}", "7000")
    told = caller.request("POST", "/v1/caching/estimate", body).json
    assert told["currency"] == "USD"
    [small, *others] = told["models"]
    assert Decimal(small["price_uncached"]) == told["tokens"] * Decimal("0.001")
    assert {Decimal(one["price_uncached"]) for one in others} == {told["tokens"] * Decimal("0.007")}
    for _ in range(2):  # the second call would be plain, were there no price of a tier
        before = caller.balance()["available_balance"]
        usage = caller.chat(QUESTION).json["usage"]
        paid = before - caller.balance()["available_balance"]
        due = usage["prompt_tokens"] * Decimal("0.001") + usage["completion_tokens"] * Decimal("0.007")
        assert paid == due
