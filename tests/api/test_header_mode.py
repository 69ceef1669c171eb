"""Calls on a cache object named in a header: the caller sends all messages, and a match saves their prefill."""

from __future__ import annotations

import copy

import pytest

from tests.api import books
from tests.api.streams import streamed
from tests.api.test_cached_call import ABSENT, ON_A_HIT, WEATHER, cache_headers

QUESTION = {"role": "user", "content": "And now?"}


def named(cache_id: str, **more: str) -> dict[str, str]:
    return {"X-Msh-Context-Cache": cache_id} | more


def ask(caller, active, *, cache_id=None, messages=None, **fields):
    messages = active["messages"] if messages is None else messages
    return caller.chat(*messages, QUESTION, headers=named(cache_id or active["id"]), **fields)


def test_a_match_is_a_hit(caller):
    active = caller.active()
    before = sum(books.spent(caller).values())
    answer = ask(caller, active)
    assert answer.status == 200, answer.body
    assert set(cache_headers(answer)) == ON_A_HIT
    assert answer.headers["msh-context-cache-id"] == active["id"]
    assert answer.headers["msh-context-cache-token-saved"] == str(active["tokens"])
    assert answer.headers["msh-context-cache-token-exp"] == str(active["expired_at"])
    usage = answer.json["usage"]
    assert usage["cached_tokens"] == active["tokens"]
    assert sum(books.spent(caller).values()) - before == books.call_price(usage, is_hit=True)
    assert usage == caller.ask(active["id"]).json["usage"]


def test_a_match_can_be_streamed(caller):
    active = caller.active()
    found = streamed(caller, *active["messages"], QUESTION, headers=named(active["id"]))
    assert found.headers["msh-context-cache-id"] == active["id"]
    assert found.usage["cached_tokens"] == active["tokens"]
    assert books.spent(caller)["call"] == books.CALL


def test_keys_may_come_in_any_order(caller):
    active = caller.active(tools=[WEATHER])
    turned = [dict(reversed(message.items())) for message in active["messages"]]
    tool = copy.deepcopy(WEATHER)
    tool["function"] = dict(reversed(tool["function"].items()))
    answer = ask(caller, active, messages=turned, tools=[dict(reversed(tool.items()))])
    assert answer.json["usage"]["cached_tokens"] == active["tokens"]


def test_keys_inside_a_tools_parameters_may_come_in_any_order(caller):
    parameters = {"type": "object", "required": ["b", "a"], "properties": {"b": {}, "a": {"type": "string"}}}
    turned = {"properties": {"a": {"type": "string"}, "b": {}}, "required": ["b", "a"], "type": "object"}

    def tool(about):
        return {"type": "function", "function": {"name": "f", "description": "d", "parameters": about}}

    active = caller.active(tools=[tool(parameters)])
    assert caller.ask(active["id"]).json["usage"]["cached_tokens"] == active["tokens"]
    for sent in (parameters, turned):
        answer = ask(caller, active, tools=[tool(sent)])
        assert answer.headers.get("msh-context-cache-id") == active["id"]
        assert answer.json["usage"]["cached_tokens"] == active["tokens"]


def test_a_number_in_a_tools_parameters_is_counted_as_it_is_kept(caller):
    parameters = {"type": "object", "properties": {"a": {"maximum": 1e18, "minimum": -0.0, "default": 1.5}}}
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": parameters}}
    active = caller.active(tools=[tool])
    answer = ask(caller, active, tools=[tool])
    assert answer.headers["msh-context-cache-token-saved"] == str(active["tokens"])
    assert answer.json["usage"]["cached_tokens"] == active["tokens"]
    assert str(active["tools"]) == str(caller.create(tools=[tool]).json["tools"])


