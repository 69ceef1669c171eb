"""The windows of the three models: what one refuses the next one takes."""

from __future__ import annotations

import pytest

from tests.api import books

WINDOWS = {"moonshot-v1-8k": 8192, "moonshot-v1-32k": 32_768, "moonshot-v1-128k": 131_072}


@pytest.mark.parametrize(
    ("small", "large"), [("moonshot-v1-8k", "moonshot-v1-32k"), ("moonshot-v1-32k", "moonshot-v1-128k")]
)
def test_what_one_window_refuses_the_next_one_takes(caller, small, large):
    active = caller.active()
    asked = {"options": ";dry_run=1", "max_tokens": WINDOWS[small]}
    refused = caller.ask(active["id"], model=small, **asked)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith(f"Your request exceeded model token limit : {WINDOWS[small]}")
    assert caller.ask(active["id"], model=large, **asked).status == 200


@pytest.mark.parametrize("model", WINDOWS)
def test_a_window_is_taken_to_its_last_token(caller, model):
    active = caller.active()
    prompt = caller.ask(active["id"], options=";dry_run=1").json["usage"]["prompt_tokens"]
    fits = WINDOWS[model] - prompt
    asked = {"options": ";dry_run=1", "model": model}
    assert caller.ask(active["id"], max_tokens=fits, **asked).status == 200
    assert caller.ask(active["id"], max_tokens=fits + 1, **asked).status == 400


def test_a_prompt_too_long_for_8k_is_answered_by_32k(caller, prose):
    active = caller.active(prose(8400))
    assert active["tokens"] > 8192
    refused = caller.ask(active["id"], model="moonshot-v1-8k")
    assert refused.status == 400
    assert refused.error["message"].startswith("Your request exceeded model token limit : 8192")
    answer = caller.ask(active["id"], model="moonshot-v1-32k")
    assert answer.json["usage"]["cached_tokens"] == active["tokens"]
    assert "call" in books.spent(caller)


def test_a_cold_prompt_too_long_for_its_window_is_refused_before_it_is_computed(caller, prose):
    refused = caller.chat({"role": "user", "content": prose(8400)})
    assert refused.status == 400
    assert refused.error["message"].startswith("Your request exceeded model token limit : 8192")
    assert books.purse(caller) == (1000, 0)
