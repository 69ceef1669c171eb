"""Bodies and requests that are none: each is refused with a sentence that helps, and nothing breaks."""

from __future__ import annotations

import json

import pytest

from tests.conftest import Client

CHAT = "/v1/chat/completions"
MODEL = '"model":"moonshot-v1-8k","max_tokens":2'
HELLO = '"messages":[{"role":"user","content":"Hello."}]'


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def tool_with(parameters: str) -> str:
    return '"tools":[{"type":"function","function":{"name":"f","parameters":%s}}]' % parameters  # noqa: UP031


def tool_call_with(arguments: str) -> str:
    call = {"id": "f:0", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "f:0", "content": "Done."},
    ]
    return f'"messages":{json.dumps(messages)}'


def body(*fields: str) -> bytes:
    return ("{" + ",".join([MODEL, *fields]) + "}").encode("utf-8", "surrogatepass")


def refused_as(caller: Client, sent: bytes) -> str:
    answer = caller.request("POST", CHAT, sent)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error"), answer.body
    assert list(answer.error) == ["message", "type"]
    return answer.error["message"]


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"model=moonshot-v1-8k", "the body is not JSON"),
        (body(HELLO) + b"}", "the body is not JSON"),
        (body(HELLO).replace(b'"', b"'"), "the body is not JSON"),
        (body(HELLO).replace(b"}]}", b"},]}"), "the body is not JSON"),
        (b"\xff\xfe" + body(HELLO).decode().encode("utf-16-le"), "the body is not JSON"),
        (body(HELLO).replace(b"Hello", b"H\xe4llo"), "the body is not JSON"),
        (b'"moonshot"', "body: expected object"),
        (b"null", "body: expected object"),
        (b"[]", "body: expected object"),
    ],
)
def test_what_is_no_json_object_is_told_so(bystander, sent, told):
    assert f"Invalid request: {told}" in refused_as(bystander, sent)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("field", ["temperature", "max_tokens", "seed"])
def test_numbers_that_are_none_are_refused(bystander, field, number):
    sent = (
        body(HELLO, f'"{field}":{number}') if field != "max_tokens" else body(HELLO, f'"max_tokens":{number}')
    )
    assert refused_as(bystander, sent).startswith("Invalid request: ")


@pytest.mark.parametrize("number", ["1" * 400, "-" + "9" * 30, "1.5", '"1"', "true"])
def test_numbers_that_are_not_of_the_kind_name_their_field(bystander, number):
    assert refused_as(bystander, body(HELLO, f'"seed":{number}')).startswith("Invalid request: seed: ")


@pytest.mark.parametrize(
    "deep",
    [
        f'"messages":{"[" * 10_000}{"]" * 10_000}',
        f'"messages":[{nested(10_000)}]',
        f"{HELLO},{tool_with(nested(10_000))}",
        f'{HELLO},"unknown":{nested(10_000)}',
        f"{HELLO},{tool_with(nested(10_000))}".replace("1}", '"\\u0000"}'),
        tool_call_with(nested(10_000)),
    ],
    ids=["lists", "a message", "a tool", "unknown", "nul", "arguments"],
)
def test_what_is_nested_ten_thousand_deep_is_refused(bystander, deep):
    assert "nested too deeply" in refused_as(bystander, body(deep))


@pytest.mark.parametrize("depth", [850, 900, 930, 940, 950, 960, 970, 980, 990])
def test_at_whatever_depth_it_ends_it_is_an_answer_or_a_refusal(caller, depth):
    for sent in (
        body(HELLO, tool_with(nested(depth))),
        body(f'"messages":[{nested(depth)}]'.replace("1}", '"\\u0000"}')),
        body(tool_call_with(nested(depth))),
    ):
        assert caller.request("POST", CHAT, sent).status in (200, 400)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ('"messages":[{"role":"user","content":"a\\u0000b"}]', "messages[0].content: got a NUL"),
        ('"messages":[{"role":"user","content":"a","name":"\\u0000"}]', "messages[0].name: got a NUL"),
        ('"messages":[{"role":"user","content":"a\\ud800b"}]', ""),
        ('"messages":[{"role":"user","content":"a\\udc00\\ud800b"}]', ""),
        ('"messages":[{"role":"user","content":"a\ud800b"}]', ""),
        ('"messages":[{"role":"user","content":"a\0b"}]', ""),
    ],
)
def test_characters_that_are_none_are_refused(bystander, fields, path):
    assert refused_as(bystander, body(fields)).startswith(f"Invalid request: {path}")


