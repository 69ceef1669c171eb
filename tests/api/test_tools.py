"""Tool calls in answers, JSON answers, and what else steers an answer."""

from __future__ import annotations

import json

import pytest

from tests.api.streams import streamed

HELLO = {"role": "user", "content": "What is the weather?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
CALLING = {
    "role": "assistant",
    "content": '<tool_call>\n{"name": "get_weather", "arguments": {"place": "',
    "partial": True,
}
"""The model has learnt nothing and calls no tool by itself: it goes on from a call that was begun for it."""


@pytest.fixture(params=[{"tool_choice": "auto"}, {"tool_choice": None}, {}], ids=["auto", "null", "absent"])
def asked(request):
    return {"tools": [WEATHER], "max_tokens": 5, **request.param}


def test_a_tool_call_has_the_dialects_id(caller, asked):
    answer = caller.chat(HELLO, CALLING, **asked)
    assert answer.status == 200, answer.body
    (call,) = answer.json["choices"][0]["message"]["tool_calls"]
    assert (call["id"], call["type"]) == ("get_weather:0", "function")
    assert call["function"]["name"] == "get_weather"
    assert call["function"]["arguments"]


def test_a_stream_opens_the_call_with_its_id_and_goes_on_without(caller, asked):
    (whole,) = caller.chat(HELLO, CALLING, **asked).json["choices"][0]["message"]["tool_calls"]
    found = streamed(caller, HELLO, CALLING, **asked)
    pieces = [
        piece
        for chunk in found.chunks
        for choice in chunk["choices"]
        for piece in choice["delta"].get("tool_calls", [])
    ]
    assert [piece["id"] for piece in pieces if "id" in piece] == ["get_weather:0"]
    assert pieces[0]["function"]["name"] == "get_weather"
    assert {piece["index"] for piece in pieces} == {0}
    assert (
        "".join(piece["function"].get("arguments", "") for piece in pieces) == whole["function"]["arguments"]
    )


def test_with_none_no_tool_is_called(caller):
    answer = caller.chat(HELLO, CALLING, tools=[WEATHER], tool_choice="none", max_tokens=5)
    assert "tool_calls" not in answer.json["choices"][0]["message"]


def test_a_call_on_an_object_with_tools_may_call_them(caller):
    active = caller.active(tools=[WEATHER])
    cache = {"role": "cache", "content": f"cache_id={active['id']}"}
    answer = caller.chat(cache, HELLO, CALLING, max_tokens=5)
    assert answer.json["usage"]["cached_tokens"] == active["tokens"]
    (call,) = answer.json["choices"][0]["message"]["tool_calls"]
    assert call["id"] == "get_weather:0"


def test_what_is_no_call_of_a_declared_tool_is_refused_and_not_charged(caller):
    begun = {**CALLING, "content": "<tool_call>\n"}
    answer = caller.chat(HELLO, begun, tools=[WEATHER], max_tokens=40)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert caller.balance()["available_balance"] == 1000


def test_a_json_answer_is_json_unless_it_was_cut_off(caller):
    asked = {"response_format": {"type": "json_object"}, "temperature": 1, "max_tokens": 300}
    ends = []
    for seed in (1, 6, 11):
        answer = caller.chat(HELLO, seed=seed, n=5, **asked)
        assert answer.status == 200, answer.body
        for choice in answer.json["choices"]:
            ends.append(choice["finish_reason"])
            text = choice["message"]["content"]
            assert text.lstrip().startswith("{")
            if choice["finish_reason"] == "stop":
                assert isinstance(json.loads(text), dict)
    assert {"stop"} <= set(ends) <= {"stop", "length"}


def test_a_streamed_json_answer_is_the_same(caller):
    asked = {"response_format": {"type": "json_object"}, "temperature": 1, "max_tokens": 60, "seed": 3}
    whole = caller.chat(HELLO, **asked).json["choices"][0]["message"]["content"]
    assert streamed(caller, HELLO, **asked).text == whole


def test_a_stop_word_ends_the_answer_and_is_not_in_it(caller):
    whole = caller.chat(HELLO, max_tokens=12).json["choices"][0]["message"]["content"]
    word = whole[6:9]
    answer = caller.chat(HELLO, max_tokens=12, stop=word).json["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert answer["message"]["content"] == whole[: whole.index(word)]
    found = streamed(caller, HELLO, max_tokens=12, stop=[word, "unheard"])
    assert found.text == answer["message"]["content"]


@pytest.mark.parametrize("seed", [1, 2**32 - 1, 2**63 - 1, -1])
def test_the_same_seed_gives_the_same_answer(caller, seed):
    asked = {"seed": seed, "temperature": 1, "max_tokens": 8}
    one, other = (caller.chat(HELLO, **asked).json["choices"] for _ in range(2))
    assert one == other


def test_what_steers_an_answer_reaches_the_engine(caller):
    def said(**fields):
        return caller.chat(HELLO, max_tokens=40, **fields).json["choices"][0]["message"]["content"]

    plain = said()
    assert said(temperature=0) == said(temperature=None) == said(seed=5) == plain
    assert said(temperature=1, seed=5) != plain
    assert said(temperature=1, seed=5, top_p=0.0001) == plain, "only the likeliest is left"
    assert said(frequency_penalty=2.0) != plain or said(presence_penalty=-2.0) != plain


def test_without_max_tokens_there_are_1024(caller):
    body = {"model": "moonshot-v1-8k", "messages": [HELLO]}
    for unset in ({}, {"max_tokens": None}, {"max_tokens": 0}):
        answer = caller.request("POST", "/v1/chat/completions", body | unset)
        assert answer.json["usage"]["completion_tokens"] == 1024


def test_a_call_counts_the_same_tokens_with_a_cache_and_without(caller):
    """However the caller orders the keys of the tools."""
    parameters = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    cached = caller.active(tools=tools)
    messages = [*cached["messages"], {"role": "user", "content": "And now?"}]
    plain = caller.chat(*messages, tools=tools)
    hit = caller.chat(*messages, tools=tools, headers={"X-Msh-Context-Cache": cached["id"]})
    assert hit.headers["msh-context-cache-id"] == cached["id"]
    assert hit.json["usage"]["prompt_tokens"] == plain.json["usage"]["prompt_tokens"]
