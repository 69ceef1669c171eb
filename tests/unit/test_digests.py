"""The identity of a prefix: one for what means the same, another for what does not, and the same tomorrow."""

from __future__ import annotations

import hashlib
import json

import pytest

from cacheplane.caching import digests

CALLED = {
    "role": "assistant",
    "tool_calls": [
        {"id": "f:0", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": [2]}'}}
    ],
}
MESSAGES = [
    {"role": "system", "content": 'Quotes ", backslashes \\, %s and $1.\n'},
    {"role": "user", "content": [{"type": "text", "text": "北京 — 😀\u2028"}], "name": "_resource"},
    CALLED,
]
TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": {"z": [1, 2.5, None], "a": {"é": True}}}}
]


def turned(value):
    """The same with its keys in the opposite order."""
    if isinstance(value, dict):
        return {key: turned(item) for key, item in reversed(value.items())}
    return [turned(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_it_is_the_sha256_of_the_whole_key_sorted_json(tools):
    whole = json.dumps(
        {"messages": MESSAGES, "tools": tools}, sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )
    assert digests.digest(MESSAGES, tools) == hashlib.sha256(whole.encode()).hexdigest()


def test_of_messages_that_are_canonical_already_it_is_the_same():
    assert digests.digest_of(digests.canonical(MESSAGES), TOOLS) == digests.digest(MESSAGES, TOOLS)
    assert json.loads(digests.canonical(MESSAGES)) == MESSAGES


def test_the_order_of_keys_is_not_in_it():
    assert digests.digest(turned(MESSAGES), turned(TOOLS)) == digests.digest(MESSAGES, TOOLS)


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        (MESSAGES[:2], TOOLS),
        ([*MESSAGES[:2], CALLED, CALLED], TOOLS),
        ([*reversed(MESSAGES)], TOOLS),
        ([{"role": "system", "content": 'Quotes ", backslashes \\, %s and $1.'}, *MESSAGES[1:]], TOOLS),
        (MESSAGES, None),
        (MESSAGES, []),
        (MESSAGES, TOOLS * 2),
    ],
    ids=["one fewer", "one more", "turned", "a character", "no tools", "none of tools", "twice"],
)
def test_whatever_else_differs_is_in_it(messages, tools):
    assert digests.digest(messages, tools) != digests.digest(MESSAGES, TOOLS)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("1e18", "1000000000000000000"),
        ("1.25e20", "125000000000000000000"),
        ("-1E300", "-1" + "0" * 300),
        ("-0.0", "0.0"),
        ("1e-7", "1e-07"),
        ("15.0", "15.0"),
        ("-1.5", "-1.5"),
        ("9" * 30, "9" * 30),
    ],
)
def test_a_tools_numbers_are_spelled_as_the_database_spells_them(sent, kept):
    tools = [{"function": {"name": "f", "parameters": {"default": json.loads(sent)}}}]
    once = digests.sorted_tools(tools)
    assert repr(once[0]["function"]["parameters"]["default"]) == kept
    assert digests.sorted_tools(once) == once
