"""`GET /v1/caching/{id}`."""

from __future__ import annotations

import pytest

ABSENT = "cache-00000000000000000000"


def blurred(answer, cache_id: str) -> tuple[int, str, list[str]]:
    """An answer without the id that was asked for and without what is different in each answer."""
    return answer.status, answer.body.decode().replace(cache_id, "ID"), sorted(answer.headers)


def test_an_object_is_read_as_it_was_made(caller):
    made = caller.create(metadata={"k": "v"}, name="Name").json
    read = caller.get(made["id"])
    assert read.status == 200
    assert read.json | {"status": "pending"} == made


def test_how_far_the_precompute_is_stands_in_a_header(caller):
    active = caller.active()
    read = caller.get(active["id"])
    assert read.headers["msh-context-cache-progress"] == f"{active['tokens']}/{active['tokens']}"


def test_an_absent_one_is_not_found(bystander):
    refused = bystander.get(ABSENT)
    assert refused.status == 404
    assert refused.error["type"] == "resource_not_found_error"
    assert ABSENT in refused.error["message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_somebody_elses_object_answers_exactly_like_an_absent_one(caller, outsider, method):
    made = caller.create().json
    body = {"ttl": 60} if method == "PUT" else None
    foreign = outsider.request(method, f"/v1/caching/{made['id']}", body)
    absent = outsider.request(method, f"/v1/caching/{ABSENT}", body)
    assert foreign.status == 404
    assert blurred(foreign, made["id"]) == blurred(absent, ABSENT)
    kept = caller.get(made["id"]).json
    assert kept | {"status": "pending"} == made


@pytest.mark.parametrize(
    "cache_id",
    [
        "x",
        "cache-",
        "%00",
        "cache-%00",
        "%F0%9F%98%80",
        "%ED%A0%80",
        "..",
        "%2e%2e",
        "a" * 5000,
        "'--",
        "%25",
        " ",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_what_cannot_be_an_id_is_not_found(bystander, method, cache_id):
    refused = bystander.request(
        method, f"/v1/caching/{cache_id.replace(' ', '%20')}", {} if method == "PUT" else None
    )
    assert (refused.status, refused.error["type"]) == (404, "resource_not_found_error")
