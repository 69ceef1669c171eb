"""`POST /v1/chat/completions` without a cache object."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.api import books
from tests.api.streams import Call, streamed
from tests.conftest import Client

HELLO = {"role": "user", "content": "Hello there."}
CALLED_WRONGLY = {
    "role": "assistant",
    "tool_calls": [{"id": "f:0", "type": "function", "function": {"name": "f", "arguments": "{"}}],
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}


def test_a_call_is_answered_and_charged_at_the_models_price(caller):
    answer = caller.chat(HELLO)
    assert answer.status == 200, answer.body
    body = answer.json
    assert set(body) == {"id", "object", "created", "model", "choices", "usage"}
    assert body["id"].startswith("cmpl-")
    assert (body["object"], body["model"]) == ("chat.completion", "moonshot-v1-8k")
    assert abs(body["created"] - time.time()) < 60
    (choice,) = body["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert isinstance(choice["message"]["content"], str)
    assert choice["finish_reason"] in ("stop", "length")
    usage = body["usage"]
    assert usage["prompt_tokens"] > 0
    assert 0 < usage["completion_tokens"] <= 4
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert sum(books.spent(caller).values()) == books.call_price(usage, is_hit=False)


@pytest.mark.parametrize("model", ["moonshot-v1-8k", "moonshot-v1-32k", "moonshot-v1-128k"])
def test_each_model_has_its_price(caller, model):
    answer = caller.chat(HELLO, model=model)
    assert answer.json["model"] == model
    assert sum(books.spent(caller).values()) == books.call_price(
        answer.json["usage"], is_hit=False, model=model
    )


def test_a_stream_says_the_same_in_pieces(caller):
    whole = caller.chat(HELLO, max_tokens=12).json
    found = streamed(caller, HELLO, max_tokens=12)
    assert found.status == 200
    assert found.headers["content-type"].startswith("text/event-stream")
    assert found.is_done
    assert {chunk["object"] for chunk in found.chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in found.chunks}) == 1
    assert {chunk["model"] for chunk in found.chunks} == {"moonshot-v1-8k"}
    assert found.chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert found.text == whole["choices"][0]["message"]["content"]
    assert found.last["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert found.usage == whole["usage"]
    finished = [c for chunk in found.chunks for c in chunk["choices"] if c["finish_reason"] is not None]
    assert finished == [found.last]
    assert [chunk for chunk in found.chunks if "usage" in chunk] == []


def test_usage_comes_once_more_when_it_is_asked_for(caller):
    found = streamed(caller, HELLO, stream_options={"include_usage": True})
    last = found.chunks[-1]
    assert last["choices"] == []
    assert last["usage"] == found.usage
    assert found.usage["prompt_tokens"] > 0
    assert sum(books.spent(caller).values()) == books.call_price(found.usage, is_hit=False)


def test_a_stream_is_settled_before_its_caller_sees_the_end(caller):
    for _ in range(5):
        with Call(caller, HELLO, stream=True) as call:
            for event in call.events():
                if event != "[DONE]" and event["choices"][0]["finish_reason"] is not None:
                    assert books.is_idle(caller)


@pytest.mark.parametrize(
    "unset",
    [
        {"temperature": 0, "top_p": 0, "n": 0, "presence_penalty": 0, "frequency_penalty": 0, "seed": 0},
        {"temperature": None, "top_p": None, "n": None, "stop": None, "seed": None, "tools": None},
        {"stream": None, "stream_options": None, "response_format": None, "tool_choice": None},
        {"mistyped": {"a": 1}, "user": "somebody", "logprobs": False},
    ],
)
def test_what_is_not_set_is_tolerated(caller, unset):
    assert caller.chat(HELLO, **unset).status == 200


def test_what_is_set_is_taken(caller):
    taken = {
        "temperature": 0.7,
        "top_p": 0.9,
        "n": 1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "stop": ["\n\n", "END"],
        "seed": 7,
        "response_format": {"type": "text"},
        "tools": [WEATHER],
        "tool_choice": "none",
    }
    first, second = caller.chat(HELLO, **taken), caller.chat(HELLO, **taken)
    assert first.status == second.status == 200
    assert first.json["choices"] == second.json["choices"], "the same seed gives the same answer"


def test_text_may_come_in_parts(caller):
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there."}]
    assert caller.chat({"role": "user", "content": parts}).status == 200


def test_tool_calls_in_the_history_are_taken(caller):
    call = {"id": "get_weather:0", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    answer = caller.chat(
        HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "get_weather:0", "content": "Dry."},
        tools=[WEATHER],
    )
    assert answer.status == 200, answer.body


def test_chinese_comes_and_goes_as_utf_8(caller):
    whole = caller.chat({"role": "user", "content": "你好,世界。"}, max_tokens=12)
    assert whole.status == 200
    found = streamed(caller, {"role": "user", "content": "你好,世界。"}, max_tokens=12)
    assert found.text == whole.json["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": []}, "messages: "),
        ({"messages": ["hi"]}, "messages[0]: "),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role: "),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages[0].content: "),
        ({"messages": [{**HELLO, "partial": True}]}, "messages[0].partial: "),
        ({"messages": [HELLO, CALLED_WRONGLY]}, "messages[1].tool_calls[0].function.arguments: "),
        ({"temperature": 1.1}, "temperature: "),
        ({"temperature": "hot"}, "temperature: "),
        ({"top_p": -0.1}, "top_p: "),
        ({"max_tokens": -1}, "max_tokens: "),
        ({"max_tokens": 1.5}, "max_tokens: "),
        ({"n": 6}, "n: "),
        ({"n": -1}, "n: "),
        ({"stop": ["a"] * 6}, "stop"),
        ({"stop": "x" * 33}, "stop[0]: "),
        ({"seed": "seven"}, "seed: "),
        ({"stream": "yes"}, "stream: "),
        ({"response_format": {"type": "xml"}}, "response_format.type: "),
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"tool_choice": "required"}, "tool_choice: "),
        ({"presence_penalty": 3}, "presence_penalty: "),
    ],
)
def test_each_refusal_names_the_field(bystander, fields, named):
    body = {"model": "moonshot-v1-8k", "messages": [HELLO]} | fields
    refused = bystander.request("POST", "/v1/chat/completions", body)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith(f"Invalid request: {named}")


@pytest.mark.parametrize("model", ["moonshot-v1", "gpt-4", "", "moonshot-v1-8k\n"])
def test_an_unknown_model_is_refused_in_the_contracts_words(bystander, model):
    refused = bystander.chat(HELLO, model=model)
    assert (refused.status, refused.error["type"]) == (404, "resource_not_found_error")
    assert refused.error["message"] == f"Not found the model {model} or Permission denied"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"model":"moonshot-v1-8k","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"model":"moonshot-v1-8k","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"moonshot-v1-8k","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_call_is_refused_and_never_a_crash(bystander, body):
    refused = bystander.request("POST", "/v1/chat/completions", body)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("megabytes", [16, 48])
def test_a_body_that_is_too_large_is_refused(bystander, megabytes):
    refused = bystander.chat({"role": "user", "content": "x" * (megabytes << 20)})
    assert (refused.status, refused.error["type"]) == (413, "invalid_request_error")


def test_who_has_no_key_is_told_so_before_the_body_is_looked_at(instance):
    nobody = Client(instance.base_url, "sk-wrong")
    refused = nobody.chat({"role": "user", "content": "x" * (20 << 20)})
    assert (refused.status, refused.error["type"]) == (401, "invalid_authentication_error")


def test_max_tokens_by_the_name_of_today(caller):
    assert (
        caller.chat(HELLO, max_tokens=None, max_completion_tokens=3).json["usage"]["completion_tokens"] <= 3
    )
    assert caller.chat(HELLO, max_tokens=2, max_completion_tokens=30).json["usage"]["completion_tokens"] <= 2


def test_prompt_and_max_tokens_must_fit_the_window(bystander):
    refused = bystander.chat(HELLO, max_tokens=8192)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith("Your request exceeded model token limit : 8192")


def test_a_closed_gate_for_caching_leaves_chat_open(new_caller):
    assert new_caller(tier="tier0").chat(HELLO).status == 200


def test_more_callers_than_slots_are_all_served(caller):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: caller.chat({"role": "user", "content": f"Caller {n}."}), range(8)))
    assert [answer.status for answer in answers] == [200] * 8
    price = sum(books.call_price(answer.json["usage"], is_hit=False) for answer in answers)
    assert sum(books.spent(caller).values()) == price
