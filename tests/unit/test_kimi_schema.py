"""The Kimi dialect's reader: what it takes, and how it says what it does not take."""

from __future__ import annotations

import json

import pytest

from cacheplane.api.schemas import kimi
from cacheplane.chat import ChatDelta, Usage
from cacheplane.errors import InvalidRequest

USER = {"role": "user", "content": "hi"}


def chat(**fields):
    body = {"model": "moonshot-v1-8k", "messages": [USER], **fields}
    return kimi.parse_chat(json.dumps(body).encode(), header_reference=None)


WEEK = {"windows": [{"days": "mon-fri", "from": "09:00", "to": "24:00"}]}


def create(**fields):
    body = {"model": "moonshot-v1", "messages": [USER], **fields}
    return kimi.decode(json.dumps(body).encode(), kimi.CreateCache)


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(InvalidRequest) as caught:
        call(*args, **kwargs)
    return caught.value.message


def test_a_plain_call_has_the_defaults_of_the_contract():
    parsed = chat()
    assert parsed.request.max_tokens == 1024
    assert parsed.request.temperature == 0.0
    assert parsed.reference is None and not parsed.is_stream and not parsed.includes_usage
    assert parsed.request.messages == [USER]


@pytest.mark.parametrize("unset", [0, None])
def test_zero_and_null_numbers_are_not_set(unset):
    request = chat(
        max_tokens=unset, top_p=unset, presence_penalty=unset, seed=unset, n=unset, temperature=unset
    ).request
    assert request.max_tokens == 1024
    assert (request.top_p, request.presence_penalty, request.seed) == (None, None, None)


def test_unknown_fields_are_ignored():
    assert chat(temprature=0.3).request == chat().request


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": []}, "messages: expected array of length >= 1"),
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            "messages[0].role: got 'robot', takes one of assistant, system, tool, user",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: got None"),
        ({"messages": ["hi"]}, "messages[0]: expected object, got str"),
        ({"temperature": 1.5}, "temperature: expected float <= 1.0"),
        ({"max_tokens": "10"}, "max_tokens: expected int | null, got str"),
        ({"stop": ["x" * 33]}, "stop[0]: got "),
        ({"n": 6}, "n: "),
        ({"tool_choice": "any"}, "tool_choice: got 'any', takes one of auto, none"),
        ({"model": 7}, "model: expected str, got int"),
    ],
)
def test_a_refusal_names_the_field(fields, named):
    assert f"Invalid request: {named}" in refusal(chat, **fields)


def test_a_missing_field_is_named():
    assert refusal(kimi.parse_chat, b'{"messages":[1]}', header_reference=None) == (
        "Invalid request: body: missing field model"
    )


@pytest.mark.parametrize(
    "body", [b"", b"[", b"{", b"nonsense", b'{"a":NaN}', b'"\xff"', b'{"model":"\\ud800"}']
)
def test_what_is_not_json_is_refused(body):
    assert "body" in refusal(kimi.parse_chat, body, header_reference=None)


def test_deep_nesting_is_refused_and_not_a_crash():
    deep = b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert "nested too deeply" in refusal(kimi.parse_chat, deep, header_reference=None)


def test_nul_is_refused_with_its_place():
    told = refusal(
        kimi.parse_chat,
        b'{"model":"m","messages":[{"role":"user","content":"a\\u0000b"}]}',
        header_reference=None,
    )
    assert told == "Invalid request: messages[0].content: got a NUL character, takes text without it"


def test_an_escaped_backslash_before_u0000_is_text():
    parsed = kimi.parse_chat(
        rb'{"model":"m","messages":[{"role":"user","content":"a\\u0000b"}]}', header_reference=None
    )
    assert parsed.request.messages[0]["content"] == "a\\u0000b"


