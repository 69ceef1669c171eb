"""`GET /v1/caching/{id}/events`: a cache object's whole life, as its owner sees it."""

from __future__ import annotations

import re
import socket
from datetime import datetime, timedelta

import pytest

from tests.conftest import wait_for

ABSENT = "cache-00000000000000000000"
EACH = {"id", "object", "cache_id", "kind", "at", "actor", "detail"}


def life(caller, cache_id, query: str = "") -> list[dict]:
    answer = caller.request("GET", f"/v1/caching/{cache_id}/events{query}")
    assert answer.status == 200, answer.body
    assert answer.json["object"] == "list"
    return answer.json["data"]


def kinds(events) -> list[str]:
    return [event["kind"] for event in events]


def key_of(caller) -> str:
    from cacheplane.access.models import ApiKey

    return ApiKey.objects.get(organization_id=caller.organization).id


def test_a_whole_life_is_told_from_the_first_to_the_last(caller):
    made = caller.active()
    cache_id, key = made["id"], key_of(caller)
    assert caller.request("PUT", f"/v1/caching/{cache_id}", {"ttl": 900}).status == 200
    assert caller.request("PUT", f"/v1/caching/{cache_id}", {"ttl": 1}).status == 200
    caller.wait_until(cache_id, "expired")
    wait_for(lambda: "expired" in kinds(life(caller, cache_id)), seconds=20, what="the end is written down")
    assert caller.request("PUT", f"/v1/caching/{cache_id}", {"ttl": 600}).status == 200
    caller.wait_until(cache_id, "active")
    assert caller.request("DELETE", f"/v1/caching/{cache_id}").status == 200
    events = life(caller, cache_id)
    assert kinds(events) == [
        *["created", "claimed", "active", "extended", "extended", "expired", "revived", "claimed", "active"],
        *["expired", "deleted"],
    ]
    assert all(set(event) == EACH and event["cache_id"] == cache_id for event in events)
    actors = {(event["kind"], event["actor"]) for event in events[:-2]}
    assert actors == {
        *[("created", key), ("extended", key), ("revived", key)],
        *[("claimed", "system"), ("active", "system"), ("expired", "system")],
    }
    assert events[-1]["actor"] == key
    extended = [event["detail"] for event in events if event["kind"] == "extended"]
    assert extended[0]["expired_at_before"] == events[0]["detail"]["expired_at"]
    assert extended[1]["expired_at_before"] == extended[0]["expired_at"]
    lasts = datetime.fromisoformat(extended[0]["expired_at"]) - datetime.fromisoformat(events[3]["at"])
    assert lasts == timedelta(seconds=900)


def test_neither_our_hosts_nor_our_staff_are_named(caller):
    from cacheplane.caching import lifecycle

    made = caller.active()
    lifecycle.extend(caller.organization, made["id"], actor="ada.lovelace", ttl_seconds=700)
    answer = caller.request("GET", f"/v1/caching/{made['id']}/events")
    assert [event["actor"] for event in answer.json["data"] if event["kind"] == "extended"] == ["operator"]
    # Whole words: a host's name may be so short that it stands in somebody's id.
    assert not {socket.gethostname(), "ada.lovelace"} & set(re.findall(r"[\w.-]+", answer.body.decode()))
    assert not re.search(r":\d+:[0-9a-f]{8}", answer.body.decode())


def test_pages_follow_each_other_without_a_gap_in_both_directions(caller):
    cache_id = caller.active()["id"]
    for ttl in (700, 800, 900):
        caller.request("PUT", f"/v1/caching/{cache_id}", {"ttl": ttl})
    caller.request("DELETE", f"/v1/caching/{cache_id}")
    whole = [event["id"] for event in life(caller, cache_id)]
    assert len(whole) == 8
    for order, expected in (("asc", whole), ("desc", whole[::-1])):
        pages, after = [], ""
        while page := life(caller, cache_id, f"?limit=2&order={order}{after}"):
            pages += [event["id"] for event in page]
            after = f"&after={pages[-1]}"
        assert pages == expected


@pytest.fixture
def with_a_past(caller) -> str:
    made = caller.create().json["id"]
    caller.request("DELETE", f"/v1/caching/{made}")
    return made


def test_a_foreign_id_answers_exactly_like_an_absent_one(caller, outsider, with_a_past):
    alive = caller.create("Another.").json["id"]
    absent = outsider.request("GET", f"/v1/caching/{ABSENT}/events")
    assert (absent.status, absent.error["type"]) == (404, "resource_not_found_error")
    for cache_id in (with_a_past, alive):
        cursor = life(caller, cache_id)[0]["id"]
        for query in ("", f"?after={cursor}"):
            foreign = outsider.request("GET", f"/v1/caching/{cache_id}/events{query}")
            assert foreign.status == 404
            assert foreign.body.replace(cache_id.encode(), b"ID") == absent.body.replace(
                ABSENT.encode(), b"ID"
            )


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("?limit=0", 400, "limit"),
        ("?order=up", 400, "order"),
        ("?after=%00", 400, "after"),
        ("?after=nothing", 404, "nothing"),
        ("?after=00000000-0000-0000-0000-000000000000", 404, "0000"),
    ],
)
def test_bad_input_is_named(caller, with_a_past, query, status, said):
    refused = caller.request("GET", f"/v1/caching/{with_a_past}/events{query}")
    assert refused.status == status
    assert said in refused.error["message"]
