"""The words for an object's state, and the state that nobody wishes for: error."""

from __future__ import annotations

import pytest

from tests.api import books
from tests.conftest import start_instance


@pytest.fixture
def failed(caller, no_precompute):
    """An object whose last attempt failed, through the door that a worker uses."""
    from cacheplane.caching import lifecycle

    with no_precompute():
        made = caller.create().json
        claim = lifecycle.claim_next(owner="test")
        assert claim is not None
        assert claim.cache_id == made["id"]
        assert lifecycle.fail_attempt(claim, reason="The disk is full.", is_final=True)
    return made


def test_an_object_that_could_not_be_computed_says_why_and_cost_nothing(caller, failed):
    read = caller.get(failed["id"]).json
    assert read == failed | {
        "status": "error",
        "error": {"type": "precompute_failed", "message": "The disk is full."},
    }
    assert caller.request("GET", "/v1/caching").json["data"] == [read]
    assert books.spent(caller) == {}
    assert books.purse(caller) == (1000, 0)


def test_it_is_used_at_the_normal_price(caller, failed):
    answer = caller.ask(failed["id"])
    assert answer.status == 200
    assert answer.json["usage"]["cached_tokens"] == 0
    assert sum(books.spent(caller).values()) == books.call_price(answer.json["usage"], is_hit=False)


def test_it_can_be_given_another_chance(caller, failed):
    changed = caller.request("PUT", f"/v1/caching/{failed['id']}", {"ttl": 60})
    assert (changed.status, changed.json["status"]) == (200, "pending")
    assert "error" not in changed.json
    caller.wait_until(failed["id"], "active")
    assert books.counted(caller, "creation") == [failed["tokens"]]


def test_it_can_be_deleted(caller, failed):
    assert caller.request("DELETE", f"/v1/caching/{failed['id']}").status == 200
    assert caller.get(failed["id"]).status == 404


@pytest.mark.own_instance
def test_the_references_words_can_be_shown_instead(tmp_path, first_start):
    words = {"CACHE_STATUS_WORDS": "reference"}
    running = start_instance(tmp_path / "data", environment=words, copy_of=first_start)
    try:
        client = running.client()
        made = client.create()
        assert made.json["status"] == "pending"
        ready = client.wait_until(made.json["id"], "ready")
        assert client.request("GET", "/v1/caching").json["data"] == [ready]
        assert client.ask(ready["id"]).json["usage"]["cached_tokens"] == ready["tokens"]
        assert client.request("PUT", f"/v1/caching/{ready['id']}", {"ttl": 1}).json["status"] == "ready"
        client.wait_until(ready["id"], "inactive")
        refused = client.ask(ready["id"], options=";dry_run=1")
        assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
        assert refused.error["message"].endswith("the cache object is inactive, and takes one that is ready")
    finally:
        running.stop()
