"""`POST /v1/caching`: what it does not take, each refusal naming the field, and nothing left behind."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from tests.api import books

USER = {"role": "user", "content": "hi"}


def called_with(arguments: str) -> dict:
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "f:0", "type": "function", "function": function}]}


CALLS = called_with("{}")
ANSWER = {"role": "tool", "tool_call_id": "f:0", "content": "4"}
TOOL = {"type": "function", "function": {"name": "g"}}


pytestmark = pytest.mark.usefixtures("instance_database")


def left_behind(caller) -> list[str]:
    """What a refused creation must not leave: objects, KV states, money set aside."""
    from billing.models import Hold
    from cacheplane.caching.models import CacheObject
    from cacheplane.kv.models import KVState

    rows = [
        *CacheObject.objects.filter(organization_id=caller.organization),
        *KVState.objects.filter(organization_id=caller.organization),
        *Hold.objects.filter(organization_id=caller.organization, state="open"),
    ]
    return [str(row) for row in rows]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": 7}, "model: "),
        ({"model": None}, "model: "),
        ({"messages": []}, "messages: "),
        ({"messages": None}, "messages: "),
        ({"messages": "hi"}, "messages: "),
        ({"messages": ["hi"]}, "messages[0]: "),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages[1].role: "),
        ({"messages": [{"role": "cache", "content": "cache_id=cache-x"}]}, "messages[0].role: "),
        ({"messages": [{"role": "user"}]}, "messages[0].content: "),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [USER, {**USER, "partial": True}]}, "messages[1].partial: "),
        ({"messages": [USER, CALLS]}, "messages: "),
        ({"messages": [USER, CALLS, USER]}, "messages[2]: "),
        ({"messages": [USER, ANSWER]}, "messages[1].tool_call_id: "),
        ({"messages": [{**USER, "tool_calls": CALLS["tool_calls"]}]}, "messages[0].tool_calls: "),
        ({"messages": [called_with("nonsense"), ANSWER]}, "messages[0].tool_calls[0].function.arguments: "),
        ({"messages": [called_with(""), ANSWER]}, "messages[0].tool_calls[0].function.arguments: "),
        ({"messages": [called_with("[" * 9000), ANSWER]}, "messages[0].tool_calls[0].function.arguments: "),
        ({"messages": [CALLS, ANSWER], "tools": [TOOL]}, "messages[0].tool_calls: "),
        ({"tools": {}}, "tools: "),
        ({"tools": [{"type": "function"}]}, "tools[0]: "),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name: "),
        ({"tools": [TOOL] * 129}, "tools: "),
        ({"name": "n" * 257}, "name: "),
        ({"name": 1}, "name: "),
        ({"description": "d" * 513}, "description: "),
        ({"metadata": {"k" * 65: "v"}}, "metadata: "),
        ({"metadata": {"k": "v" * 513}}, "metadata.k: "),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "metadata: "),
        ({"metadata": "k=v"}, "metadata: "),
        ({"ttl": "60"}, "ttl: "),
        ({"ttl": 1.5}, "ttl: "),
        ({"ttl": 60, "expired_at": 9_000_000_000}, "ttl: "),
        ({"ttl": 10**18}, "ttl: "),
        ({"ttl": None, "expired_at": 1}, "expired_at: "),
        ({"ttl": None, "expired_at": 9_000_000_000}, "expired_at: "),
        ({"ttl": None, "expired_at": 10**18}, "expired_at: "),
        ({"tags": "blue"}, "tags: "),
    ],
)
def test_each_refusal_names_the_field(bystander, fields, named):
    body = {"model": "moonshot-v1", "messages": [USER], "ttl": 60} | fields
    refused = bystander.request("POST", "/v1/caching", body)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith(f"Invalid request: {named}")
    assert left_behind(bystander) == []


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_field_is_named(bystander, missing):
    body = {"model": "moonshot-v1", "messages": [USER]}
    del body[missing]
    refused = bystander.request("POST", "/v1/caching", body)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert missing in refused.error["message"]


@pytest.mark.parametrize("model", ["moonshot-v1-8k", "moonshot-v1-128k", "moonshot-v2", "", "MOONSHOT-V1"])
def test_a_model_that_is_no_family_is_refused_in_the_contracts_words(bystander, model):
    refused = bystander.create(model=model)
    assert refused.status == 400
    assert refused.error == {"message": "model family is invalid", "type": "invalid_request_error"}


def _deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[",
        b"nonsense",
        b"[]",
        b'"moonshot-v1"',
        b'{"model":"moonshot-v1","messages":[{"role":"user","content":"x"}],"ttl":NaN}',
        b'{"model":"moonshot-v1","messages":[{"role":"user","content":"x"}],"ttl":Infinity}',
        b'{"model":"moonshot-v1","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"moonshot-v1","messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"moonshot-v1","messages":' + _deep(100_000) + b"}",
        b'{"model":"moonshot-v1","unknown":' + _deep(100_000) + b',"messages":[]}',
    ],
)
def test_what_is_no_json_object_of_ours_is_refused_and_never_a_crash(bystander, body):
    refused = bystander.request("POST", "/v1/caching", body)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert left_behind(bystander) == []


@pytest.mark.parametrize("levels", [60, 200, 900, 50_000])
def test_a_deeply_nested_tool_is_taken_whole_or_refused(caller, levels):
    deep = b'{"a":' * levels + b"1" + b"}" * levels
    body = (
        b'{"model":"moonshot-v1","messages":[{"role":"user","content":"x"}],"ttl":60,"tools":'
        b'[{"type":"function","function":{"name":"f","parameters":' + deep + b"}}]}"
    )
    answer = caller.request("POST", "/v1/caching", body)
    if answer.status == 200:
        kept = caller.get(answer.json["id"])
        assert kept.status == 200
        assert deep in kept.body.replace(b" ", b"")
    else:
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
        assert left_behind(caller) == []


@pytest.mark.parametrize(
    "number", ["1e999", "-1e999", "1" + "0" * 400, "1e-999", "0.1", "12345678901234567890"]
)
def test_numbers_in_a_tool_are_kept_or_refused(caller, number):
    body = (
        (
            '{"model":"moonshot-v1","messages":[{"role":"user","content":"x"}],"ttl":60,"tools":'
            '[{"type":"function","function":{"name":"f","parameters":{"minimum":NUMBER}}}]}'
        )
        .replace("NUMBER", number)
        .encode()
    )
    answer = caller.request("POST", "/v1/caching", body)
    if answer.status == 200:
        sent = json.loads(body)["tools"][0]["function"]["parameters"]["minimum"]
        for read in (answer, caller.get(answer.json["id"])):
            assert read.json["tools"][0]["function"]["parameters"]["minimum"] == sent
        caller.wait_until(answer.json["id"], "active")
    else:
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a", "name": "\0"}]}, "messages[0].name"),
        ({"name": "a\0"}, "name"),
        ({"description": "\0"}, "description"),
        ({"metadata": {"k": "\0"}}, "metadata.k"),
        ({"metadata": {"k\0": "v"}}, "metadata.k"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a\0": 1}}}]},
            "tools[0].function.parameters.a",
        ),
    ],
)
def test_a_nul_is_refused_with_its_place(bystander, fields, named):
    refused = bystander.create(**fields)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith(f"Invalid request: {named}")
    assert left_behind(bystander) == []


@pytest.mark.parametrize("megabytes", [16, 48])
def test_a_body_that_is_too_large_is_refused(bystander, megabytes):
    body = {"model": "moonshot-v1", "messages": [{"role": "user", "content": "x" * (megabytes << 20)}]}
    refused = bystander.request("POST", "/v1/caching", body)
    assert (refused.status, refused.error["type"]) == (413, "invalid_request_error")
    assert left_behind(bystander) == []


# --- Who may not -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", ["tier0", "tier4"])
def test_a_closed_gate_refuses_in_the_contracts_words(new_caller, tier):
    caller = new_caller(tier=tier)
    refused = caller.create()
    assert refused.status == 403
    assert refused.error == {
        "message": "The API you are accessing is not open",
        "type": "permission_denied_error",
    }
    assert left_behind(caller) == []


def test_an_organization_that_is_let_in_may_create_whatever_its_tier(new_caller):
    from cacheplane.access import gates
    from cacheplane.access.models import Organization

    caller = new_caller(tier="tier0")
    organization = Organization.objects.get(id=caller.organization)
    about = {"feature": "context_caching", "reason": "test", "operator": "test"}
    gates.open_for(organization, until=None, **about)
    caller.active()
    gates.close_for(organization, **about)
    assert caller.create().status == 403


def test_a_suspended_organization_is_told_its_state(new_caller):
    from cacheplane.access import organizations

    caller = new_caller()
    organizations.suspend(organization_id=caller.organization, reason="test", operator="test")
    refused = caller.create()
    assert (refused.status, refused.error["type"]) == (403, "exceeded_current_quota_error")
    assert refused.error["message"].startswith(f"Your account {caller.organization}<ak-")
    assert "is not active, current state: suspended" in refused.error["message"]
    assert left_behind(caller) == []


# --- Money -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("money", ["0", "0.00001"])
def test_without_money_nothing_is_created(new_caller, money):
    caller = new_caller(money=money)
    refused = caller.create()
    assert (refused.status, refused.error["type"]) == (429, "exceeded_current_quota_error")
    assert refused.error["message"].startswith(f"Your account {caller.organization}<ak-")
    assert refused.error["message"].endswith("is suspended due to insufficient balance, please recharge")
    assert int(refused.headers["retry-after"]) >= 1
    assert left_behind(caller) == []
    assert books.purse(caller) == (Decimal(money), 0)


def test_money_for_the_fee_but_not_for_the_first_minute_is_too_little(caller, new_caller):
    text = "You answer shortly, and you never say more than you must. " * 20
    tokens = caller.create(text).json["tokens"]
    fee, minute = tokens * books.CREATION, tokens * books.STORAGE
    short = new_caller(money=str(fee + minute - Decimal("0.000001")))
    assert short.create(text).status == 429
    assert left_behind(short) == []
    exact = new_caller(money=str(fee + minute))
    assert exact.active(text, ttl=59)["tokens"] == tokens
    assert books.spent(exact)["creation"] == fee


def test_of_many_at_once_no_more_are_made_than_can_be_paid(caller, new_caller):
    tokens = caller.create("One of many.").json["tokens"]
    each = tokens * (books.CREATION + books.STORAGE)
    poor = new_caller(money=str(each * 3 + each / 2))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: poor.create("One of many.", ttl=59), range(8)))
    assert sorted(answer.status for answer in answers) == [200] * 3 + [429] * 5
    for answer in answers:
        if answer.status == 200:
            poor.wait_until(answer.json["id"], "active")
    assert books.counted(poor, "creation") == [tokens] * 3


# --- Tiers -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_tier(instance_database):
    """A tier that may cache, but little and not for long."""
    from cacheplane.access.models import Tier

    tier, _ = Tier.objects.get_or_create(
        slug="small",
        defaults={
            "rank": 50,
            "recharged_from": Decimal(10**9),
            "concurrency": 50,
            "requests_per_minute": 1000,
            "tokens_per_minute": 100_000,
            "tokens_per_day": None,
            "object_tokens_max": 200,
            "cached_tokens_max": 300,
            "ttl_seconds_max": 120,
        },
    )
    return tier.slug


def test_an_object_beyond_the_tiers_size_is_refused(new_caller, small_tier):
    caller = new_caller(tier=small_tier)
    refused = caller.create("word " * 400, ttl=60)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith("Input token length too long")
    assert left_behind(caller) == []


def test_all_objects_together_stay_within_the_tiers_total(new_caller, small_tier):
    caller = new_caller(tier=small_tier)
    first = caller.create("word " * 60, ttl=60)
    assert first.status == 200
    tokens = first.json["tokens"]
    fitting = 300 // tokens
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: caller.create("word " * 60, ttl=60), range(6)))
    assert [a.status for a in answers].count(200) == fitting - 1
    refused = next(a for a in answers if a.status != 200)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith("Input token length too long")
    assert caller.request("DELETE", f"/v1/caching/{first.json['id']}").status == 200
    assert caller.create("word " * 60, ttl=60).status == 200


def test_a_life_beyond_the_tiers_longest_is_refused(new_caller, small_tier):
    caller = new_caller(tier=small_tier)
    assert caller.create(ttl=120).status == 200
    refused = caller.create(ttl=121)
    assert refused.status == 400
    assert refused.error["message"].startswith("Invalid request: ttl: got 121, takes 1 to 120 seconds")


def test_creations_count_against_requests_and_tokens_of_a_minute(new_caller, instance_database):
    from cacheplane.access import gates
    from cacheplane.access.models import Organization

    caller = new_caller(tier="tier0")
    organization = Organization.objects.get(id=caller.organization)
    gates.open_for(organization, feature="context_caching", until=None, reason="test", operator="test")
    answers = [caller.create(f"Number {n}.") for n in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    refused = answers[-1]
    assert refused.error["type"] == "rate_limit_reached_error"
    assert f"Your account {caller.organization}<ak-" in refused.error["message"]
    assert "request reached max request: 3, please try again after " in refused.error["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 20
