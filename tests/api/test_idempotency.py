"""`Idempotency-Key` on `POST /v1/caching`: sent twice, made once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from tests.api import books
from tests.conftest import FAMILY

BODY = {"model": FAMILY, "messages": [{"role": "system", "content": "You answer shortly."}], "ttl": 600}


def create(caller, key, **fields):
    return caller.request("POST", "/v1/caching", BODY | fields, headers={"Idempotency-Key": key})


def ids(caller) -> list[str]:
    return [row["id"] for row in caller.request("GET", "/v1/caching").json["data"]]


def test_the_same_key_with_the_same_body_answers_the_same_object(caller):
    first = create(caller, "order-1", tags=["live"])
    assert first.status == 200, first.body
    again = create(caller, "order-1", tags=["live"])
    assert (again.status, again.json | {"status": "pending"}) == (200, first.json)
    active = caller.wait_until(first.json["id"], "active")
    assert create(caller, "order-1", tags=["live"]).json == active
    assert ids(caller) == [active["id"]]
    assert books.counted(caller, "creation") == [active["tokens"]]


def test_the_order_of_keys_and_what_is_ignored_make_no_other_body(caller):
    turned = dict(reversed(BODY.items())) | {"mistyped": "yes"}
    made = create(caller, "order-1").json["id"]
    again = caller.request("POST", "/v1/caching", turned, headers={"idempotency-key": "order-1"})
    assert (again.status, again.json["id"]) == (200, made)


@pytest.mark.parametrize("other", [{"ttl": 601}, {"name": "x"}, {"tags": ["a"]}, {"metadata": {"a": "1"}}])
def test_the_same_key_with_another_body_is_refused(caller, other):
    made = create(caller, "order-1").json["id"]
    refused = create(caller, "order-1", **other)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith("Invalid request: Idempotency-Key: got 'order-1' with another")
    assert ids(caller) == [made]


def test_other_keys_and_no_key_make_other_objects(caller):
    made = {create(caller, "a").json["id"], create(caller, "A").json["id"], caller.create().json["id"]}
    assert len(made) == 3


def test_twenty_at_once_make_one_object_and_hold_once(caller, no_precompute):
    with no_precompute():
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: create(caller, "order-1"), range(20)))
        assert {answer.status for answer in answers} == {200}
        (made,) = {answer.json["id"] for answer in answers}
        tokens = answers[0].json["tokens"]
        assert books.purse(caller) == (1000, tokens * (books.CREATION + books.STORAGE))
    assert ids(caller) == [made]
    caller.wait_until(made, "active")
    assert books.counted(caller, "creation") == [tokens]


def test_two_bodies_at_once_under_one_key_make_one_object(caller):
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda n: create(caller, "order-1", ttl=600 + n % 2), range(10)))
    assert sorted(answer.status for answer in answers) == [200] * 5 + [400] * 5
    assert len(ids(caller)) == 1


def test_a_key_is_its_organizations_own(caller, outsider):
    mine, theirs = create(caller, "order-1").json["id"], create(outsider, "order-1", ttl=60).json["id"]
    assert mine != theirs
    assert (ids(caller), ids(outsider)) == ([mine], [theirs])


def test_what_was_refused_leaves_the_key_free(caller):
    assert create(caller, "order-1", model="moonshot-v1-8k").status == 400
    assert create(caller, "order-1").status == 200


def test_a_creation_that_could_not_be_paid_leaves_the_key_free(new_caller):
    poor = new_caller(money="0")
    assert create(poor, "order-1").status == 429
    from cacheplane.caching.models import IdempotencyKey

    assert not IdempotencyKey.objects.filter(organization_id=poor.organization).exists()


def test_a_repetition_after_the_deletion_creates_nothing(caller):
    made = create(caller, "order-1").json["id"]
    caller.request("DELETE", f"/v1/caching/{made}")
    refused = create(caller, "order-1")
    assert (refused.status, refused.error["type"]) == (404, "resource_not_found_error")
    assert made in refused.error["message"]
    assert ids(caller) == []


def test_after_a_day_the_key_is_free_again(caller):
    from cacheplane.caching.models import IdempotencyKey

    first, other = create(caller, "order-1").json["id"], create(caller, "order-2").json["id"]
    keys = IdempotencyKey.objects.filter(organization_id=caller.organization)
    for row in keys:
        row.created_at -= timedelta(hours=23, minutes=59)
        row.save()
    assert create(caller, "order-1").json["id"] == first
    for row in keys:
        row.created_at -= timedelta(minutes=1)
        row.save()
    again = create(caller, "order-1", ttl=60)
    assert again.status == 200
    assert again.json["id"] not in (first, other)
    assert [row.key for row in keys.all()] == ["order-1"], "what is over is taken away on the way"


def test_the_longest_key_is_taken(caller):
    assert create(caller, "~" * 255).status == 200


@pytest.mark.parametrize("key", ["", " ", "a b", "a\tb", "ü", "x" * 256])
def test_a_wrong_key_is_refused_and_named(bystander, key):
    refused = create(bystander, key)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith("Invalid request: Idempotency-Key: got ")
    assert ids(bystander) == []
