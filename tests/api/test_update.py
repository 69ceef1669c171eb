"""`PUT /v1/caching/{id}`: another end, other metadata, a second life."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.api import books
from tests.conftest import wait_for


def put(caller, cache_id, **fields):
    return caller.request("PUT", f"/v1/caching/{cache_id}", fields)


def test_a_ttl_counts_from_now(caller):
    active = caller.active(ttl=60)
    before = int(time.time())
    changed = put(caller, active["id"], ttl=300)
    assert changed.status == 200
    assert before + 300 <= changed.json["expired_at"] <= time.time() + 300
    assert changed.json | {"expired_at": 0} == active | {"expired_at": 0}
    assert caller.get(active["id"]).json == changed.json


def test_an_end_may_come_sooner_than_it_would_have(caller):
    active = caller.active(ttl=600)
    until = int(time.time()) + 30
    assert put(caller, active["id"], expired_at=until).json["expired_at"] == until


def test_metadata_is_replaced_whole(caller):
    made = caller.create(metadata={"a": "1", "b": "2"}).json
    changed = put(caller, made["id"], metadata={"c": "3"})
    assert changed.json["metadata"] == {"c": "3"}
    assert changed.json["expired_at"] == made["expired_at"]
    assert put(caller, made["id"], metadata={}).json["metadata"] == {}


def test_what_is_left_out_stays(caller):
    made = caller.create(metadata={"a": "1"}).json
    for nothing in ({}, {"metadata": None, "ttl": None, "expired_at": None}, {"ttl": 0, "expired_at": -1}):
        kept = put(caller, made["id"], **nothing)
        assert kept.status == 200
        assert kept.json | {"status": "pending"} == made


def test_stray_keys_are_ignored(caller):
    made = caller.create().json
    stray = {"messages": [], "model": "other", "status": "active", "tokens": 1, "name": "new", "id": "x"}
    assert put(caller, made["id"], **stray).json | {"status": "pending"} == made


def test_a_pending_object_is_given_more_time(caller, no_precompute):
    with no_precompute():
        made = caller.create(ttl=60).json
        changed = put(caller, made["id"], ttl=300)
        assert (changed.status, changed.json["status"]) == (200, "pending")
        assert changed.json["expired_at"] >= made["created_at"] + 300
    caller.wait_until(made["id"], "active")
    assert books.counted(caller, "creation") == [made["tokens"]]


def test_an_expired_object_is_revived_and_paid_again(caller):
    expired = caller.expired()
    revived = put(caller, expired["id"], ttl=60)
    assert (revived.status, revived.json["status"]) == (200, "pending")
    again = caller.wait_until(expired["id"], "active")
    assert again == revived.json | {"status": "active"}
    assert again["expired_at"] > expired["expired_at"]
    assert books.counted(caller, "creation") == [expired["tokens"]] * 2
    assert caller.ask(expired["id"]).json["usage"]["cached_tokens"] == expired["tokens"]


def test_metadata_alone_revives_nothing(caller):
    expired = caller.expired()
    changed = put(caller, expired["id"], metadata={"a": "1"})
    assert (changed.status, changed.json["status"], changed.json["metadata"]) == (200, "expired", {"a": "1"})


def test_a_revival_that_cannot_be_paid_changes_nothing(new_caller, caller):
    tokens = caller.create("Short of money.").json["tokens"]
    poor = new_caller(money=str(tokens * (books.CREATION + books.STORAGE)))
    expired = poor.expired("Short of money.", ttl=50)
    refused = put(poor, expired["id"], ttl=60, metadata={"a": "1"})
    assert (refused.status, refused.error["type"]) == (429, "exceeded_current_quota_error")
    assert poor.get(expired["id"]).json == expired
    wait_for(lambda: books.purse(poor) == (0, 0), seconds=20, what="the last minute is charged, and no more")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"ttl": 60, "expired_at": 9_000_000_000}, "ttl: "),
        ({"ttl": "60"}, "ttl: "),
        ({"ttl": 10**17}, "ttl: "),
        ({"expired_at": 1}, "expired_at: "),
        ({"expired_at": 9_000_000_000}, "expired_at: "),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"metadata": {"k": "\0"}}, "metadata.k: "),
        ({"metadata": {"k": "v" * 513}}, "metadata.k: "),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata: "),
    ],
)
def test_each_refusal_names_the_field(caller, fields, named):
    made = caller.create(metadata={"kept": "yes"}).json
    refused = put(caller, made["id"], **fields)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith(f"Invalid request: {named}")
    assert caller.get(made["id"]).json | {"status": "pending"} == made


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"ttl":NaN}', b'{"metadata":{"k":"\\udfff"}}'])
def test_what_is_no_json_object_is_refused(bystander, body):
    refused = bystander.request("PUT", "/v1/caching/cache-00000000000000000000", body)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")


def test_many_changes_at_once_leave_one_of_them(caller):
    active = caller.active()
    ttls = list(range(100, 1100, 100))
    with ThreadPoolExecutor(10) as pool:
        answers = list(
            pool.map(lambda ttl: put(caller, active["id"], ttl=ttl, metadata={"ttl": str(ttl)}), ttls)
        )
    assert {answer.status for answer in answers} == {200}
    kept = caller.get(active["id"]).json
    assert kept["status"] == "active"
    assert abs(kept["expired_at"] - time.time() - int(kept["metadata"]["ttl"])) < 30


def test_a_change_and_a_deletion_at_once_end_in_a_deletion(caller):
    for _ in range(3):
        active = caller.active()
        with ThreadPoolExecutor(4) as pool:
            changes = [pool.submit(put, caller, active["id"], ttl=100 + n) for n in range(3)]
            deleted = pool.submit(caller.request, "DELETE", f"/v1/caching/{active['id']}")
        assert deleted.result().status == 200
        assert {change.result().status for change in changes} <= {200, 404}
        assert caller.get(active["id"]).status == 404