@pytest.mark.parametrize(
    ("sent", "key"),
    [
        (body(HELLO, '"n":2', '"max_tokens":3', '"n":1'), "max_tokens"),
        (body(HELLO, HELLO), "messages"),
        (body('"messages":[{"role":"user","content":"a","content":"b"}]'), "content"),
        (body(HELLO, tool_with('{"type":"object","type":"object"}')), "type"),
        (body(HELLO, '"unknown":1', '"unkn\\u006fwn":2'), "unknown"),
    ],
)
def test_a_key_that_comes_twice_is_refused_by_its_name(bystander, sent, key):
    assert refused_as(bystander, sent) == (
        f"Invalid request: {key}: got it more than once, takes each key of an object once"
    )


@pytest.mark.parametrize("field", ["unknown", "seed", "max_tokens"])
def test_a_number_of_any_length_breaks_nothing(caller, field):
    answer = caller.request(
        "POST", CHAT, body(HELLO, f'"{field}":{"9" * 5_000}').replace(b'"max_tokens":2,', b"")
    )
    assert answer.status == (200 if field == "unknown" else 400), answer.body


def test_a_creation_refuses_a_key_that_comes_twice(bystander):
    sent = b'{"model":"moonshot-v1","ttl":5,"messages":[{"role":"user","content":"x"}],"ttl":600}'
    answer = bystander.request("POST", "/v1/caching", sent)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert answer.error["message"].startswith("Invalid request: ttl: got it more than once")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ('"metadata":{"a":"b","a":"b"}', "a: got it more than once"),
        (
            '"tools":[{"type":"function","function":{"name":"f","parameters":{"a":{"b":1,"b":1}}}}]',
            "b: got it",
        ),
        ('"unknown":[[{"c":1,"\\u0063":2}]]', "c: got it more than once"),
        ('"name":"a\\u0000b"', "name: got a NUL"),
        ('"metadata":{"a":"\\u0000"}', "metadata.a: got a NUL"),
        ('"tools":[{"type":"function","function":{"name":"f","parameters":{"\\u0000":1}}}]', "tools[0]"),
        ('"name":"\\ud800"', "the body is not JSON"),
        ('"name":"\ud800"', "the body is not JSON"),
        (f'"unknown":{nested(10_000)}', "the body is nested too deeply"),
        (f'"tools":[{nested(10_000)}]', "the body is nested too deeply"),
        ('"tools":[{"type":"function","function":{"name":"f","parameters":{"a":1e400}}}]', ""),
        ('"ttl":1e400', "ttl: "),
    ],
)
def test_a_creation_refuses_what_a_call_refuses(bystander, fields, told):
    made = f'{{"model":"moonshot-v1","messages":[{{"role":"user","content":"x"}}],{fields}}}'
    answer = bystander.request("POST", "/v1/caching", made.encode("utf-8", "surrogatepass"))
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error"), answer.body
    assert answer.error["message"].startswith(f"Invalid request: {told}")


def test_a_number_in_what_is_ignored_may_be_of_any_size(caller):
    made = '{"model":"moonshot-v1","messages":[{"role":"user","content":"x"}],"unknown":[1e400,-0.0,%s]}'
    assert caller.request("POST", "/v1/caching", (made % ("9" * 5_000)).encode()).status == 200


@pytest.mark.parametrize(
    "parameters",
    [
        '{"type":"nonsense"}',
        '{"$ref":"#/nowhere"}',
        '{"$ref":"http://127.0.0.1:1/x"}',
        '{"type":"object","properties":[]}',
        '{"type":"object","properties":{"a":{"enum":[]}}}',
        '{"type":"object","properties":{"a":{"type":"string","minLength":5000000}}}',
    ],
)
def test_a_tools_schema_that_the_engine_cannot_take_is_refused_and_costs_nothing(caller, parameters):
    told = refused_as(caller, body(HELLO, tool_with(parameters)))
    assert told.startswith("Invalid request: tools: got a schema that the engine cannot take: ")
    assert caller.balance()["available_balance"] == 1000


@pytest.mark.parametrize("size_bytes", [16 << 20, (16 << 20) + 4096])
def test_a_body_beyond_the_limit_is_refused_with_the_limit(bystander, size_bytes):
    answer = bystander.request("POST", CHAT, body(HELLO) + b" " * size_bytes)
    assert (answer.status, answer.error["type"]) == (413, "invalid_request_error")
    assert str(16 << 20) in answer.error["message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_another_verb_is_told_the_right_one(bystander, method):
    answer = bystander.request(method, CHAT)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert answer.error["message"] == f"Invalid request: method: got {method}, takes POST"


@pytest.mark.parametrize(
    "path", [f"{CHAT}/", f"{CHAT}/x", "/v1/chat", "/v1/completions", "/chat/completions"]
)
def test_another_route_is_not_found_in_the_envelope(bystander, path):
    answer = bystander.request("POST", path, body(HELLO))
    assert (answer.status, answer.error["type"]) == (404, "resource_not_found_error")
