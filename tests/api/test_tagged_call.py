"""Calls on a cache object named by a tag in the first message: `{"role": "cache", "content": "tag=…"}`."""

from __future__ import annotations

import time

import pytest

from tests.api import books
from tests.api.streams import streamed

TAGS = "/v1/caching/refs/tags"
QUESTION = {"role": "user", "content": "And now?"}


def ask(caller, content, **fields):
    return caller.chat({"role": "cache", "content": content}, QUESTION, **fields)


def test_a_hit_by_tag_is_a_hit_by_id(caller):
    active = caller.active(tags=["live"])
    before = sum(books.spent(caller).values())
    answer = ask(caller, "tag=live")
    assert answer.status == 200, answer.body
    assert answer.headers["msh-context-cache-id"] == active["id"]
    assert answer.json["usage"]["cached_tokens"] == active["tokens"]
    price = books.call_price(answer.json["usage"], is_hit=True)
    assert sum(books.spent(caller).values()) - before == price
    chunks = streamed(caller, {"role": "cache", "content": "tag=live"}, QUESTION)
    assert chunks.headers["msh-context-cache-id"] == active["id"]


def test_a_call_after_a_move_is_answered_from_the_other_object(caller):
    first, second = caller.active("The first.", tags=["live"]), caller.active("The second.")
    assert ask(caller, "tag=live").headers["msh-context-cache-id"] == first["id"]
    caller.request("POST", TAGS, {"tag": "live", "cache_id": second["id"]})
    assert ask(caller, "tag=live").headers["msh-context-cache-id"] == second["id"]


def test_its_end_is_moved_and_a_dry_run_costs_nothing(caller):
    active = caller.active(tags=["live"], ttl=600)
    before = books.spent(caller)
    dry = ask(caller, "tag=live;dry_run=1")
    assert (dry.status, dry.json["choices"]) == (200, [])
    assert dry.json["estimate"]["hit_tokens"] == active["tokens"]
    assert books.spent(caller) == before
    assert ask(caller, "tag=live;reset_ttl=3600").status == 200
    assert abs(caller.get(active["id"]).json["expired_at"] - time.time() - 3600) < 30


def test_a_tag_of_an_object_that_has_expired_makes_a_normal_call(caller):
    expired = caller.expired(tags=["live"])
    answer = ask(caller, "tag=live")
    assert (answer.status, answer.json["usage"]["cached_tokens"]) == (200, 0)
    assert ask(caller, "tag=live;reset_ttl=60").status == 200
    caller.wait_until(expired["id"], "active")


def test_somebody_elses_tag_answers_exactly_like_an_absent_one(caller, outsider):
    caller.create(tags=["live"])
    foreign, absent = ask(outsider, "tag=live"), ask(outsider, "tag=none")
    assert (foreign.status, foreign.error["type"]) == (404, "resource_not_found_error")
    assert foreign.body.replace(b"live", b"TAG") == absent.body.replace(b"none", b"TAG")


@pytest.mark.parametrize("tag", ["a b", "9", "a" * 129, "ü"])
def test_what_cannot_be_a_tag_is_not_found(caller, tag):
    caller.create(tags=["a" * 128])
    refused = ask(caller, f"tag={tag}")
    assert (refused.status, refused.error["type"]) == (404, "resource_not_found_error")


@pytest.mark.parametrize("content", ["tag=live;cache_id=x", "cache_id=x;tag=live", "tag=", "tag=a;tag=b"])
def test_exactly_one_name_is_taken(bystander, content):
    refused = ask(bystander, content)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith("Invalid request: messages[0].content: got ")


def test_headers_take_ids_only(caller):
    active = caller.active(tags=["live"])
    messages = [{"role": "system", "content": "You answer shortly."}, QUESTION]
    for name, cached in ((active["id"], active["tokens"]), ("live", 0), ("tag=live", 0)):
        answer = caller.chat(*messages, headers={"X-Msh-Context-Cache": name})
        assert (answer.status, answer.json["usage"]["cached_tokens"]) == (200, cached)


def test_a_tag_is_resolved_in_the_statement_that_finds_the_object(caller, django_assert_num_queries):
    from cacheplane.access import api_keys
    from cacheplane.gateway import matching
    from cacheplane.gateway.matching import Reference

    made = caller.create(tags=["live"]).json
    known = api_keys.authenticate(caller.key)
    with django_assert_num_queries(1):
        found = matching.find(known, Reference(cache_id=None, tag="live"))
    assert found.cache_id == made["id"]
