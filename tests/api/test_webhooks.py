"""`/v1/webhooks`: where an organization is told, and what became of it."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import pytest

URL = "https://hooks.example.com/cache"
ABSENT = "we-00000000000000000000"
EVENTS = ["cache.active", "cache.expired"]


def create(caller, **fields):
    return caller.request("POST", "/v1/webhooks", {"url": URL, "events": EVENTS} | fields)


@pytest.fixture
def made(caller):
    answer = create(caller)
    assert answer.status == 200, answer.body
    yield answer.json
    caller.request("DELETE", f"/v1/webhooks/{answer.json['id']}")


def test_a_new_endpoint_is_told_its_secret_once(caller):
    answer = create(
        caller, description="the desk", expiring_lead_seconds=60, balance_threshold="12.000000001"
    )
    assert answer.status == 200, answer.body
    body = answer.json
    secret = body.pop("secret")
    assert secret.startswith("whsec_") and len(base64.b64decode(secret[6:])) == 32
    assert answer.headers["cache-control"] == "no-store"
    assert body == {
        "id": body["id"],
        "object": "webhook_endpoint",
        "url": URL,
        "events": EVENTS,
        "description": "the desk",
        "expiring_lead_seconds": 60,
        "balance_threshold": "12.000000001",
        "enabled": True,
        "disabled_reason": "",
        "created_at": body["created_at"],
    }
    for path in ("/v1/webhooks", f"/v1/webhooks/{body['id']}"):
        shown = caller.request("GET", path)
        assert secret not in shown.body.decode()
    assert shown.json == body
    assert caller.request("DELETE", f"/v1/webhooks/{body['id']}").json == {
        "deleted": True,
        "id": body["id"],
        "object": "webhook_endpoint.deleted",
    }
    assert caller.request("GET", f"/v1/webhooks/{body['id']}").status == 404


@pytest.mark.parametrize("threshold", [b"0.1", b'"0.1"', b"12.000000001", b"0", b"999999999999999"])
def test_a_threshold_is_exact_as_a_number_and_as_text(caller, threshold):
    body = b'{"url": "https://a.example/", "events": ["balance.low"], "balance_threshold": %s}' % threshold
    answer = caller.request("POST", "/v1/webhooks", body)
    assert answer.status == 200, answer.body
    assert answer.json["balance_threshold"] == threshold.decode().strip('"')


def test_what_a_put_does_not_say_stays(caller, made):
    path = f"/v1/webhooks/{made['id']}"
    changed = caller.request("PUT", path, {"events": ["balance.low"], "balance_threshold": 3})
    assert changed.status == 200, changed.body
    without_secret = {name: value for name, value in made.items() if name != "secret"}
    assert changed.json == without_secret | {"events": ["balance.low"], "balance_threshold": "3"}
    off = caller.request("PUT", path, {"enabled": False}).json
    assert (off["enabled"], off["disabled_reason"]) == (False, "disabled by its owner")
    assert caller.request("POST", f"{path}/test").status == 409
    on = caller.request("PUT", path, {"enabled": True, "url": "https://b.example/x"}).json
    assert (on["enabled"], on["disabled_reason"], on["url"]) == (True, "", "https://b.example/x")


def test_a_rotated_secret_is_another(caller, made):
    rotated = caller.request("POST", f"/v1/webhooks/{made['id']}/rotate-secret")
    assert rotated.status == 200, rotated.body
    assert rotated.json["secret"].startswith("whsec_")
    assert rotated.json["secret"] != made["secret"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"url": "http://hooks.example.com/"}, "url: got"),
        ({"url": "https://127.0.0.1/"}, "url: got"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "url: got"),
        ({"url": "https://user:hunter2@example.com/"}, "url: got credentials"),
        ({"url": "https://example.com:8080/"}, "url: got"),
        ({"url": ""}, "url: "),
        ({"url": None}, "url: "),
        ({"url": "https://a.example/\0"}, "url: "),
        ({"url": "https://a.example/" + "a" * 3000}, "url: "),
        ({"events": []}, "events: "),
        ({"events": ["cache.made"]}, "events[0]: "),
        ({"events": "cache.active"}, "events: "),
        ({"description": "x" * 513}, "description: "),
        ({"description": "\0"}, "description: "),
        ({"expiring_lead_seconds": 0}, "expiring_lead_seconds: "),
        ({"expiring_lead_seconds": 7 * 86_400 + 1}, "expiring_lead_seconds: "),
        ({"expiring_lead_seconds": 1.5}, "expiring_lead_seconds: "),
        ({"balance_threshold": -1}, "balance_threshold: got '-1'"),
        ({"balance_threshold": "0.0000000001"}, "balance_threshold: got"),
        ({"balance_threshold": "NaN"}, "balance_threshold: got"),
        ({"balance_threshold": "Infinity"}, "balance_threshold: got"),
        ({"balance_threshold": "1e400"}, "balance_threshold: got"),
        ({"balance_threshold": "1" * 30}, "balance_threshold: got"),
        ({"balance_threshold": "ten"}, "balance_threshold: "),
    ],
)
def test_bad_input_is_named(caller, made, fields, named):
    for refused in (create(caller, **fields), caller.request("PUT", f"/v1/webhooks/{made['id']}", fields)):
        if refused.status == 200:
            assert fields == {"url": None}, "null leaves it as it is, in a PUT"
            continue
        assert (refused.status, refused.error["type"]) == (400, "invalid_request_error"), refused.body
        assert refused.error["message"].startswith(f"Invalid request: {named}")
        assert "hunter2" not in refused.error["message"]


def test_ten_endpoints_are_the_most(caller):
    for _ in range(10):
        assert create(caller).status == 200
    refused = create(caller)
    assert refused.status == 409
    assert "10 webhook endpoints" in refused.error["message"]


def test_many_creations_at_once_make_no_eleventh(caller):
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: create(caller).status, range(16)))
    assert sorted(answers) == [200] * 10 + [409] * 6


def test_endpoints_and_deliveries_come_in_pages(caller, made):
    for _ in range(3):
        create(caller)
        assert caller.request("POST", f"/v1/webhooks/{made['id']}/test").status == 200
    for path in ("/v1/webhooks", f"/v1/webhooks/{made['id']}/deliveries"):
        whole = [row["id"] for row in caller.request("GET", path).json["data"]]
        assert len(whole) == (4 if path == "/v1/webhooks" else 3)
        assert whole == sorted(whole, reverse=True)
        first = caller.request("GET", f"{path}?limit=2").json["data"]
        rest = caller.request("GET", f"{path}?limit=2&after={first[-1]['id']}").json["data"]
        assert [row["id"] for row in first + rest] == whole[:4]
        turned = caller.request("GET", f"{path}?order=asc").json["data"]
        assert [row["id"] for row in turned] == whole[::-1]
        assert caller.request("GET", f"{path}?after=nothing").status == 404
        assert caller.request("GET", f"{path}?limit=0").status == 400


def test_a_private_host_is_refused_at_delivery_and_its_owner_sees_that(caller):
    """This instance allows no private hosts; the name leads to 127.0.0.1."""
    from tests.conftest import wait_for

    endpoint = create(caller, url="https://localhost/hook").json["id"]
    sent = caller.request("POST", f"/v1/webhooks/{endpoint}/test").json
    assert (sent["object"], sent["state"], sent["event"]["type"]) == (
        "webhook_delivery",
        "pending",
        "webhook.test",
    )

    def tried():
        [row] = caller.request("GET", f"/v1/webhooks/{endpoint}/deliveries").json["data"]
        return row if row["attempts"] else None

    row = wait_for(tried, seconds=30, what="it was tried")
    assert row["id"] == sent["id"]
    assert (row["state"], row["attempts"][0]["http_status"]) == ("pending", None)
    assert row["attempts"][0]["error"] == "address_refused"
    assert row["next_attempt_at"] is not None


# --- Somebody else's -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/webhooks/{id}", None),
        ("PUT", "/v1/webhooks/{id}", {"enabled": False}),
        ("DELETE", "/v1/webhooks/{id}", None),
        ("POST", "/v1/webhooks/{id}/test", None),
        ("POST", "/v1/webhooks/{id}/rotate-secret", None),
        ("GET", "/v1/webhooks/{id}/deliveries", None),
        ("GET", "/v1/webhooks?after={id}", None),
    ],
)
def test_a_foreign_id_answers_exactly_like_an_absent_one(caller, outsider, made, method, path, body):
    foreign = outsider.request(method, path.format(id=made["id"]), body)
    absent = outsider.request(method, path.format(id=ABSENT), body)
    assert (foreign.status, foreign.error["type"]) == (404, "resource_not_found_error")
    assert foreign.body.replace(made["id"].encode(), b"ID") == absent.body.replace(ABSENT.encode(), b"ID")
    shown = caller.request("GET", f"/v1/webhooks/{made['id']}").json
    assert shown == {name: value for name, value in made.items() if name != "secret"}


def test_nobody_sees_somebody_elses_endpoints(caller, outsider, made):
    assert outsider.request("GET", "/v1/webhooks").json == {"object": "list", "data": []}
