"""`moonshot-v1-auto`: the smallest window that the call fits, told and billed by its name."""

from __future__ import annotations

import pytest

from tests.api import books
from tests.api.streams import streamed
from tests.api.test_header_mode import named

AUTO = "moonshot-v1-auto"
HELLO = {"role": "user", "content": "Hello there."}


@pytest.mark.parametrize(
    ("max_tokens", "chosen"),
    [(4, "moonshot-v1-8k"), (8192, "moonshot-v1-32k"), (32_768, "moonshot-v1-128k")],
)
@pytest.mark.parametrize("mode", ["message", "header"])
def test_the_smallest_that_fits_is_estimated(caller, max_tokens, chosen, mode):
    active = caller.active()
    if mode == "message":
        answer = caller.ask(active["id"], options=";dry_run=1", model=AUTO, max_tokens=max_tokens)
    else:
        headers = named(active["id"], **{"X-Msh-Context-Cache-DryRun": "1"})
        answer = caller.chat(*active["messages"], HELLO, headers=headers, model=AUTO, max_tokens=max_tokens)
    assert (answer.status, answer.json["model"]) == (200, chosen), answer.body


@pytest.mark.parametrize(("max_tokens", "chosen"), [(4, "moonshot-v1-8k"), (8192, "moonshot-v1-32k")])
def test_it_is_answered_and_billed_as_that_one(caller, max_tokens, chosen):
    word = caller.chat(HELLO, max_tokens=3).json["choices"][0]["message"]["content"][-2:]
    before = sum(books.spent(caller).values())
    answer = caller.chat(HELLO, model=AUTO, max_tokens=max_tokens, stop=[word])
    assert answer.json["model"] == chosen
    price = books.call_price(answer.json["usage"], is_hit=False, model=chosen)
    assert sum(books.spent(caller).values()) - before == price
    found = streamed(caller, HELLO, model=AUTO, max_tokens=max_tokens, stop=[word])
    assert {chunk["model"] for chunk in found.chunks} == {chosen}


def test_a_long_prompt_chooses_too(caller, prose):
    active = caller.active(prose(8400))
    answer = caller.ask(active["id"], model=AUTO)
    assert answer.json["model"] == "moonshot-v1-32k"
    usage = answer.json["usage"]
    assert usage["cached_tokens"] == active["tokens"]
    spent = books.spent(caller)
    assert spent["call"] == books.CALL
    assert spent["completion"] == usage["completion_tokens"] * books.TOKENS["moonshot-v1-32k"]


def test_what_fits_none_is_told_the_largest(bystander):
    refused = bystander.chat(HELLO, model=AUTO, max_tokens=131_072)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith("Your request exceeded model token limit : 131072")


def test_it_is_no_family(bystander):
    refused = bystander.create(model=AUTO)
    assert (refused.status, refused.error["message"]) == (400, "model family is invalid")


def test_its_tokens_can_be_estimated(caller):
    body = {"model": AUTO, "messages": [HELLO]}
    answer = caller.request("POST", "/v1/tokenizers/estimate-token-count", body)
    assert answer.json["data"]["total_tokens"] == caller.chat(HELLO).json["usage"]["prompt_tokens"]
