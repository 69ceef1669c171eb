"""`POST /v1/caching/estimate`: what it would cost, without creating or holding anything."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

import pytest

from tests.api import books
from tests.conftest import FAMILY


def estimate(caller, text="You answer shortly.", **fields):
    body = {"model": FAMILY, "messages": [{"role": "system", "content": text}], "ttl": 3600} | fields
    return caller.request("POST", "/v1/caching/estimate", body)


def up(calls: Decimal) -> int:
    return int(calls.to_integral_value(ROUND_CEILING))


def test_it_says_to_the_fen_what_a_creation_costs_and_what_it_spares(caller, prose):
    text = prose(3000)
    answer = estimate(caller, text)
    assert answer.status == 200, answer.body
    told = answer.json
    tokens = told["tokens"]
    assert tokens == caller.create(text).json["tokens"]
    assert (told["object"], told["model"], told["currency"]) == (
        "context_cache_object.estimate",
        FAMILY,
        "CNY",
    )
    assert told["lifetime_seconds"] == 3600
    fee, hour = tokens * books.CREATION, tokens * books.STORAGE * 60
    assert Decimal(told["creation_fee"]) == fee
    assert Decimal(told["storage_per_hour"]) == Decimal(told["storage"]) == hour
    assert Decimal(told["total"]) == fee + hour
    assert Decimal(told["call_fee"]) == books.CALL
    assert [one["model"] for one in told["models"]] == list(books.TOKENS)
    for one in told["models"]:
        uncached = tokens * books.TOKENS[one["model"]]
        assert Decimal(one["price_uncached"]) == uncached
        calls = up((fee + hour) / (uncached - books.CALL))
        assert (one["break_even_calls"], one["break_even_calls_per_hour"]) == (calls, calls)
        assert f"from {calls} calls an hour on {one['model']}" in told["verdict"]
        assert one["is_too_long"] is False


def test_a_shorter_life_costs_less_storage_and_must_pay_sooner(caller, prose):
    text = prose(3000)
    told = estimate(caller, text, ttl=90).json
    tokens = told["tokens"]
    cost = tokens * books.CREATION + tokens * books.STORAGE * 2
    assert (told["lifetime_seconds"], Decimal(told["total"])) == (90, cost)
    small = told["models"][0]
    spared = tokens * books.TOKENS[small["model"]] - books.CALL
    assert small["break_even_calls"] == up(cost / spared)
    assert small["break_even_calls_per_hour"] == up(cost * 40 / spared)


def test_amounts_are_strings_with_all_their_places(caller):
    told = estimate(caller).json
    amounts = [told[name] for name in ("creation_fee", "storage_per_hour", "storage", "total", "call_fee")]
    amounts += [one["price_uncached"] for one in told["models"]]
    for amount in amounts:
        assert isinstance(amount, str)
        assert len(amount.partition(".")[2]) == 9


def test_few_tokens_never_pay_where_the_fee_is_more(caller):
    told = estimate(caller).json
    assert all(one["break_even_calls"] is one["break_even_calls_per_hour"] is None for one in told["models"])
    assert "it never pays on moonshot-v1-8k" in told["verdict"]


def test_what_no_window_holds_is_told(caller, prose):
    told = estimate(caller, prose(10_000)).json
    small = told["models"][0]
    assert (small["model"], small["is_too_long"], small["break_even_calls"]) == ("moonshot-v1-8k", True, None)
    assert "it is too long for moonshot-v1-8k" in told["verdict"]


def test_nothing_is_created_held_or_charged(caller):
    assert estimate(caller, tags=["live"], metadata={"a": "1"}).status == 200
    assert caller.request("GET", "/v1/caching").json["data"] == []
    assert caller.request("GET", "/v1/caching/refs/tags").json["data"] == []
    assert books.purse(caller) == (1000, 0)
    assert books.spent(caller) == {}


def test_it_needs_no_money(new_caller):
    assert estimate(new_caller(money="0")).status == 200


def test_each_counts_as_one_request(new_caller):
    from cacheplane.access import gates
    from cacheplane.access.models import Organization

    caller = new_caller(tier="tier0")
    organization = Organization.objects.get(id=caller.organization)
    gates.open_for(organization, feature="context_caching", until=None, reason="test", operator="test")
    answers = [estimate(caller) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].error["type"] == "rate_limit_reached_error"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": "moonshot-v1-8k"}, "model family is invalid"),
        ({"messages": []}, "Invalid request: messages: "),
        ({"ttl": 10**9}, "Invalid request: ttl: "),
        ({"expired_at": 9_000_000_000}, "Invalid request: ttl: "),
        ({"tags": ["9"]}, "Invalid request: tags[0]: "),
        ({"metadata": {"k" * 65: ""}}, "Invalid request: metadata: "),
    ],
)
def test_it_refuses_what_a_creation_refuses(bystander, fields, named):
    refused = estimate(bystander, **fields)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith(named)
    assert refused.body == bystander.create(**{"ttl": 3600} | fields).body


def test_a_closed_gate_is_closed_here_too(new_caller):
    refused = estimate(new_caller(tier="tier0"))
    assert (refused.status, refused.error["type"]) == (403, "permission_denied_error")
