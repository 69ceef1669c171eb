"""`dry_run=1`: what a call would count and cost; nothing is inferred and nothing charged."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tests.api import books
from tests.api.test_cached_call import ABSENT, ON_A_HIT, cache_headers

QUESTION = {"role": "user", "content": "And now?"}


def by_message(caller, cache_object, **fields):
    return caller.ask(cache_object["id"], options=";dry_run=1", **fields)


def by_header(caller, cache_object, **fields):
    headers = {"X-Msh-Context-Cache": cache_object["id"], "X-Msh-Context-Cache-DryRun": "1"}
    return caller.chat(*cache_object["messages"], QUESTION, headers=headers, **fields)


@pytest.mark.parametrize("ask", [by_message, by_header])
@pytest.mark.parametrize("model", ["moonshot-v1-8k", "moonshot-v1-128k"])
def test_it_tells_what_the_call_would_count_and_cost(caller, ask, model):
    active = caller.active()
    before = books.spent(caller)
    answer = ask(caller, active, model=model)
    assert answer.status == 200, answer.body
    body = answer.json
    assert (body["object"], body["choices"], body["model"]) == ("chat.completion", [], model)
    assert set(cache_headers(answer)) == ON_A_HIT
    assert books.spent(caller) == before
    assert books.is_idle(caller)
    usage, estimate = body["usage"], body["estimate"]
    assert (usage["cached_tokens"], usage["completion_tokens"]) == (active["tokens"], 0)
    assert estimate["hit_tokens"] == active["tokens"]
    assert estimate["currency"] == "CNY"
    prompt = usage["prompt_tokens"]
    assert Decimal(estimate["price_uncached"]) == prompt * books.TOKENS[model]
    rest = (prompt - active["tokens"]) * books.TOKENS[model]
    assert Decimal(estimate["price"]) == books.CALL + rest
    real = ask_for_real(caller, active, model)
    assert real["prompt_tokens"] == prompt


def ask_for_real(caller, active, model):
    return caller.ask(active["id"], model=model).json["usage"]


def test_it_moves_no_end(caller):
    active = caller.active()
    answer = caller.ask(active["id"], options=";reset_ttl=1200;dry_run=1")
    assert answer.status == 200
    assert caller.get(active["id"]).json == active


@pytest.mark.parametrize("ask", [by_message, by_header])
def test_an_object_that_is_not_active_is_refused_by_its_status(caller, no_precompute, ask):
    expired = caller.expired()
    with no_precompute():
        pending = caller.create().json
        for one, status in ((pending, "pending"), (expired, "expired")):
            refused = ask(caller, one)
            assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
            assert status in refused.error["message"]


def test_an_unknown_object_is_refused(caller, outsider):
    active = caller.active()
    assert by_message(outsider, active).status == 404
    assert by_header(outsider, active).status == 400
    assert by_message(outsider, {"id": ABSENT}).status == 404


def test_the_window_is_looked_at(caller):
    active = caller.active()
    assert by_message(caller, active, max_tokens=8000).status == 200
    refused = by_message(caller, active, max_tokens=8192)
    assert refused.status == 400
    assert refused.error["message"].startswith("Your request exceeded model token limit : 8192")


def test_it_needs_no_money(caller, new_caller):
    tokens = caller.create("Free to ask.").json["tokens"]
    poor = new_caller(money=str(tokens * (books.CREATION + books.STORAGE)))
    active = poor.active("Free to ask.", ttl=50)
    assert by_message(poor, active).status == 200
    assert poor.ask(active["id"]).status == 429
