"""The end of an object's life: on time for a reader, within seconds for its bytes, to the minute for its owner."""

from __future__ import annotations

import time

from tests.api import books
from tests.api.test_delete import kv_files
from tests.conftest import wait_for


def put(caller, cache_id, **fields):
    return caller.request("PUT", f"/v1/caching/{cache_id}", fields)


def test_a_reader_sees_the_end_on_time(caller):
    active = caller.active()
    until = int(time.time()) + 3
    assert put(caller, active["id"], expired_at=until).status == 200
    seen = []
    while time.time() < until + 0.5:
        asked, status, answered = time.time(), caller.get(active["id"]).json["status"], time.time()
        seen.append(status)
        if status == "active":
            assert asked < until, "an ended object looked active"
        else:
            assert status == "expired"
            assert answered > until, "an object ended before its time"
    assert seen[0] == "active"
    assert seen[-1] == "expired"


def test_the_list_and_a_call_see_it_too(caller):
    expired = caller.expired()
    (listed,) = caller.request("GET", "/v1/caching").json["data"]
    assert listed == expired
    answer = caller.ask(expired["id"])
    assert answer.status == 200
    assert answer.json["usage"]["cached_tokens"] == 0


def test_a_pending_object_expires_unpaid(instance, caller, no_precompute):
    with no_precompute():
        made = caller.create(ttl=1).json
        caller.wait_until(made["id"], "expired")
        wait_for(lambda: books.purse(caller) == (1000, 0), seconds=20, what="the hold is given back")
    assert books.spent(caller) == {}
    assert kv_files(instance, made["id"]) == []


def test_its_bytes_are_destroyed_within_seconds(instance, caller):
    active = caller.active()
    assert len(kv_files(instance, active["id"])) == 1
    assert put(caller, active["id"], ttl=1).status == 200
    wait_for(lambda: not kv_files(instance, active["id"]), seconds=20, what="the bytes are gone")
    assert caller.get(active["id"]).json["status"] == "expired"


def test_only_started_minutes_are_paid(instance_database, caller):
    from billing.models import StorageSegment

    expired = caller.expired()
    wait_for(lambda: "storage" in books.spent(caller), seconds=20, what="the last storage is charged")
    segment = StorageSegment.objects.get(subject=expired["id"])
    assert int(segment.closed_at.timestamp()) == expired["expired_at"], "a late sweep costs nothing"
    minutes = books.started_minutes(from_=segment.started_at, to=segment.closed_at)
    assert books.counted(caller, "storage") == [minutes * expired["tokens"]]
    assert books.spent(caller) == {
        "creation": expired["tokens"] * books.CREATION,
        "storage": minutes * expired["tokens"] * books.STORAGE,
    }
