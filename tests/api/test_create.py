"""`POST /v1/caching`: it works."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.api import books
from tests.conftest import REPOSITORY

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
MESSAGES = [
    {"role": "system", "content": "You answer shortly."},
    {"role": "user", "content": "A whole file.", "name": "_resource"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "get_weather:0",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"place":"Here"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "get_weather:0", "content": "Dry."},
]


def as_sent(messages):
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def test_a_new_object_is_echoed_as_the_contract_says(caller):
    answer = caller.request(
        "POST",
        "/v1/caching",
        {
            "model": "moonshot-v1",
            "messages": MESSAGES,
            "tools": [WEATHER],
            "name": "CodeRunner",
            "description": "Runs code.",
            "metadata": {"team": "blue", "über": "ja"},
            "ttl": 600,
        },
    )
    assert answer.status == 200, answer.body
    body = answer.json
    assert set(body) == {
        *("id", "object", "model", "messages", "tools", "name", "description", "metadata"),
        *("created_at", "expired_at", "status", "tokens"),
    }
    assert re.fullmatch(r"cache-[a-z0-9]{20}", body["id"])
    assert body["object"] == "context_cache_object"
    assert body["model"] == "moonshot-v1"
    assert as_sent(body["messages"]) == as_sent(MESSAGES)
    assert body["tools"] == [WEATHER]
    assert (body["name"], body["description"]) == ("CodeRunner", "Runs code.")
    assert body["metadata"] == {"team": "blue", "über": "ja"}
    assert body["status"] == "pending"
    assert abs(body["created_at"] - time.time()) < 30
    assert body["expired_at"] == body["created_at"] + 600
    assert body["tokens"] > 0


@pytest.mark.parametrize(
    "text",
    [
        "quotes \" ' '' and backslashes \\ \\\\ \\n \\u0041",
        "%s %(a)s %% $1 :a {0} {{a}} -- ; /* $$ E'\\x41'",
        "tab \t, line \r\n, \x01\x1f\x7f, \u2028\u2029, \ufeff",
        "北京 — ümlaut — 😀 — e\u0301 \u00e9 — \uffff",
        "<|im_end|> \\u0000 0",
        " ",
        "long " * 20_000,
    ],
    ids=["quoted", "placeholders", "control", "beyond ASCII", "signs", "blank", "long"],
)
def test_what_is_kept_is_what_was_sent(caller, text):
    from cacheplane.caching.digests import digest
    from cacheplane.caching.models import CacheObject

    call = {"id": "f:0", "type": "function", "function": {"name": "f", "arguments": json.dumps({"a": text})}}
    messages = [
        {"role": "user", "content": text},
        {"role": "user", "content": [{"type": "text", "text": text}]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "f:0", "content": text},
    ]
    made = caller.request("POST", "/v1/caching", {"model": "moonshot-v1", "messages": messages}).json
    assert as_sent(made["messages"]) == messages
    assert as_sent(caller.get(made["id"]).json["messages"]) == messages
    row = CacheObject.objects.get(id=made["id"])
    assert (row.message_count, row.digest) == (4, digest(row.messages, None))


@pytest.mark.parametrize(
    "parameters",
    [
        '{"maximum": 123456789012345678901234567890, "minimum": -9223372036854775809}',
        '{"default": -0.0, "multipleOf": 1e-300, "minimum": -1.5, "maximum": 1e18}',
        '{"b": {"b": [{"b": 1, "a": 2}], "a": null}, "a": []}',
    ],
)
def test_what_a_tools_parameters_say_is_kept(caller, parameters):
    tool = {"type": "function", "function": {"name": "f", "parameters": json.loads(parameters)}}
    made = caller.create(tools=[tool]).json
    assert made["tools"] == caller.get(made["id"]).json["tools"] == [tool]


def test_it_becomes_active_and_stays_what_it_was(caller):
    made = caller.create("You answer shortly.").json
    active = caller.wait_until(made["id"], "active")
    assert active == made | {"status": "active"}


def test_only_model_and_messages_are_required(caller):
    body = {"model": "moonshot-v1", "messages": [{"role": "user", "content": "hi"}]}
    made = caller.request("POST", "/v1/caching", body).json
    assert (made["name"], made["description"], made["metadata"], made["tools"]) == ("", "", None, None)
    assert made["expired_at"] == made["created_at"] + 3600


def test_null_is_the_same_as_leaving_out(caller):
    nothing = {"tools": None, "name": None, "description": None, "metadata": None, "ttl": None}
    made = caller.create(**nothing, expired_at=None).json
    assert (made["name"], made["description"], made["metadata"], made["tools"]) == ("", "", None, None)
    assert made["expired_at"] == made["created_at"] + 3600


def test_tokens_count_messages_and_tools_while_it_is_pending(caller):
    plain, longer = caller.create().json, caller.create("You answer shortly. " * 10).json
    with_tools = caller.create(tools=[WEATHER]).json
    assert plain["status"] == longer["status"] == with_tools["status"] == "pending"
    assert 0 < plain["tokens"] < longer["tokens"]
    assert plain["tokens"] < with_tools["tokens"]


def test_tokens_are_what_is_charged(caller):
    active = caller.active()
    assert books.counted(caller, "creation") == [active["tokens"]]
    assert books.spent(caller)["creation"] == active["tokens"] * books.CREATION


def test_unknown_fields_are_ignored(caller):
    made = caller.create(mistyped="yes", timeout={"a": [1]})
    assert made.status == 200
    assert "mistyped" not in made.json


@pytest.mark.parametrize("unset", [0, -1])
def test_a_ttl_of_zero_or_less_is_not_given(caller, unset):
    made = caller.create(ttl=unset).json
    assert made["expired_at"] == made["created_at"] + 3600


@pytest.mark.parametrize("unset", [0, -1])
def test_an_expired_at_of_zero_or_less_leaves_the_ttl(caller, unset):
    made = caller.create(ttl=60, expired_at=unset).json
    assert made["expired_at"] == made["created_at"] + 60


def test_an_expired_at_is_kept_to_the_second(caller):
    until = int(time.time()) + 500
    made = caller.create(ttl=None, expired_at=until).json
    assert made["expired_at"] == until


def test_the_same_call_twice_makes_two_objects_each_paid(caller):
    first, second = caller.active("Twice the same."), caller.active("Twice the same.")
    assert first["id"] != second["id"]
    assert books.counted(caller, "creation") == [first["tokens"], second["tokens"]]


def test_many_at_once_are_all_made_and_their_ids_sort_by_time(caller):
    with ThreadPoolExecutor(8) as pool:
        made = [answer.json for answer in pool.map(lambda n: caller.create(f"Number {n}."), range(8))]
    assert len({body["id"] for body in made}) == 8
    last = caller.create("The last.").json
    assert max(body["id"] for body in made) < last["id"]


def test_the_largest_of_everything_is_taken(caller):
    fields = {
        "name": "n" * 256,
        "description": "d" * 512,
        "metadata": {f"{n:064}": "v" * 512 for n in range(16)},
    }
    made = caller.create(**fields)
    assert made.status == 200, made.body
    assert {name: made.json[name] for name in fields} == fields


def test_a_chinese_novel_in_one_message_is_taken_and_can_be_deleted_while_it_is_computed(caller):
    handbook = (REPOSITORY / "cacheplane/engines/corpus/handbook.zh.txt").read_text()
    novel = (handbook * (428_000 // len(handbook.encode()) + 1)).encode()[:428_000].decode(errors="ignore")
    made = caller.create(novel, name="novel")
    assert made.status == 200, made.body[:300]
    assert made.json["messages"][0]["content"] == novel
    assert made.json["tokens"] <= 131_072
    assert caller.request("DELETE", f"/v1/caching/{made.json['id']}").status == 200
    # The lane is free again at once: the next object does not wait for a prefill that nobody wants.
    after = caller.active("After the novel.")
    assert books.counted(caller, "creation") == [after["tokens"]]