def test_keys_inside_a_tool_call_may_come_in_any_order(caller):
    call = {"id": "f:0", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": [2]}'}}
    messages = [
        {"role": "user", "content": "Hello.", "name": "somebody"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "f:0", "content": "Done."},
    ]
    active = caller.active(messages=messages)
    call = {"function": dict(reversed(call["function"].items())), "type": "function", "id": "f:0"}
    turned = [messages[0], {"tool_calls": [call], "role": "assistant"}, dict(reversed(messages[2].items()))]
    for sent in (messages, turned):
        answer = ask(caller, active, messages=sent)
        assert answer.headers.get("msh-context-cache-id") == active["id"]
        assert answer.json["usage"]["cached_tokens"] == active["tokens"]
        assert answer.json["usage"] == caller.ask(active["id"]).json["usage"]


def test_a_match_does_not_carry_the_objects_messages(caller, django_assert_num_queries):
    from cacheplane.access import api_keys
    from cacheplane.gateway import matching
    from cacheplane.gateway.matching import Reference

    made = caller.create().json
    known = api_keys.authenticate(caller.key)
    with django_assert_num_queries(1):
        named_by_header = matching.find(known, Reference(cache_id=made["id"], is_message=False))
    named_by_message = matching.find(known, Reference(cache_id=made["id"]))
    assert named_by_header.messages is None
    assert named_by_message.messages is not None
    assert matching.is_prefix_of(named_by_header, named_by_message.messages, None)


def test_null_and_absent_tools_are_the_same(caller):
    active = caller.active(tools=None)
    assert ask(caller, active, tools=None).json["usage"]["cached_tokens"] == active["tokens"]


def unmatched(caller, active) -> dict[str, list[dict[str, str]]]:
    (message,) = active["messages"]
    return {
        "another text": [{**message, "content": message["content"] + " "}],
        "another role": [{**message, "role": "user"}],
        "a name": [{**message, "name": "somebody"}],
        "something before it": [{"role": "system", "content": "First."}, message],
    }


@pytest.mark.parametrize("how", ["another text", "another role", "a name", "something before it"])
def test_what_does_not_match_is_an_ordinary_call(caller, how):
    active = caller.active()
    before = sum(books.spent(caller).values())
    answer = ask(caller, active, messages=unmatched(caller, active)[how])
    assert answer.status == 200
    assert cache_headers(answer) == {}
    assert answer.json["usage"]["cached_tokens"] == 0
    assert sum(books.spent(caller).values()) - before == books.call_price(answer.json["usage"], is_hit=False)


def test_other_tools_do_not_match(caller):
    active = caller.active()
    answer = ask(caller, active, tools=[WEATHER])
    assert (answer.status, cache_headers(answer)) == (200, {})


def test_fewer_messages_than_it_has_do_not_match(caller):
    messages = [{"role": "system", "content": "One."}, {"role": "user", "content": "Two."}]
    active = caller.active(messages=messages)
    answer = caller.chat(messages[0], headers=named(active["id"]))
    assert (answer.status, cache_headers(answer)) == (200, {})


@pytest.mark.parametrize("cache_id", [ABSENT, "x", "tag=blue", "a" * 500, "%00"])
def test_an_unknown_id_is_an_ordinary_call(caller, cache_id):
    answer = caller.chat(QUESTION, headers=named(cache_id))
    assert (answer.status, cache_headers(answer)) == (200, {})
    assert sum(books.spent(caller).values()) == books.call_price(answer.json["usage"], is_hit=False)


def test_somebody_elses_id_is_an_ordinary_call_like_an_unknown_one(caller, outsider):
    active = caller.active()
    foreign = ask(outsider, active)
    unknown = ask(outsider, active, cache_id=ABSENT)
    assert (foreign.status, cache_headers(foreign)) == (200, {})
    assert foreign.json["usage"] == unknown.json["usage"]
    assert foreign.json["choices"] == unknown.json["choices"]
    assert foreign.json["usage"]["cached_tokens"] == 0


def test_a_pending_or_expired_one_is_an_ordinary_call(caller, no_precompute):
    expired = caller.expired()
    with no_precompute():
        pending = caller.create().json
        for one in (pending, expired):
            answer = ask(caller, one)
            assert (answer.status, cache_headers(answer)) == (200, {})
            assert answer.json["usage"]["cached_tokens"] == 0


def test_a_cache_message_wins_over_the_header(caller):
    one, other = caller.active("One."), caller.active("Other.")
    answer = caller.chat(
        {"role": "cache", "content": f"cache_id={one['id']}"}, QUESTION, headers=named(other["id"])
    )
    assert answer.headers["msh-context-cache-id"] == one["id"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Msh-Context-Cache-Reset-TTL", "soon"),
        ("X-Msh-Context-Cache-Reset-TTL", "-1"),
        ("X-Msh-Context-Cache-DryRun", "yes"),
    ],
)
def test_a_wrong_option_is_refused_by_its_headers_name(bystander, name, value):
    refused = bystander.chat(QUESTION, headers=named(ABSENT, **{name: value}))
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith(f"Invalid request: {name}: ")
