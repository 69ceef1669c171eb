"""`/v1/caching/refs/tags`: names for cache objects that move, and their history."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import pytest

TAGS = "/v1/caching/refs/tags"
ABSENT = "cache-00000000000000000000"
WRONG_NAMES = ["", "1a", "_a", "-a", ".a", "a b", "ä", "a/b", "a\n", "a\0", "a" * 129, "a;b", "a=b"]


def bind(caller, tag, cache_id):
    return caller.request("POST", TAGS, {"tag": tag, "cache_id": cache_id})


def named(caller, tag):
    return caller.request("GET", f"{TAGS}/{tag}")


def history(caller, tag, **query):
    answer = caller.request("GET", f"{TAGS}/{tag}/history?" + urlencode(query))
    assert answer.status == 200, answer.body
    assert answer.json["object"] == "list"
    return answer.json["data"]


def listed(caller, **query):
    answer = caller.request("GET", f"{TAGS}?" + urlencode(query))
    assert answer.status == 200, answer.body
    return [row["tag"] for row in answer.json["data"]]


@pytest.fixture
def two(caller) -> tuple[str, str]:
    return caller.create("The first.").json["id"], caller.create("The second.").json["id"]


# --- One tag ---------------------------------------------------------------------------------------------------


def test_a_tag_is_answered_as_the_contract_says(caller, two):
    answer = bind(caller, "my-tag", two[0])
    assert answer.status == 200, answer.body
    assert abs(answer.json["created_at"] - time.time()) < 30
    assert answer.json == {
        "cache_id": two[0],
        "created_at": answer.json["created_at"],
        "object": "cache_object.tag",
        "owned_by": caller.organization,
        "tag": "my-tag",
    }
    assert named(caller, "my-tag").json == answer.json
    assert caller.request("GET", TAGS).json == {"object": "list", "data": [answer.json]}
    content = caller.request("GET", f"{TAGS}/my-tag/content")
    assert content.status == 200
    assert content.json | {"status": "pending"} == caller.get(two[0]).json | {"status": "pending"}


def test_a_bound_tag_is_moved(caller, two):
    for cache_id in two:
        assert bind(caller, "live", cache_id).json["cache_id"] == cache_id
    assert named(caller, "live").json["cache_id"] == two[1]
    assert caller.request("GET", f"{TAGS}/live/content").json["id"] == two[1]
    assert listed(caller) == ["live"]


def test_one_object_may_have_many_tags(caller, two):
    for tag in ("a", "Z", "a.b-c_9", "a" * 128):
        assert bind(caller, tag, two[0]).status == 200
    assert listed(caller, order="asc") == ["Z", "a", "a.b-c_9", "a" * 128]


def test_the_same_binding_twice_is_one(caller, two):
    first, again = bind(caller, "live", two[0]), bind(caller, "live", two[0])
    assert again.json == first.json
    assert len(history(caller, "live")) == 1


@pytest.mark.parametrize("tag", WRONG_NAMES)
def test_a_wrong_name_is_refused_and_named(bystander, tag):
    refused = bind(bystander, tag, ABSENT)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith("Invalid request: tag: got ")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tag": "a"}, "cache_id"),
        ({"cache_id": "a"}, "tag"),
        ({"tag": 1, "cache_id": "a"}, "tag"),
        ([], "body"),
    ],
)
def test_each_refusal_names_the_field(bystander, body, field):
    refused = bystander.request("POST", TAGS, body)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert field in refused.error["message"]


def test_somebody_elses_object_answers_exactly_like_an_absent_one(two, outsider):
    foreign, absent = bind(outsider, "live", two[0]), bind(outsider, "live", ABSENT)
    assert (foreign.status, foreign.error["type"]) == (404, "resource_not_found_error")
    assert foreign.body.replace(two[0].encode(), b"ID") == absent.body.replace(ABSENT.encode(), b"ID")
    assert listed(outsider) == []


def test_somebody_elses_tag_is_not_there(caller, two, outsider):
    assert bind(caller, "live", two[0]).status == 200
    for path in ("live", "live/content", "live/history", "never", "9", "a%20b", "%00"):
        refused = outsider.request("GET", f"{TAGS}/{path}")
        assert (refused.status, refused.error["type"]) == (404, "resource_not_found_error")
    assert outsider.request("DELETE", f"{TAGS}/live").status == 200
    assert named(caller, "live").json["cache_id"] == two[0]
    own = outsider.create().json["id"]
    assert bind(outsider, "live", own).status == 200
    assert (named(caller, "live").json["cache_id"], named(outsider, "live").json["cache_id"]) == (two[0], own)


def test_without_the_gate_no_tag_is_bound(new_caller):
    refused = bind(new_caller(tier="tier0"), "live", ABSENT)
    assert (refused.status, refused.error["type"]) == (403, "permission_denied_error")


@pytest.mark.parametrize("tag", ["live", "never", "9", "a%20b"])
def test_a_deletion_is_always_answered_the_same(caller, two, tag):
    bind(caller, "live", two[0])
    for _ in range(2):
        answer = caller.request("DELETE", f"{TAGS}/{tag}")
        assert answer.status == 200
        expected = {"deleted": True, "object": "cache_object.tag.deleted", "tag": tag.replace("%20", " ")}
        assert answer.json == expected
    assert listed(caller) == ([] if tag == "live" else ["live"])
    assert caller.get(two[0]).status == 200


# --- Pages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_follow_each_other_without_a_gap(caller, two, order):
    for tag in "edcba":
        bind(caller, tag, two[0])
    whole = sorted("abcde", reverse=order == "desc")
    pages, after = [], {}
    while page := listed(caller, limit=2, order=order, **after):
        pages += page
        after = {"after": page[-1]}
    assert pages == whole
    assert listed(caller, order=order, before=whole[3]) == whole[:3]
    assert listed(caller, order=order, after=whole[0], before=whole[3]) == whole[1:3]
    caller.request("DELETE", f"{TAGS}/{whole[1]}")
    assert listed(caller, order=order, after=whole[1]) == whole[2:], "a cursor may be gone meanwhile"


@pytest.mark.parametrize(
    ("query", "named"),
    [("limit=0", "limit: "), ("order=up", "order: "), ("after=9", "after: "), ("before=a%20b", "before: ")],
)
def test_a_wrong_page_is_refused(bystander, query, named):
    refused = bystander.request("GET", f"{TAGS}?{query}")
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith(f"Invalid request: {named}")


# --- History ---------------------------------------------------------------------------------------------------


def test_the_history_says_what_a_tag_pointed_to_from_when_to_when_and_by_whose_key(caller, two):
    from cacheplane.access.models import ApiKey

    key = ApiKey.objects.get(organization_id=caller.organization).id
    for cache_id in (two[0], two[1], two[0]):
        bind(caller, "live", cache_id)
    newest, middle, oldest = history(caller, "live")
    assert [row["version"] for row in (oldest, middle, newest)] == [1, 2, 3]
    assert [row["cache_id"] for row in (oldest, middle, newest)] == [two[0], two[1], two[0]]
    assert {row["bound_by"] for row in (oldest, middle, newest)} == {key}
    assert oldest["released_at"] == middle["bound_at"]
    assert (newest["released_at"], newest["released_by"]) == (None, None)
    assert oldest["released_by"] == key
    assert history(caller, "live", order="asc") == [oldest, middle, newest]
    assert history(caller, "live", limit=1, after=3) == [middle]
    assert history(caller, "live", order="asc", before=3) == [oldest, middle]
    assert history(caller, "live", after=1) == []


def test_a_deleted_tag_keeps_its_history_and_goes_on_with_it(caller, two):
    bind(caller, "live", two[0])
    caller.request("DELETE", f"{TAGS}/live")
    (only,) = history(caller, "live")
    assert only["released_at"] is not None
    assert named(caller, "live").status == 404
    bind(caller, "live", two[0])
    assert [row["version"] for row in history(caller, "live")] == [2, 1]


def test_an_object_that_goes_takes_its_tags_along(caller, two):
    for tag in ("live", "also", "kept"):
        bind(caller, tag, two[1] if tag == "kept" else two[0])
    assert caller.request("DELETE", f"/v1/caching/{two[0]}").status == 200
    assert listed(caller) == ["kept"]
    for tag in ("live", "also"):
        (only,) = history(caller, tag)
        assert only["cache_id"] == two[0]
        assert only["released_at"] is not None


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "9" * 19])
def test_a_wrong_version_is_refused(bystander, cursor):
    refused = bystander.request("GET", f"{TAGS}/live/history?after={cursor}")
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith("Invalid request: after: ")


def test_a_history_is_rewritten_by_nobody(caller, two):
    from django.db import IntegrityError, transaction

    from cacheplane.caching.models import CacheTagChange

    bind(caller, "live", two[0])
    rows = CacheTagChange.objects.filter(organization_id=caller.organization)
    for change in (lambda: rows.update(cache_id=two[1]), rows.delete):
        with pytest.raises(IntegrityError), transaction.atomic():
            change()


# --- Many at once ----------------------------------------------------------------------------------------------


def test_fifty_moves_at_once_leave_one_owner_and_a_history_without_a_gap(caller):
    ids = [caller.create(f"Number {n}.", ttl=60).json["id"] for n in range(50)]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda cache_id: bind(caller, "live", cache_id), ids))
    assert {answer.status for answer in answers} == {200}
    told = history(caller, "live", order="asc", limit=100)
    assert [row["version"] for row in told] == list(range(1, 51))
    assert sorted(row["cache_id"] for row in told) == sorted(ids)
    assert told[-1]["cache_id"] == named(caller, "live").json["cache_id"]
    from cacheplane.caching.models import CacheTagChange

    changes = CacheTagChange.objects.filter(organization_id=caller.organization)
    bound = {change.version: change.at for change in changes if change.kind == "bound"}
    released = {change.version: change.at for change in changes if change.kind == "released"}
    assert released == {version: bound[version + 1] for version in range(1, 50)}


def test_a_move_and_a_deletion_at_once_leave_no_tag_without_an_object(caller):
    for turn in range(5):
        old, new = (caller.create(f"{which} {turn}.", ttl=60).json["id"] for which in ("Old", "New"))
        bind(caller, "live", old)
        with ThreadPoolExecutor(3) as pool:
            gone = pool.submit(caller.request, "DELETE", f"/v1/caching/{new}")
            moves = [pool.submit(bind, caller, "live", new) for _ in range(2)]
        assert gone.result().status == 200
        assert {move.result().status for move in moves} <= {200, 404}
        assert named(caller, "live").status in (200, 404)
        assert not [row for row in history(caller, "live")[1:] if row["released_at"] is None]


def test_an_object_that_is_being_tagged_is_computed_all_the_same(caller, instance, no_precompute):
    """A transaction that binds a tag keeps its object from going, and from nothing else."""
    import psycopg

    from cacheplane.caching import lifecycle

    with no_precompute():
        made = caller.create().json["id"]
        with psycopg.connect(instance.settings["DATABASE_URL"]) as binding:
            binding.execute("SELECT 1 FROM caching_cacheobject WHERE id = %s FOR KEY SHARE", [made])
            claim = lifecycle.claim_next(owner="test")
        assert claim is not None
        assert claim.cache_id == made
        assert lifecycle.fail_attempt(claim, reason="enough", is_final=True)


def test_an_organization_has_no_more_tags_than_it_may(caller, two, settings):
    from cacheplane.access import api_keys
    from cacheplane.caching import tags
    from cacheplane.errors import InvalidRequest

    known = api_keys.authenticate(caller.key)
    settings.TAGS_PER_ORGANIZATION_MAX = 2
    for tag in ("a", "b"):
        tags.bind(known, tag=tag, cache_id=two[0])
    with pytest.raises(InvalidRequest, match="^Invalid request: tag: got one more, takes 2 in an"):
        tags.bind(known, tag="c", cache_id=two[0])
    assert tags.bind(known, tag="b", cache_id=two[1]).cache_object_id == two[1], "a move makes no more"
    tags.release(known, "a")
    assert tags.bind(known, tag="c", cache_id=two[0]).version == 1


# --- With a creation -------------------------------------------------------------------------------------------


def test_tags_are_bound_with_the_creation(caller):
    made = caller.create(tags=["live", "v2", "live"])
    assert made.status == 200, made.body
    assert listed(caller, order="asc") == ["live", "v2"]
    assert named(caller, "v2").json["cache_id"] == made.json["id"]
    again = caller.create(tags=["live"]).json["id"]
    assert [row["cache_id"] for row in history(caller, "live")] == [again, made.json["id"]]


@pytest.mark.parametrize("tags", [None, []])
def test_no_tags_are_none(caller, tags):
    assert caller.create(tags=tags).status == 200
    assert listed(caller) == []


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        (["fine", "not fine"], "tags[1]: got 'not fine', takes a letter"),
        (["9"], "tags[0]: got '9', takes a letter"),
        ("live", "tags: "),
        ([1], "tags[0]: "),
        ([f"t{n}" for n in range(17)], "tags: "),
    ],
)
def test_a_wrong_tag_creates_nothing(bystander, tags, named):
    refused = bystander.create(tags=tags)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith(f"Invalid request: {named}")
    assert bystander.request("GET", "/v1/caching").json["data"] == []
    assert listed(bystander) == []


def test_a_creation_that_is_refused_moves_no_tag(new_caller):
    poor = new_caller(money="0")
    assert poor.create(tags=["live"]).status == 429
    assert listed(poor) == []
