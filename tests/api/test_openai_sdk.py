"""The official Python SDK, as a caller of today uses it."""

from __future__ import annotations

import openai
import pytest

from tests.api import books
from tests.api.test_cached_call import ABSENT


@pytest.fixture
def sdk(instance):
    """A client for a caller; it does not try again by itself."""

    def client(caller, **about):
        return openai.OpenAI(base_url=f"{instance.base_url}/v1", api_key=caller.key, max_retries=0, **about)

    return client


def wait_until_active(client, cache_id):
    from tests.conftest import wait_for

    return wait_for(
        lambda: (found := client.get(f"/caching/{cache_id}", cast_to=dict))["status"] == "active" and found,
        seconds=60,
        what="the object is active",
    )


@pytest.fixture
def cached(caller, sdk):
    """(client, object): a cache object made and awaited with the SDK alone."""
    client = sdk(caller)
    body = {"model": "moonshot-v1", "messages": [{"role": "system", "content": "Be short."}], "ttl": 600}
    made = client.post("/caching", body=body, cast_to=dict)
    assert made["status"] == "pending"
    return client, wait_until_active(client, made["id"])


def messages_on(cache_object):
    return [
        {"role": "cache", "content": f"cache_id={cache_object['id']};reset_ttl=3600"},
        {"role": "user", "content": "And now?"},
    ]


def test_a_call_on_a_cache_object(cached):
    client, active = cached
    answer = client.chat.completions.with_raw_response.create(
        model="moonshot-v1-8k", messages=messages_on(active), max_tokens=4
    )
    assert answer.headers["Msh-Context-Cache-Id"] == active["id"]
    completion = answer.parse()
    assert completion.choices[0].message.role == "assistant"
    assert completion.usage.prompt_tokens_details.cached_tokens == active["tokens"]
    assert completion.usage.cached_tokens == active["tokens"]


def test_a_streamed_call_on_a_cache_object(cached, caller):
    client, active = cached
    stream = client.chat.completions.create(
        model="moonshot-v1-8k",
        messages=messages_on(active),
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == active["tokens"]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("length", "stop")
    assert books.spent(caller)["call"] == books.CALL


def test_leaving_a_stream_early(caller, sdk):
    with sdk(caller).chat.completions.create(
        model="moonshot-v1-8k", messages=[{"role": "user", "content": "Hello."}], max_tokens=4000, stream=True
    ) as stream:
        assert next(iter(stream)).object == "chat.completion.chunk"


def test_the_other_verbs(cached):
    client, active = cached
    listed = client.get("/caching", cast_to=dict, options={"params": {"limit": 1}})
    assert [one["id"] for one in listed["data"]] == [active["id"]]
    changed = client.put(f"/caching/{active['id']}", body={"metadata": {"a": "1"}}, cast_to=dict)
    assert changed["metadata"] == {"a": "1"}
    assert client.delete(f"/caching/{active['id']}", cast_to=dict)["deleted"] is True
    with pytest.raises(openai.NotFoundError):
        client.get(f"/caching/{active['id']}", cast_to=dict)


def test_the_models(caller, sdk):
    assert sdk(caller).models.retrieve("moonshot-v1-8k").id == "moonshot-v1-8k"
    with pytest.raises(openai.NotFoundError):
        sdk(caller).models.retrieve("moonshot-v9\0")
    assert {model.id for model in sdk(caller).models.list()} >= {"moonshot-v1-8k", "moonshot-v1-128k"}


def test_a_wrong_key_is_an_authentication_error(instance):
    client = openai.OpenAI(base_url=f"{instance.base_url}/v1", api_key="sk-wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as told:
        client.models.list()
    assert told.value.body["message"] == "Incorrect API key provided"
    with pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model="moonshot-v1-8k", messages=[{"role": "user", "content": "x"}])


def test_a_closed_gate_is_a_permission_error(new_caller, sdk):
    body = {"model": "moonshot-v1", "messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(openai.PermissionDeniedError) as told:
        sdk(new_caller(tier="tier0")).post("/caching", body=body, cast_to=dict)
    assert told.value.body["message"] == "The API you are accessing is not open"


def test_an_absent_object_is_a_not_found_error(bystander, sdk):
    with pytest.raises(openai.NotFoundError) as told:
        sdk(bystander).chat.completions.create(model="moonshot-v1-8k", messages=messages_on({"id": ABSENT}))
    assert told.value.body["type"] == "resource_not_found_error"


def test_a_refused_field_is_a_bad_request(bystander, sdk):
    with pytest.raises(openai.BadRequestError) as told:
        sdk(bystander).chat.completions.create(
            model="moonshot-v1-8k", messages=[{"role": "user", "content": "x"}], temperature=2
        )
    assert told.value.body["message"].startswith("Invalid request: temperature: ")


def test_no_money_is_a_rate_limit_error(new_caller, sdk):
    with pytest.raises(openai.RateLimitError) as told:
        # It is told that no wait helps, and so it does not try again.
        sdk(new_caller(money="0")).with_options(max_retries=2).chat.completions.create(
            model="moonshot-v1-8k", messages=[{"role": "user", "content": "x"}]
        )
    assert told.value.body["type"] == "exceeded_current_quota_error"
    assert told.value.request.headers["x-stainless-retry-count"] == "0"


def test_its_retries_of_one_failure_are_three_requests_and_cost_nothing(new_caller, sdk):
    from cacheplane.access.models import RateState

    caller = new_caller(tier="tier0")
    RateState.objects.filter(organization_id=caller.organization).update(in_flight=1)
    client = sdk(caller).with_options(max_retries=2)
    with pytest.raises(openai.RateLimitError) as told:
        client.chat.completions.create(model="moonshot-v1-8k", messages=[{"role": "user", "content": "x"}])
    assert told.value.request.headers["x-stainless-retry-count"] == "2"
    RateState.objects.filter(organization_id=caller.organization).update(in_flight=0)
    assert books.purse(caller) == (1000, 0)


def test_several_choices_and_a_partial_message(caller, sdk):
    client = sdk(caller)
    messages = [
        {"role": "user", "content": "Hello there."},
        {"role": "assistant", "content": "Well, ", "partial": True},
    ]
    asked = {"model": "moonshot-v1-auto", "messages": messages, "n": 2, "max_tokens": 4}
    answer = client.chat.completions.create(**asked)
    assert answer.model == "moonshot-v1-8k"
    assert [choice.index for choice in answer.choices] == [0, 1]
    texts = ["", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]
    assert not any(text.startswith("Well") for text in texts)
