"""`GET /v1/caching`: pages of a caller's objects."""

from __future__ import annotations

from urllib.parse import quote, urlencode

import pytest

ABSENT = "cache-00000000000000000000"


def listed(caller, **query) -> list[str]:
    answer = caller.request("GET", "/v1/caching?" + urlencode(query))
    assert answer.status == 200, answer.body
    assert answer.json["object"] == "list"
    return [body["id"] for body in answer.json["data"]]


@pytest.fixture
def five(caller) -> list[str]:
    """Ids of five objects, the oldest first."""
    return [
        caller.create(f"Number {n}.", metadata={"parity": str(n % 2), "n": str(n)}).json["id"]
        for n in range(5)
    ]


def test_whole_objects_come_the_newest_first(caller, five):
    data = caller.request("GET", "/v1/caching").json["data"]
    assert [body["id"] for body in data] == five[::-1]
    single = caller.get(five[-1]).json
    assert data[0] | {"status": "pending"} == single | {"status": "pending"}


def test_an_empty_list_is_a_list(caller):
    assert caller.request("GET", "/v1/caching").json == {"object": "list", "data": []}


def test_the_order_can_be_turned_round(caller, five):
    assert listed(caller, order="asc") == five
    assert listed(caller, order="desc") == five[::-1]


def test_a_page_has_no_more_than_its_limit(caller, five):
    assert listed(caller, limit=2) == five[:2:-1]
    assert listed(caller, limit=2, order="asc") == five[:2]
    assert listed(caller, limit=100, order="asc") == five


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_follow_each_other_without_a_gap_in_both_directions(caller, five, order):
    whole = five if order == "asc" else five[::-1]
    pages, after = [], {}
    while page := listed(caller, limit=2, order=order, **after):
        pages += page
        after = {"after": page[-1]}
    assert pages == whole
    assert listed(caller, order=order, before=whole[3]) == whole[:3]
    assert listed(caller, order=order, after=whole[0], before=whole[3]) == whole[1:3]
    assert listed(caller, order=order, after=whole[-1]) == []
    assert listed(caller, order=order, before=whole[0]) == []


def test_metadata_filters(caller, five):
    assert listed(caller, order="asc", **{"metadata[parity]": "1"}) == [five[1], five[3]]
    assert listed(caller, **{"metadata[parity]": "1", "metadata[n]": "3"}) == [five[3]]
    assert listed(caller, **{"metadata[parity]": "0", "metadata[n]": "3"}) == []
    assert listed(caller, **{"metadata[absent]": "1"}) == []
    assert listed(caller, order="asc", limit=1, after=five[1], **{"metadata[parity]": "1"}) == [five[3]]


def test_a_metadata_filter_may_hold_any_text(caller):
    strange = {"ü[x]": 'a"b\\c%_&=', "empty": ""}
    made = caller.create(metadata=strange).json["id"]
    for key, value in strange.items():
        assert listed(caller, **{f"metadata[{key}]": value}) == [made]


def test_nobody_sees_somebody_elses_objects(five, outsider):
    assert listed(outsider) == []
    assert listed(outsider, **{"metadata[parity]": "1"}) == []


@pytest.mark.parametrize("cursor", ["after", "before"])
def test_somebody_elses_cursor_answers_exactly_like_an_absent_one(five, outsider, cursor):
    foreign = outsider.request("GET", f"/v1/caching?{cursor}={five[2]}")
    absent = outsider.request("GET", f"/v1/caching?{cursor}={ABSENT}")
    assert (foreign.status, foreign.error["type"]) == (404, "resource_not_found_error")
    assert foreign.body.replace(five[2].encode(), b"ID") == absent.body.replace(ABSENT.encode(), b"ID")


@pytest.mark.parametrize(
    "limit", ["0", "101", "-1", "1.5", "abc", "１", "00010000", "0001" + "9" * 30, "9" * 5000, "1 "]
)
def test_a_limit_out_of_range_is_refused(bystander, limit):
    refused = bystander.request("GET", f"/v1/caching?limit={quote(limit)}")
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith("Invalid request: limit: ")


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("order=up", "order: "),
        ("metadata[k]=%00", "'metadata[k]': "),
        ("metadata[%00]=v", "'metadata["),
        ("after=%00", ""),
    ],
)
def test_each_refusal_names_the_parameter(bystander, query, named):
    refused = bystander.request("GET", f"/v1/caching?{query}")
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith(f"Invalid request: {named}")


def test_unknown_parameters_are_ignored(caller, five):
    assert listed(caller, order="asc", mistyped="1", metadata="x") == five