class TestToolCalls:
    CALL = {
        "role": "assistant",
        "tool_calls": [{"id": "f:0", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    ANSWER = {"role": "tool", "tool_call_id": "f:0", "content": "4"}
    TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]

    def test_a_call_with_its_answer_is_taken(self):
        parsed = chat(messages=[USER, self.CALL, self.ANSWER], tools=self.TOOLS)
        assert parsed.request.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
        assert parsed.request.tools == self.TOOLS

    def test_an_unanswered_call_is_refused(self):
        assert "answers each tool call" in refusal(chat, messages=[USER, self.CALL], tools=self.TOOLS)
        assert "answers 'f:0'" in refusal(chat, messages=[USER, self.CALL, USER], tools=self.TOOLS)

    def test_an_answer_without_its_call_is_refused(self):
        assert "messages[1].tool_call_id" in refusal(chat, messages=[USER, self.ANSWER])

    def test_a_call_of_an_undeclared_tool_is_refused(self):
        other = [{"type": "function", "function": {"name": "g"}}]
        assert "one of the declared tools ['g']" in refusal(
            chat, messages=[USER, self.CALL, self.ANSWER], tools=other
        )


class TestCacheMessage:
    def parse(self, content, **fields):
        return chat(messages=[{"role": "cache", "content": content}, USER], **fields)

    def test_its_options_are_read(self):
        parsed = self.parse("cache_id=cache-x;reset_ttl=3600;dry_run=1")
        assert parsed.reference == kimi.CacheReference(
            cache_id="cache-x", reset_ttl_seconds=3600, is_dry_run=True, is_message=True
        )
        assert parsed.request.messages == [USER]

    def test_a_tag_may_stand_for_the_id(self):
        parsed = self.parse("reset_ttl=5;tag=live")
        assert parsed.reference == kimi.CacheReference(
            cache_id=None, tag="live", reset_ttl_seconds=5, is_dry_run=False, is_message=True
        )

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "cache-x",
            "tag=",
            "tag=live;tag=live",
            "cache_id=x;tag=live",
            "tag=live;cache_id=",
            "cache_id=",
            "cache_id=x;",
            "cache_id=x;colour=red",
            "cache_id=x;cache_id=y",
            "reset_ttl=5",
            "cache_id=x;reset_ttl=-1",
            "cache_id=x;reset_ttl=1.5",
            "cache_id=x;dry_run=yes",
        ],
    )
    def test_other_contents_are_refused(self, content):
        assert "messages[0].content" in refusal(self.parse, content)

    def test_it_comes_first_and_once(self):
        cache = {"role": "cache", "content": "cache_id=x"}
        assert "messages[1].role: got 'cache'" in refusal(chat, messages=[USER, cache])
        assert "messages[1].role: got 'cache'" in refusal(chat, messages=[cache, cache])

    def test_tools_beside_it_must_be_absent_or_null(self):
        assert self.parse("cache_id=x", tools=None).reference is not None
        assert "tools: got a value, takes null" in refusal(self.parse, "cache_id=x", tools=[])

    def test_later_messages_keep_their_number_in_errors(self):
        cache = {"role": "cache", "content": "cache_id=x"}
        assert "messages[1].role" in refusal(chat, messages=[cache, {"role": "robot", "content": "x"}])


class TestHeaders:
    def test_absent_means_no_reference(self):
        assert kimi.header_reference(None, "5", "1") is None

    def test_they_are_read(self):
        assert kimi.header_reference("cache-x", "60", "1") == kimi.CacheReference(
            cache_id="cache-x", reset_ttl_seconds=60, is_dry_run=True, is_message=False
        )

    def test_a_wrong_one_is_named(self):
        assert "X-Msh-Context-Cache-Reset-TTL: got 'soon'" in refusal(
            kimi.header_reference, "x", "soon", None
        )


