"""`Prefer: wait=…` on `POST /v1/caching`: the answer comes when the object is active, or when the time is over."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.api import books
from tests.conftest import FAMILY

BODY = {"model": FAMILY, "messages": [{"role": "system", "content": "You answer shortly."}], "ttl": 600}


def create(caller, prefer, *, key=None, **fields):
    headers = {"Prefer": prefer} | ({"Idempotency-Key": key} if key else {})
    return caller.request("POST", "/v1/caching", BODY | fields, headers=headers)


@pytest.mark.parametrize("prefer", ["wait=20", 'respond-async, Wait = "20"; x=y'])
def test_a_small_object_is_answered_active(caller, prefer):
    answer = create(caller, prefer)
    assert answer.status == 200, answer.body
    assert answer.json["status"] == "active"
    assert answer.headers["preference-applied"] == "wait=20"
    assert answer.json == caller.get(answer.json["id"]).json
    assert caller.ask(answer.json["id"]).json["usage"]["cached_tokens"] == answer.json["tokens"]


def test_when_the_time_is_over_it_is_answered_as_it_is(caller, no_precompute):
    with no_precompute():
        started = time.monotonic()
        answer = create(caller, "wait=2")
        took = time.monotonic() - started
    assert (answer.status, answer.json["status"]) == (200, "pending")
    assert answer.headers["preference-applied"] == "wait=2"
    assert 1.9 < took < 6
    caller.wait_until(answer.json["id"], "active")


@pytest.mark.parametrize(
    "prefer", ["", "wait", "wait=", "wait=soon", "wait=-1", "wait=1.5", "wait=0", "handling=lenient"]
)
def test_what_is_malformed_or_unknown_is_ignored(caller, no_precompute, prefer):
    with no_precompute():
        answer = create(caller, prefer)
    assert (answer.status, answer.json["status"]) == (200, "pending")
    assert "preference-applied" not in answer.headers


def test_a_refusal_does_not_wait(bystander):
    started = time.monotonic()
    refused = create(bystander, "wait=20", model="moonshot-v1-8k")
    assert (refused.status, "preference-applied" in refused.headers) == (400, False)
    assert time.monotonic() - started < 10


def test_an_object_that_ends_or_fails_meanwhile_is_answered_at_once(caller, no_precompute):
    from cacheplane.caching import lifecycle

    with no_precompute():
        started = time.monotonic()
        assert create(caller, "wait=20", ttl=1).json["status"] == "expired"
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(create, caller, "wait=20")
            claim = None
            while claim is None and time.monotonic() - started < 15:
                claim = lifecycle.claim_next(owner="test")
                time.sleep(0.05)
            assert claim is not None
            assert lifecycle.fail_attempt(claim, reason="The disk is full.", is_final=True)
            answer = waiting.result()
    assert (answer.json["status"], answer.json["error"]["message"]) == ("error", "The disk is full.")
    assert time.monotonic() - started < 20


def test_a_repetition_with_a_key_waits_for_the_same_object(caller):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: create(caller, "wait=20", key="order-1"), range(4)))
    assert {(answer.status, answer.json["status"]) for answer in answers} == {(200, "active")}
    assert len({answer.json["id"] for answer in answers}) == 1
    assert books.counted(caller, "creation") == [answers[0].json["tokens"]]


def test_those_who_wait_keep_nobody_from_the_database_and_are_not_too_many(caller, no_precompute):
    """The web process has fewer connections than there are callers who wait here."""
    with no_precompute(), ThreadPoolExecutor(40) as pool:
        waiting = [pool.submit(create, caller, "wait=10") for _ in range(40)]
        time.sleep(5)
        started = time.monotonic()
        for _ in range(5):
            assert caller.request("GET", "/v1/users/me/balance").status == 200
        took = time.monotonic() - started
        answers = [one.result() for one in waiting]
    assert took < 4
    assert {(answer.status, answer.json["status"]) for answer in answers} == {(200, "pending")}
    assert 0 < sum("preference-applied" in answer.headers for answer in answers) <= 32


def test_a_web_process_that_stops_keeps_nobody_waiting(caller, no_precompute):
    from cacheplane.access import api_keys
    from cacheplane.caching import waiting

    known = api_keys.authenticate(caller.key)
    started = time.monotonic()
    with no_precompute():
        made = caller.create().json
        stopping = threading.Timer(0.5, waiting.stop)
        stopping.start()
        found = waiting.until_settled(known, made["id"], deadline=started + 60)
    stopping.join()
    waiting._stopping.clear()
    assert found is not None
    assert found.status == "pending"
    assert time.monotonic() - started < 30
