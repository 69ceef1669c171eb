"""`reset_ttl=S`: a successful call moves its object's end to S seconds from now."""

from __future__ import annotations

import time

import pytest

from tests.api import books
from tests.api.streams import streamed

QUESTION = {"role": "user", "content": "And now?"}


def by_message(caller, active, seconds):
    return caller.ask(active["id"], options=f";reset_ttl={seconds}")


def by_header(caller, active, seconds):
    headers = {"X-Msh-Context-Cache": active["id"], "X-Msh-Context-Cache-Reset-TTL": str(seconds)}
    return caller.chat(*active["messages"], QUESTION, headers=headers)


@pytest.mark.parametrize("ask", [by_message, by_header])
def test_the_end_is_moved_and_not_added_up(caller, ask):
    active = caller.active(ttl=600)
    for seconds in (1200, 1200, 300):
        asked = int(time.time())
        answer = ask(caller, active, seconds)
        assert answer.status == 200, answer.body
        ends_at = caller.get(active["id"]).json["expired_at"]
        assert asked + seconds <= ends_at <= time.time() + seconds
        assert abs(int(answer.headers["msh-context-cache-token-exp"]) - ends_at) <= 1
    assert books.spent(caller)["call"] == 3 * books.CALL


def test_a_stream_moves_it_too(caller):
    active = caller.active(ttl=100)
    cache = {"role": "cache", "content": f"cache_id={active['id']};reset_ttl=500"}
    found = streamed(caller, cache, QUESTION)
    assert found.headers["msh-context-cache-id"] == active["id"]
    assert caller.get(active["id"]).json["expired_at"] >= active["expired_at"] + 300


def test_an_expired_object_is_revived(caller):
    expired = caller.expired()
    answer = by_message(caller, expired, 60)
    assert answer.status == 200
    assert answer.json["usage"]["cached_tokens"] == 0
    assert caller.get(expired["id"]).json["status"] in ("pending", "active")
    caller.wait_until(expired["id"], "active")
    assert books.counted(caller, "creation") == [expired["tokens"]] * 2
    assert by_message(caller, expired, 60).json["usage"]["cached_tokens"] == expired["tokens"]


def test_a_revival_that_cannot_be_paid_does_not_fail_the_call(caller, new_caller):
    text = "Short of money, and long of words that say so again and again. " * 10
    tokens = caller.create(text).json["tokens"]
    call = (tokens + 30) * books.TOKENS["moonshot-v1-8k"]
    assert call < tokens * books.CREATION, "what is left pays for a call and not for a revival"
    poor = new_caller(money=str(tokens * (books.CREATION + books.STORAGE) + call))
    expired = poor.expired(text, ttl=50)
    answer = poor.ask(expired["id"], "?", options=";reset_ttl=60", max_tokens=1)
    assert answer.status == 200, answer.body
    assert poor.get(expired["id"]).json == expired
    assert books.counted(poor, "creation") == [tokens]


def test_a_pending_object_is_given_more_time(caller, no_precompute):
    with no_precompute():
        made = caller.create(ttl=100).json
        assert by_message(caller, made, 500).status == 200
        moved = caller.get(made["id"]).json
        assert (moved["status"], moved["expired_at"] >= made["expired_at"] + 300) == ("pending", True)


def test_a_call_that_fails_moves_nothing(caller):
    active = caller.active(ttl=100)
    refused = caller.ask(active["id"], options=";reset_ttl=500", max_tokens=9000)
    assert refused.status == 400
    assert caller.get(active["id"]).json == active


@pytest.mark.parametrize("ask", [by_message, by_header])
def test_no_longer_than_the_tier_allows(caller, ask):
    active = caller.active()
    refused = ask(caller, active, 10**9)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith("Invalid request: reset_ttl: got 1000000000, takes 1 to ")
    assert caller.get(active["id"]).json == active


def test_nobody_moves_the_end_of_somebody_elses_object(caller, outsider):
    active = caller.active(ttl=100)
    assert by_message(outsider, active, 500).status == 404
    assert by_header(outsider, active, 500).status == 200
    assert caller.get(active["id"]).json == active