class TestCreate:
    def test_null_tools_and_unknown_keys_are_taken(self):
        assert create(tools=None, colour="red").tools is None

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"name": "n" * 257}, "name: "),
            ({"description": "d" * 513}, "description: "),
            ({"metadata": {str(i): "" for i in range(17)}}, "metadata: "),
            ({"metadata": {"k": 1}}, "metadata[...]: expected str, got int"),
            ({"ttl": 1.5}, "ttl: expected int | str | null, got float"),
            ({"ttl_cap": 0}, "ttl_cap: expected int >= 1"),
            ({"budget": {"amount": 1.5}}, "budget.amount: expected str | null, got float"),
            ({"budget": {"amount": "1", "per": "day"}}, "budget.per: "),
            ({"schedule": {"windows": []}}, "schedule.windows: "),
            (
                {"schedule": {"windows": [{"days": "mon", "to": "10:00"}]}},
                "schedule.windows[0]: missing field from",
            ),
            ({"ttl": 10**30}, "ttl: "),
        ],
    )
    def test_a_refusal_names_the_field(self, fields, named):
        assert f"Invalid request: {named}" in refusal(create, **fields)

    def test_metadata_keys_and_values_are_bounded(self):
        assert "keys of at most 64" in refusal(kimi.check_metadata, {"k" * 65: "v"})
        assert "metadata.k: got '513 characters'" in refusal(kimi.check_metadata, {"k": "v" * 513})

    @pytest.mark.parametrize(
        ("given", "taken"),
        [((60, None), (60, None)), ((60, -1), (60, None)), ((0, 0), (None, None)), ((None, 99), (None, 99))],
    )
    def test_zero_and_negative_ends_are_not_given(self, given, taken):
        ttl, expired_at = given
        assert kimi.check_lifetime(kimi.UpdateCache(ttl=ttl, expired_at=expired_at)) == taken

    def test_two_ends_are_refused(self):
        assert "takes one of the two" in refusal(kimi.check_lifetime, kimi.UpdateCache(ttl=60, expired_at=99))

    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            ({"ttl": "3600"}, "ttl: got '3600', takes seconds, or \"auto\""),
            ({"ttl": "auto", "expired_at": 99}, "ttl: got auto beside expired_at 99, takes one of the two"),
            ({"ttl_cap": 60}, 'ttl_cap: got 60, takes one beside "ttl": "auto" alone'),
            ({"ttl": 60, "ttl_cap": 60}, 'ttl_cap: got 60, takes one beside "ttl": "auto" alone'),
            ({"ttl": 60, "schedule": WEEK}, "ttl: got 60, takes none beside a schedule"),
            ({"ttl": "auto", "schedule": WEEK}, "ttl: got 'auto', takes none beside a schedule"),
            ({"expired_at": 60, "schedule": WEEK}, "expired_at: got 60, takes none beside a schedule"),
        ],
    )
    def test_one_thing_decides_the_end(self, fields, sentence):
        assert f"Invalid request: {sentence}" == refusal(kimi.check_lifetime, create(**fields))

    def test_auto_and_schedules_have_no_end_of_their_own(self):
        for taken in ({"ttl": "auto", "ttl_cap": 60}, {"schedule": WEEK, "ttl": 0}):
            assert kimi.check_lifetime(create(**taken)) == (None, None)

    @pytest.mark.parametrize(
        "amount", ["0", "0.00", "-1", "1e3", "1.0000000001", "", "1,5", " 1", "NaN", "01"]
    )
    def test_a_budget_is_an_exact_amount_above_nothing(self, amount):
        found = refusal(kimi.check_budget, create(budget={"amount": amount}).budget)
        assert found.startswith(f"Invalid request: budget.amount: got {amount!r}, takes an amount above 0")

    @pytest.mark.parametrize("amount", ["0.000000001", "12.5", "999999999999", None])
    def test_amounts_that_are_taken(self, amount):
        kimi.check_budget(create(budget={"amount": amount}).budget)


def test_an_answer_is_put_together_from_its_steps():
    steps = [
        ChatDelta(role="assistant", content=""),
        ChatDelta(content="Hel"),
        ChatDelta(content="lo"),
        ChatDelta(tool_calls=[{"index": 0, "id": "f:0", "function": {"name": "f", "arguments": '{"a"'}}]),
        ChatDelta(tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}]),
        ChatDelta(finish_reason="tool_calls"),
    ]
    message, reason = kimi.message_out(steps)
    assert message["content"] == "Hello" and reason == "tool_calls"
    assert message["tool_calls"] == [
        {"id": "f:0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    ]


def test_usage_is_shown_in_both_shapes():
    assert kimi.usage_out(Usage(prompt_tokens=10, completion_tokens=2, cached_tokens=8)) == {
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "total_tokens": 12,
        "cached_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
