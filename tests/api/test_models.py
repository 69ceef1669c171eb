"""`GET /v1/models` and `POST /v1/tokenizers/estimate-token-count`."""

from __future__ import annotations

import pytest


def estimate(caller, content, **fields):
    body = {"model": "moonshot-v1-8k", "messages": [{"role": "user", "content": content}]} | fields
    return caller.request("POST", "/v1/tokenizers/estimate-token-count", body)


def test_the_models_are_listed_as_the_contract_says(bystander):
    answer = bystander.request("GET", "/v1/models")
    assert answer.status == 200
    assert answer.json["object"] == "list"
    models = {model["id"]: model for model in answer.json["data"]}
    assert set(models) == {"moonshot-v1-8k", "moonshot-v1-32k", "moonshot-v1-128k", "moonshot-v1-auto"}
    for model in models.values():
        assert set(model) == {"id", "object", "created", "owned_by", "permission", "root", "parent"}
        assert model["object"] == "model"
        assert isinstance(model["created"], int)
        assert model["owned_by"]
        assert isinstance(model["permission"], list)


def test_an_estimate_is_what_a_call_counts(caller):
    counted = estimate(caller, "Hello there.")
    assert counted.status == 200
    called = caller.chat({"role": "user", "content": "Hello there."})
    assert counted.json == {"data": {"total_tokens": called.json["usage"]["prompt_tokens"]}}


def test_more_text_is_more_tokens(bystander):
    few, many = estimate(bystander, "字"), estimate(bystander, "字" * 1000)
    assert 900 < many.json["data"]["total_tokens"] - few.json["data"]["total_tokens"] <= 999


def test_an_estimate_costs_nothing_and_needs_no_money(new_caller):
    poor = new_caller(money="0")
    assert estimate(poor, "Hello.").status == 200


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"model": "gpt-4"}, 404, "Not found the model gpt-4 or Permission denied"),
        ({"model": 7}, 400, "Invalid request: model: "),
        ({"messages": []}, 400, "Invalid request: messages: "),
        ({"messages": [{"role": "user"}]}, 400, "Invalid request: messages[0].content: "),
        ({"messages": [{"role": "user", "content": "a\0"}]}, 400, "Invalid request: messages[0].content: "),
    ],
)
def test_each_refusal_names_what_is_wrong(bystander, fields, status, named):
    refused = estimate(bystander, "x", **fields)
    assert refused.status == status
    assert refused.error["message"].startswith(named)
