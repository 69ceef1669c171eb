"""Money is set aside as an answer grows, and where it ends the answer ends as at `max_tokens`."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tests.api import books
from tests.api.streams import Call, streamed
from tests.conftest import wait_for

HELLO = {"role": "user", "content": "Hello there."}
PRICE = books.TOKENS["moonshot-v1-8k"]
LONG = 1200


@pytest.fixture
def prompt_tokens(caller) -> int:
    return caller.chat(HELLO, max_tokens=1).json["usage"]["prompt_tokens"]


@pytest.fixture
def with_money_for(new_caller, prompt_tokens):
    """A caller who can pay the prompt and so many tokens of an answer, and not one more."""
    return lambda tokens: new_caller(money=str((prompt_tokens + tokens) * PRICE + PRICE / 2))


def held_tokens(caller) -> Decimal:
    return books.purse(caller)[1] / PRICE


def held_while_it_runs(caller, *, max_tokens: int) -> list[Decimal]:
    """What is held, in tokens, looked at now and then until the answer has its last token."""
    with Call(caller, HELLO, stream=True, max_tokens=max_tokens) as call:
        assert call.answer.status == 200
        seen = [held_tokens(caller)]
        for number, event in enumerate(call.events()):
            if isinstance(event, dict) and event["choices"][0]["finish_reason"] is not None:
                break
            if number % 64 == 0:
                seen.append(held_tokens(caller))
    wait_for(lambda: books.is_idle(caller), seconds=10, what="the call is settled")
    # What the wire still held when the call was settled.
    return [tokens for tokens in seen if tokens]


def test_the_hold_grows_with_the_answer(caller, prompt_tokens):
    seen = held_while_it_runs(caller, max_tokens=LONG)
    assert seen == sorted(seen), "nothing is given back on the way"
    prompt = seen[0] - 512
    assert prompt_tokens <= prompt <= prompt_tokens + 2 * len(HELLO["content"]), (
        "bounded, where money is ample"
    )
    assert set(seen) <= {prompt + tokens for tokens in (512, 1024, LONG)}
    assert len(set(seen)) >= 2
    assert books.purse(caller)[1] == 0


def test_a_hold_that_covers_the_whole_answer_never_grows(caller, prompt_tokens):
    [held] = set(held_while_it_runs(caller, max_tokens=300))
    assert prompt_tokens + 300 <= held <= prompt_tokens + 300 + 2 * len(HELLO["content"])


@pytest.mark.parametrize("tokens", [512, 513, 700])
def test_where_the_money_ends_the_answer_ends_to_the_token(with_money_for, tokens):
    poor = with_money_for(tokens)
    answer = poor.chat(HELLO, max_tokens=LONG)
    assert answer.status == 200, answer.body
    [choice] = answer.json["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"]
    assert answer.json["usage"]["completion_tokens"] == tokens
    assert books.purse(poor) == (PRICE / 2, 0)
    assert books.is_idle(poor)


def test_a_stream_ends_cleanly_where_the_money_ends(with_money_for):
    poor = with_money_for(600)
    found = streamed(poor, HELLO, max_tokens=LONG, stream_options={"include_usage": True})
    assert found.is_done
    assert found.last["finish_reason"] == "length"
    assert found.usage["completion_tokens"] == 600
    assert found.chunks[-1]["usage"]["completion_tokens"] == 600
    assert books.purse(poor) == (PRICE / 2, 0)


def test_answers_that_no_money_is_left_for_are_told_as_cut(with_money_for):
    poor = with_money_for(700)
    answer = poor.chat(HELLO, n=3, max_tokens=600)
    assert answer.status == 200, answer.body
    assert [choice["index"] for choice in answer.json["choices"]] == [0, 1, 2]
    assert {choice["finish_reason"] for choice in answer.json["choices"]} == {"length"}
    assert [bool(choice["message"]["content"]) for choice in answer.json["choices"]] == [True, True, False]
    assert answer.json["usage"]["completion_tokens"] == 700
    assert books.purse(poor) == (PRICE / 2, 0)


def test_the_slot_is_free_again_after_a_cut(with_money_for, caller):
    for _ in range(3):
        assert with_money_for(512).chat(HELLO, max_tokens=LONG).status == 200
    answers = [caller.chat(HELLO, max_tokens=2) for _ in range(5)]
    assert {answer.status for answer in answers} == {200}


def test_who_cannot_pay_the_beginning_is_refused(with_money_for):
    poor = with_money_for(511)
    refused = poor.chat(HELLO, max_tokens=LONG)
    assert (refused.status, refused.error["type"]) == (429, "exceeded_current_quota_error")
    assert poor.chat(HELLO, max_tokens=511).status == 200


def test_large_answers_do_not_keep_each_other_from_beginning(with_money_for):
    """Money for one whole answer lets three begin at once: each may need it, and none does yet."""
    caller = with_money_for(6000)
    calls = [Call(caller, HELLO, stream=True, max_tokens=6000) for _ in range(3)]
    for call in calls:
        call.__enter__()
    try:
        assert [call.answer.status for call in calls] == [200, 200, 200]
    finally:
        for call in calls:
            call.__exit__(None, None, None)
    wait_for(lambda: books.is_idle(caller), seconds=20, what="the calls are settled")
