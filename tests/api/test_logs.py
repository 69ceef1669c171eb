"""What the logs of all processes hold, and what they must not."""

from __future__ import annotations

import json
import uuid

import pytest

from tests.api.streams import Call, streamed
from tests.conftest import wait_for


def test_no_text_and_no_key_gets_into_a_log_whatever_happens(instance, caller, new_caller, no_precompute):
    canary = f"canary{uuid.uuid4().hex}"
    secret = {"role": "user", "content": f"Tell nobody: {canary}."}
    tool = {"type": "function", "function": {"name": "f", "description": canary, "parameters": {canary: 1}}}
    call = {"id": f"f:{canary}", "type": "function", "function": {"name": "f", "arguments": canary}}

    active = caller.active(canary, name=canary, metadata={"k": canary}, tools=[tool])
    assert caller.ask(active["id"], canary).status == 200
    assert streamed(caller, secret).is_done
    with Call(caller, secret, stream=True, max_tokens=4000) as leaving:
        assert leaving.answer.status == 200
    refusals = [
        caller.create(canary, ttl=canary),
        caller.create(canary, model=canary),
        caller.create("x", messages=[secret, {"role": canary, "content": canary}]),
        caller.create("x", messages=[secret, {"role": "assistant", "tool_calls": [call]}]),
        caller.create(f"\0{canary}"),
        caller.request("POST", "/v1/caching", f'{{"model": "{canary}", '.encode()),
        caller.request("POST", "/v1/chat/completions", f'{{"model": "{canary}", '.encode()),
        caller.chat(secret, model=canary),
        caller.chat(secret, temperature=canary),
        caller.chat(secret, max_tokens=8192),
        caller.chat(secret, response_format={"type": canary}),
        caller.chat({"role": "cache", "content": f"cache_id={canary};{canary}"}, secret),
        caller.chat({"role": "cache", "content": f"cache_id={canary}"}, secret),
        caller.get(canary),
        new_caller(money="0").chat(secret),
        new_caller(tier="tier0").create(canary),
    ]
    assert {answer.status for answer in refusals} == {400, 403, 404, 429}
    # What the engine itself refuses, and quotes.
    quoted = {"type": "function", "function": {"name": "f", "parameters": {"type": canary, canary: canary}}}
    assert caller.chat(secret, tools=[quoted]).status == 400
    assert caller.create(canary, tools=[quoted]).status == 400
    assert caller.request("PUT", f"/v1/caching/{active['id']}", {"metadata": {"k": canary}}).status == 200
    assert caller.request("DELETE", f"/v1/caching/{active['id']}").status == 200

    last = caller.request("GET", "/v1/models").headers["msh-request-id"]
    wait_for(lambda: last in instance.logs(), seconds=10, what="the last request is logged")
    logs = instance.logs()
    assert caller.key not in logs
    assert caller.key[len("sk-") + 20 :] not in logs
    found = [line[:300] for line in logs.splitlines() if canary in line]
    # A path may be wrong, and is told: it is the one place that a caller chose to make public.
    assert [line for line in found if '"path": "/v1/caching/' not in line] == []


def test_a_statement_that_fails_is_not_logged_with_its_values(instance, instance_database):
    from django.db import DataError, connection

    canary = f"canary{uuid.uuid4().hex}"
    with connection.cursor() as cursor, pytest.raises(DataError):
        cursor.execute("SELECT 1 / 0, %s", [canary])
    wait_for(lambda: "division by zero" in instance.logs(), seconds=10, what="the error is logged")
    assert canary not in instance.logs()


def test_each_request_is_one_line_of_json_with_its_id(instance, caller):
    answers = [caller.request("GET", "/v1/models"), caller.chat({"role": "user", "content": "Hello."})]
    for answer in answers:
        request_id = answer.headers["msh-request-id"]
        wait_for(lambda: request_id in instance.logs(), seconds=10, what="the request is logged")  # noqa: B023
        (line,) = [line for line in instance.logs().splitlines() if request_id in line]
        told = json.loads(line)
        assert (told["event"], told["status"], told["request_id"]) == ("request", 200, request_id)
        assert told["duration_ms"] > 0
        assert told["path"] in ("/v1/models", "/v1/chat/completions")


def test_a_call_is_logged_with_its_counts(instance, caller):
    active = caller.active()
    answer = caller.ask(active["id"])
    request_id = answer.headers["msh-request-id"]
    wait_for(lambda: request_id in instance.logs(), seconds=10, what="the request is logged")
    (line,) = [line for line in instance.logs().splitlines() if request_id in line]
    told, usage = json.loads(line), answer.json["usage"]
    assert told["is_hit"] is True
    assert told["organization"] == caller.organization
    assert {name: told[name] for name in ("prompt_tokens", "cached_tokens", "completion_tokens")} == {
        name: usage[name] for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
    }
