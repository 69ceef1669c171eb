"""Several answers to one prompt: `n` up to 5."""

from __future__ import annotations

import pytest

from tests.api import books
from tests.api.streams import Call, Streamed, streamed
from tests.api.test_hang_up import all_is_given_back
from tests.conftest import wait_for

HELLO = {"role": "user", "content": "Hello there."}
PRICE = books.TOKENS["moonshot-v1-8k"]


def texts_of(found: Streamed) -> list[str]:
    texts: dict[int, str] = {}
    for chunk in found.chunks:
        for choice in chunk["choices"]:
            text = choice["delta"].get("content") or ""
            texts[choice["index"]] = texts.get(choice["index"], "") + text
    return [texts[index] for index in sorted(texts)]


def finished(found: Streamed) -> list[dict]:
    return [
        choice for chunk in found.chunks for choice in chunk["choices"] if choice["finish_reason"] is not None
    ]


@pytest.mark.parametrize("n", [2, 5])
def test_the_prompt_is_paid_once_and_each_answer_for_itself(caller, n):
    one = caller.chat(HELLO).json
    before = books.spent(caller)
    answer = caller.chat(HELLO, n=n, temperature=0.9)
    assert answer.status == 200, answer.body
    assert [choice["index"] for choice in answer.json["choices"]] == list(range(n))
    for choice in answer.json["choices"]:
        assert set(choice) == {"index", "message", "finish_reason"}
        assert choice["finish_reason"] == "length"
        assert choice["message"]["role"] == "assistant" and choice["message"]["content"]
    usage = answer.json["usage"]
    assert usage["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert usage["completion_tokens"] == 4 * n
    assert usage["cached_tokens"] == 0, "what the later answers find in the slot is no cache object"
    assert books.spent(caller)["prompt"] - before["prompt"] == usage["prompt_tokens"] * PRICE
    assert books.spent(caller)["completion"] - before["completion"] == 4 * n * PRICE


def test_a_stream_tells_each_answer_with_its_index_and_the_usage_up_to_it(caller):
    asked = {"n": 3, "seed": 5, "temperature": 1, "max_tokens": 6}
    whole = caller.chat(HELLO, **asked).json
    found = streamed(caller, HELLO, stream_options={"include_usage": True}, **asked)
    assert found.is_done
    assert len({chunk["id"] for chunk in found.chunks}) == 1
    assert texts_of(found) == [choice["message"]["content"] for choice in whole["choices"]]
    ends = finished(found)
    assert [end["index"] for end in ends] == [0, 1, 2]
    assert [end["usage"]["completion_tokens"] for end in ends] == [6, 12, 18]
    assert {end["usage"]["prompt_tokens"] for end in ends} == {whole["usage"]["prompt_tokens"]}
    assert ends[-1]["usage"] == whole["usage"] == found.chunks[-1]["usage"]
    roles = [c["index"] for chunk in found.chunks for c in chunk["choices"] if c["delta"].get("role")]
    assert sorted(set(roles)) == [0, 1, 2]


def test_each_answer_has_a_seed_of_its_own_and_all_are_there_again(caller):
    asked = {"n": 3, "seed": 40, "temperature": 1, "max_tokens": 8}
    texts = [c["message"]["content"] for c in caller.chat(HELLO, **asked).json["choices"]]
    assert len(set(texts)) == 3
    assert texts == [c["message"]["content"] for c in caller.chat(HELLO, **asked).json["choices"]]
    alone = {"seed": 40, "temperature": 1, "max_tokens": 8}
    assert caller.chat(HELLO, **alone).json["choices"][0]["message"]["content"] == texts[0]


def test_on_a_cache_object_the_fee_is_paid_once(caller):
    active = caller.active()
    answer = caller.ask(active["id"], n=2)
    usage = answer.json["usage"]
    assert (usage["cached_tokens"], usage["completion_tokens"]) == (active["tokens"], 8)
    assert books.spent(caller)["call"] == books.CALL
    assert caller.ask(active["id"]).json["usage"]["cached_tokens"] == active["tokens"], (
        "the slot still holds it"
    )


def test_who_cannot_pay_the_beginnings_of_all_answers_gets_none(new_caller):
    poor = new_caller(money="0.005")
    assert poor.chat(HELLO, max_tokens=100).status == 200
    refused = poor.chat(HELLO, max_tokens=100, n=5)
    assert (refused.status, refused.error["type"]) == (429, "exceeded_current_quota_error")


def test_all_answers_count_for_the_limits(new_caller):
    bound = new_caller(tier="tier0")
    refused = bound.chat(HELLO, max_tokens=7000, n=5)
    assert (refused.status, refused.error["type"]) == (429, "rate_limit_reached_error")
    assert "TPM" in refused.error["message"]


def test_who_leaves_during_the_second_answer_pays_for_what_was_produced(instance, caller):
    with Call(caller, HELLO, stream=True, n=2, max_tokens=1500) as call:
        for event in call.events():
            assert event != "[DONE]"
            choice = event["choices"][0]
            if choice["index"] == 1 and choice["delta"].get("content"):
                break
    wait_for(lambda: all_is_given_back(instance, caller), seconds=15, what="all is given back")
    (produced,) = books.counted(caller, "completion")
    assert 1500 < produced < 3000
    assert books.spent(caller)["completion"] == produced * PRICE


def test_a_stop_word_ends_each_answer(caller):
    first = caller.chat(HELLO, max_tokens=8).json["choices"][0]["message"]["content"]
    answer = caller.chat(HELLO, n=2, max_tokens=8, stop=[first[3:5]])
    for choice in answer.json["choices"]:
        assert choice["finish_reason"] == "stop"
        assert first[3:5] not in choice["message"]["content"]
