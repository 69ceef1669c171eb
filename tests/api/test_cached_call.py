"""Calls on a cache object named in the first message: `{"role": "cache", "content": "cache_id=…"}`."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.api import books
from tests.api.streams import streamed

ABSENT = "cache-00000000000000000000"
ON_A_HIT = {
    "msh-context-cache-id",
    "msh-context-cache-token-saved",
    "msh-context-cache-token-exp",
    "msh-context-cache-token-ttl",
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place, today or on another day.",
        "parameters": {"type": "object", "required": ["place"], "properties": {"place": {"type": "string"}}},
    },
}


def cache_message(content: str) -> dict[str, str]:
    return {"role": "cache", "content": content}


def cache_headers(answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("msh-context-cache")}


def test_a_hit_says_what_it_saved_and_costs_the_fee_and_the_rest(caller):
    active = caller.active()
    before = books.spent(caller)
    answer = caller.ask(active["id"])
    assert answer.status == 200, answer.body
    assert set(cache_headers(answer)) == ON_A_HIT
    assert answer.headers["msh-context-cache-id"] == active["id"]
    assert answer.headers["msh-context-cache-token-saved"] == str(active["tokens"])
    assert answer.headers["msh-context-cache-token-exp"] == str(active["expired_at"])
    assert answer.headers["msh-context-cache-token-ttl"] == str(active["expired_at"])
    usage = answer.json["usage"]
    assert usage["cached_tokens"] == active["tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": active["tokens"]}
    assert usage["prompt_tokens"] > active["tokens"]
    after = books.spent(caller)
    assert after["call"] == books.CALL
    assert sum(after.values()) - sum(before.values()) == books.call_price(usage, is_hit=True)


def test_the_answer_is_the_one_that_the_whole_conversation_gets(caller):
    active = caller.active("You are an expert on slots and holds.")
    question = {"role": "user", "content": "What is a slot?"}
    cached = caller.chat(cache_message(f"cache_id={active['id']}"), question, max_tokens=1).json
    cold = caller.chat(*active["messages"], question, max_tokens=1).json
    assert cached["usage"]["cached_tokens"] > 0 == cold["usage"]["cached_tokens"]
    assert cached["usage"]["prompt_tokens"] == cold["usage"]["prompt_tokens"]
    assert cached["choices"] == cold["choices"]


@pytest.mark.parametrize("model", ["moonshot-v1-8k", "moonshot-v1-32k", "moonshot-v1-128k"])
def test_one_object_serves_every_window_of_its_family(caller, model):
    active = caller.active()
    before = sum(books.spent(caller).values())
    answer = caller.ask(active["id"], model=model)
    assert answer.json["usage"]["cached_tokens"] == active["tokens"]
    price = books.call_price(answer.json["usage"], is_hit=True, model=model)
    assert sum(books.spent(caller).values()) - before == price


def test_a_hit_can_be_streamed(caller):
    active = caller.active()
    before = sum(books.spent(caller).values())
    question = {"role": "user", "content": "And now?"}
    found = streamed(
        caller,
        cache_message(f"cache_id={active['id']}"),
        question,
        stream_options={"include_usage": True},
    )
    assert found.headers["msh-context-cache-id"] == active["id"]
    assert found.headers["msh-context-cache-token-saved"] == str(active["tokens"])
    assert found.usage["cached_tokens"] == active["tokens"]
    assert found.chunks[-1]["usage"] == found.usage
    assert found.is_done
    assert sum(books.spent(caller).values()) - before == books.call_price(found.usage, is_hit=True)
    assert found.usage == caller.ask(active["id"]).json["usage"]


def test_it_may_be_the_whole_conversation(caller):
    active = caller.active("", messages=[{"role": "user", "content": "Who are you?"}])
    answer = caller.chat(cache_message(f"cache_id={active['id']}"))
    assert answer.status == 200, answer.body
    assert answer.headers["msh-context-cache-id"] == active["id"]
    assert active["tokens"] - 1 <= answer.json["usage"]["cached_tokens"] <= active["tokens"]


def test_its_tools_come_with_it(caller):
    plain, equipped = caller.active(), caller.active(tools=[WEATHER])
    answer = caller.ask(equipped["id"])
    assert answer.status == 200, answer.body
    assert answer.json["usage"]["cached_tokens"] == equipped["tokens"] > plain["tokens"]
    assert caller.ask(equipped["id"], tools=None).status == 200


@pytest.mark.parametrize("tools", [[], [WEATHER], {}])
def test_tools_of_the_calls_own_are_refused(caller, tools):
    made = caller.create()
    refused = caller.ask(made.json["id"], tools=tools)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith("Invalid request: tools: ")


def test_tool_calls_in_it_are_part_of_the_prefix(caller):
    messages = [
        {"role": "user", "content": "The weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "w:0", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "w:0", "content": "Dry."},
        {"role": "assistant", "content": "It is dry."},
    ]
    active = caller.active(messages=messages, tools=[WEATHER])
    answer = caller.ask(active["id"])
    assert answer.status == 200, answer.body
    assert answer.json["usage"]["cached_tokens"] == active["tokens"]


def test_a_pending_object_is_used_at_the_normal_price(caller, no_precompute):
    with no_precompute():
        made = caller.create().json
        answer = caller.ask(made["id"])
        assert answer.status == 200, answer.body
        assert cache_headers(answer) == {}
        usage = answer.json["usage"]
        assert usage["cached_tokens"] == 0
        assert usage["prompt_tokens"] > made["tokens"]
        assert sum(books.spent(caller).values()) == books.call_price(usage, is_hit=False)
        assert caller.get(made["id"]).json["status"] == "pending"


def test_an_expired_object_is_used_at_the_normal_price(caller):
    expired = caller.expired()
    answer = caller.ask(expired["id"])
    assert answer.status == 200
    assert cache_headers(answer) == {}
    assert answer.json["usage"]["cached_tokens"] == 0
    assert "call" not in books.spent(caller)
    assert caller.get(expired["id"]).json["status"] == "expired"


def test_somebody_elses_object_answers_exactly_like_an_absent_one(caller, outsider):
    active = caller.active()
    foreign, absent = outsider.ask(active["id"]), outsider.ask(ABSENT)
    assert (foreign.status, foreign.error["type"]) == (404, "resource_not_found_error")
    assert foreign.body.replace(active["id"].encode(), b"ID") == absent.body.replace(ABSENT.encode(), b"ID")
    assert sorted(foreign.headers) == sorted(absent.headers)
    assert books.purse(outsider) == (1000, 0)


def test_nothing_of_one_organization_is_served_to_another(caller, outsider, prose):
    text = prose(400)
    active = caller.active(text)
    assert caller.ask(active["id"]).json["usage"]["cached_tokens"] == active["tokens"]
    for _ in range(6):  # so that each slot is met
        answer = outsider.chat({"role": "system", "content": text}, {"role": "user", "content": "And now?"})
        assert answer.json["usage"]["cached_tokens"] == 0
    own = outsider.active(text)
    assert outsider.ask(own["id"]).json["usage"]["cached_tokens"] == own["tokens"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        ABSENT,
        "cache_id=",
        f"cache_id={ABSENT};",
        f"cache_id={ABSENT};colour=red",
        f"cache_id={ABSENT};cache_id={ABSENT}",
        f"cache_id={ABSENT};reset_ttl=",
        f"cache_id={ABSENT};reset_ttl=0",
        f"cache_id={ABSENT};reset_ttl=-5",
        f"cache_id={ABSENT};reset_ttl=soon",
        f"cache_id={ABSENT};reset_ttl={10**17}",
        f"cache_id={ABSENT};reset_ttl={'9' * 5000}",
        f"cache_id={ABSENT};dry_run=2",
        f"cache_id={ABSENT};dry_run=",
        f"cache_id={ABSENT} ;dry_run=yes",
        "reset_ttl=60",
    ],
)
def test_wrong_options_are_refused(bystander, content):
    refused = bystander.chat(cache_message(content), {"role": "user", "content": "x"})
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith("Invalid request: ")


def test_the_cache_message_comes_first_and_once(bystander):
    cache, user = cache_message(f"cache_id={ABSENT}"), {"role": "user", "content": "x"}
    for messages in ([user, cache], [cache, cache, user], [cache, user, cache]):
        refused = bystander.chat(*messages)
        assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
        assert ".role: got 'cache', takes it first and once" in refused.error["message"]


def test_more_callers_than_slots_all_hit(caller, prose):
    active = caller.active(prose(400))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: caller.ask(active["id"], f"Question {n}?"), range(8)))
    assert [answer.status for answer in answers] == [200] * 8
    assert {answer.json["usage"]["cached_tokens"] for answer in answers} == {active["tokens"]}
    assert books.spent(caller)["call"] == 8 * books.CALL


def restored_answer(caller, cache_id):
    """The choices of a call for which no slot is known to hold anything: its state comes from the file."""
    from cacheplane.engines.models import EngineSlot

    EngineSlot.objects.update(resident=None)
    return caller.ask(cache_id).json["choices"]


def test_many_objects_share_the_slots_without_mixing(caller, prose):
    active = [caller.active(prose(200 + 40 * n)) for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda n: caller.ask(active[n % 6]["id"]), range(18)))
    for n, answer in enumerate(answers):
        assert answer.headers["msh-context-cache-id"] == active[n % 6]["id"]
        assert answer.json["usage"]["cached_tokens"] == active[n % 6]["tokens"]
    # Restored twice, in another order, each gives the same answer. (A slot that still held the question as well would
    # have it computed in other portions, and might differ in the last bit.)
    there = [restored_answer(caller, one["id"]) for one in active]
    and_back = [restored_answer(caller, one["id"]) for one in reversed(active)]
    assert there == and_back[::-1]
    # And it is the answer to its own messages. An engine that computes the same prompt in other portions may differ
    # in the last bit, and now and then in a word: states that were mixed up would leave none alike.
    cold = [
        caller.chat(*one["messages"], {"role": "user", "content": "And now?"}).json["choices"]
        for one in active
    ]
    assert sum(one == other for one, other in zip(there, cold, strict=True)) >= 4


def test_a_hit_does_not_move_the_end(caller):
    active = caller.active()
    assert caller.ask(active["id"]).status == 200
    assert caller.get(active["id"]).json == active


def test_a_chat_just_after_creation_succeeds(caller):
    made = caller.create().json
    time.sleep(0.5)
    answer = caller.ask(made["id"])
    assert answer.status == 200
    assert answer.json["usage"]["cached_tokens"] in (0, made["tokens"])
