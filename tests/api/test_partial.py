"""Partial mode: the answer goes on from the last message and does not repeat it."""

from __future__ import annotations

import pytest

from tests.api import books
from tests.api.streams import streamed
from tests.api.test_header_mode import named

HELLO = {"role": "user", "content": "Hello there."}


def partial(text: str, **more):
    return {"role": "assistant", "content": text, "partial": True, **more}


def text_of(answer) -> str:
    assert answer.status == 200, answer.body
    return answer.json["choices"][0]["message"]["content"]


def test_the_answer_goes_on_and_does_not_repeat_what_was_given(caller):
    answer = caller.chat(HELLO, partial('{ "port": "Hoek'), max_tokens=8)
    text = text_of(answer)
    assert text and not text.startswith("{")
    usage = answer.json["usage"]
    assert sum(books.spent(caller).values()) == books.call_price(usage, is_hit=False)
    alone = caller.chat(HELLO).json["usage"]
    assert usage["prompt_tokens"] > alone["prompt_tokens"]
    assert usage["completion_tokens"] == 8


def test_an_answer_that_is_gone_on_from_goes_on_as_it_did(caller):
    # A character is a token here, so that the cut leaves the tokens before it as they were.
    begun = text_of(caller.chat(HELLO, max_tokens=1))
    whole = text_of(caller.chat(HELLO, max_tokens=12))
    assert whole.startswith(begun)
    rest = text_of(caller.chat(HELLO, partial(begun), max_tokens=11))
    assert begun + rest == whole


def test_a_stream_says_the_same(caller):
    whole = text_of(caller.chat(HELLO, partial("Well, "), max_tokens=8))
    found = streamed(caller, HELLO, partial("Well, "), max_tokens=8)
    assert found.text == whole
    assert found.is_done


def test_a_name_may_be_given_and_a_text_may_be_empty(caller):
    answer = caller.chat(HELLO, partial("", name="Kelsey"))
    assert text_of(answer) == text_of(caller.chat(HELLO))


def test_a_message_that_is_not_partial_is_a_closed_turn(caller):
    closed = caller.chat(HELLO, {"role": "assistant", "content": "Well, "}).json["usage"]["prompt_tokens"]
    begun = caller.chat(HELLO, partial("Well, ")).json["usage"]["prompt_tokens"]
    assert closed > begun
    unset = caller.chat(HELLO, {"role": "assistant", "content": "Well, ", "partial": False})
    assert unset.json["usage"]["prompt_tokens"] == closed


def test_it_goes_with_several_choices_and_a_seed(caller):
    asked = {"n": 2, "seed": 3, "temperature": 1, "max_tokens": 6}
    one, other = (caller.chat(HELLO, partial("Well, "), **asked).json["choices"] for _ in range(2))
    assert one == other
    assert one[0]["message"] != one[1]["message"]


@pytest.mark.parametrize("mode", ["message", "header"])
def test_on_a_cache_object_it_is_a_hit(caller, mode):
    active = caller.active()
    if mode == "message":
        cache = {"role": "cache", "content": f"cache_id={active['id']}"}
        answer = caller.chat(cache, HELLO, partial("Well, "))
    else:
        answer = caller.chat(*active["messages"], HELLO, partial("Well, "), headers=named(active["id"]))
    text_of(answer)
    usage = answer.json["usage"]
    assert usage["cached_tokens"] == active["tokens"]
    cold = caller.chat(*active["messages"], HELLO, partial("Well, ")).json["usage"]
    assert usage["prompt_tokens"] == cold["prompt_tokens"]
    assert books.spent(caller)["call"] == books.CALL


def test_an_objects_own_message_is_not_made_partial_by_a_header_call(caller):
    messages = [HELLO, {"role": "assistant", "content": "Well, "}]
    active = caller.active(messages=messages)
    answer = caller.chat(HELLO, partial("Well, "), headers=named(active["id"]))
    assert answer.status == 200
    assert answer.json["usage"]["cached_tokens"] == 0


def test_a_dry_run_counts_the_same(caller):
    active = caller.active()
    cache = {"role": "cache", "content": f"cache_id={active['id']};dry_run=1"}
    told = caller.chat(cache, HELLO, partial("Well, ")).json["usage"]
    called = caller.chat({**cache, "content": f"cache_id={active['id']}"}, HELLO, partial("Well, "))
    assert told["prompt_tokens"] == called.json["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("messages", "fields", "path"),
    [
        ([partial("{"), HELLO], {}, "messages[0].partial: "),
        ([{**HELLO, "partial": True}], {}, "messages[0].partial: "),
        ([HELLO, {"role": "assistant", "partial": True}], {}, "messages[1].content: "),
        ([HELLO, partial("{")], {"response_format": {"type": "json_object"}}, "response_format.type: "),
        ([HELLO, {**partial("{"), "partial": "yes"}], {}, "messages[1].partial: "),
    ],
)
def test_elsewhere_it_is_refused(bystander, messages, fields, path):
    refused = bystander.chat(*messages, **fields)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith(f"Invalid request: {path}")


def test_a_cache_object_takes_none(bystander):
    refused = bystander.create(messages=[HELLO, partial("{")])
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith("Invalid request: messages[1].partial: ")
