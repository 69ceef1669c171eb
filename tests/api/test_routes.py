"""What all routes have in common: the envelope, the request's id, the key; and the routes that need none."""

from __future__ import annotations

import http.client
import json
import re
from urllib.parse import urlsplit

import pytest

from tests.conftest import Client

ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/moonshot-v1-8k"),
    ("POST", "/v1/tokenizers/estimate-token-count"),
    ("GET", "/v1/users/me/balance"),
    ("GET", "/v1/billing/balance"),
    ("GET", "/v1/billing/prices"),
    ("GET", "/v1/billing/transfers"),
    ("GET", "/v1/billing/usage"),
    ("GET", "/v1/billing/savings"),
    ("GET", "/v1/billing/statements"),
    ("GET", "/v1/billing/statements/{month}"),
    ("GET", "/v1/billing/invoices"),
    ("GET", "/v1/sandbox/clock"),
    ("POST", "/v1/sandbox/clock"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/caching"),
    ("GET", "/v1/caching"),
    ("GET", "/v1/caching/cache-00000000000000000000"),
    ("PUT", "/v1/caching/cache-00000000000000000000"),
    ("DELETE", "/v1/caching/cache-00000000000000000000"),
    ("GET", "/v1/caching/cache-00000000000000000000/events"),
    ("POST", "/v1/webhooks"),
    ("GET", "/v1/webhooks"),
    ("GET", "/v1/webhooks/we-00000000000000000000"),
    ("PUT", "/v1/webhooks/we-00000000000000000000"),
    ("DELETE", "/v1/webhooks/we-00000000000000000000"),
    ("POST", "/v1/webhooks/we-00000000000000000000/test"),
    ("POST", "/v1/webhooks/we-00000000000000000000/rotate-secret"),
    ("GET", "/v1/webhooks/we-00000000000000000000/deliveries"),
    ("POST", "/v1/caching/estimate"),
    ("POST", "/v1/caching/refs/tags"),
    ("GET", "/v1/caching/refs/tags"),
    ("GET", "/v1/caching/refs/tags/{tag}"),
    ("GET", "/v1/caching/refs/tags/{tag}/content"),
    ("GET", "/v1/caching/refs/tags/{tag}/history"),
    ("DELETE", "/v1/caching/refs/tags/{tag}"),
]


def is_envelope(answer, kind: str) -> bool:
    return (
        answer.headers["content-type"] == "application/json"
        and list(answer.json) == ["error"]
        and list(answer.error) == ["message", "type"]
        and answer.error["type"] == kind
    )


# --- Keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_a_key_nothing_is_served(instance, method, path):
    refused = Client(instance.base_url, "").request(method, path, {} if method in ("POST", "PUT") else None)
    assert refused.status == 401
    assert is_envelope(refused, "invalid_authentication_error")
    assert refused.error["message"] == "Invalid Authentication"


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_wrong_key_is_told_so(instance, method, path):
    refused = Client(instance.base_url, "sk-wrong").request(
        method, path, {} if method in ("POST", "PUT") else None
    )
    assert refused.status == 401
    assert is_envelope(refused, "invalid_authentication_error")
    assert refused.error["message"] == "Incorrect API key provided"


@pytest.mark.parametrize("how", ["changed", "shortened", "lengthened", "upper case"])
def test_almost_a_key_is_no_key(instance, bystander, how):
    key = bystander.key
    almost = {
        "changed": key[:-1] + ("0" if key[-1] != "0" else "1"),
        "shortened": key[:-1],
        "lengthened": key + "0",
        "upper case": key.upper(),
    }[how]
    for path in ("/v1/models", "/v1/caching"):
        assert Client(instance.base_url, almost).request("GET", path).status == 401


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic {key}", "{key}", "bearer: {key}"])
def test_the_key_stands_after_bearer(instance, bystander, header):
    nobody = Client(instance.base_url, "")
    headers = {"Authorization": header.format(key=bystander.key)}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions")):
        assert nobody.request(method, path, {} if method == "POST" else None, headers=headers).status == 401


def test_a_revoked_key_ends_within_seconds(instance, caller):
    from django.utils import timezone

    from cacheplane.access import api_keys
    from cacheplane.access.models import ApiKey
    from tests.conftest import wait_for

    assert caller.request("GET", "/v1/models").status == 200
    key = ApiKey.objects.get(organization_id=caller.organization)
    api_keys.revoke(api_key_id=key.id, operator="test", reason="test", at=timezone.now())
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions")):
        wait_for(
            lambda: caller.request(method, path, {} if method == "POST" else None).status == 401,  # noqa: B023
            seconds=10,
            what="the key is refused",
        )


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("POST", "/v1/chat/completions")])
def test_a_suspended_organization_is_told_its_state_everywhere(new_caller, method, path):
    from cacheplane.access import organizations

    caller = new_caller()
    organizations.suspend(organization_id=caller.organization, reason="test", operator="test")
    refused = caller.request(method, path, {} if method == "POST" else None)
    assert refused.status == 403
    assert is_envelope(refused, "exceeded_current_quota_error")
    assert "is not active, current state: suspended" in refused.error["message"]
    organizations.resume(organization_id=caller.organization, reason="test", operator="test")


# --- Headers ---------------------------------------------------------------------------------------------------


def test_each_answer_names_its_request_and_its_caller(bystander, new_caller):
    answers = [
        bystander.request("GET", "/v1/models"),
        bystander.request("GET", "/v1/caching"),
        bystander.get("cache-00000000000000000000"),
        bystander.create(model="wrong"),
        bystander.chat(),
        bystander.request("GET", "/v1/chat/completions"),
        bystander.request("PATCH", "/v1/caching"),
        bystander.request("GET", "/v1/nothing"),
        Client(bystander.base_url, "").request("GET", "/v1/models"),
    ]
    ids = [answer.headers["msh-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"req-[0-9a-f]{32}", request_id) for request_id in ids)
    for answer in answers[:5]:
        assert answer.headers["msh-uid"] == bystander.organization
        assert answer.headers["msh-gid"] == "tier5"
    poor = new_caller(tier="tier0").request("GET", "/v1/models")
    assert poor.headers["msh-gid"] == "tier0"


def test_a_callers_own_request_id_is_not_taken(bystander):
    answer = bystander.request(
        "GET", "/v1/models", headers={"Msh-Request-Id": "mine", "X-Request-Id": "mine"}
    )
    assert answer.headers["msh-request-id"] != "mine"


# --- Wrong routes and verbs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v1/nothing",
        "/v2/caching",
        "/v1/caching/a/b",
        "/v1/chat",
        "/v1/chat/completions/x",
        "/%00",
    ],
)
def test_a_wrong_route_is_not_found_in_the_envelope(bystander, path):
    refused = bystander.request("GET", path)
    assert refused.status == 404
    assert is_envelope(refused, "resource_not_found_error")


@pytest.mark.parametrize(
    ("method", "path", "taken"),
    [
        ("PATCH", "/v1/caching", "POST"),
        ("DELETE", "/v1/caching", "GET"),
        ("POST", "/v1/caching/cache-00000000000000000000", "DELETE"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/users/me/balance", "GET"),
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/chat/completions", "POST"),
        ("GET", "/v1/tokenizers/estimate-token-count", "POST"),
    ],
)
def test_a_wrong_verb_is_told_the_right_ones(bystander, method, path, taken):
    refused = bystander.request(method, path, {} if method in ("POST", "PUT", "PATCH") else None)
    assert refused.status == 405
    assert is_envelope(refused, "invalid_request_error")
    assert taken in refused.headers["allow"]


# --- Bodies ----------------------------------------------------------------------------------------------------


def in_chunks(caller, path: str, chunks) -> tuple[int, bytes]:
    """POST a body of unknown length; (status, body) of the answer, whenever it comes."""
    connection = http.client.HTTPConnection(urlsplit(caller.base_url).netloc, timeout=60)
    headers = {"Authorization": f"Bearer {caller.key}", "Transfer-Encoding": "chunked"}
    try:
        try:
            connection.request("POST", path, chunks, headers, encode_chunked=True)
        except ConnectionError:
            pass  # refused while we were still sending; what was said about it can be read all the same
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    "path", ["/v1/caching", "/v1/chat/completions", "/v1/tokenizers/estimate-token-count"]
)
def test_a_body_may_come_in_chunks(caller, path):
    model = "moonshot-v1" if path == "/v1/caching" else "moonshot-v1-8k"
    body = {"model": model, "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1}
    data = json.dumps(body).encode()
    status, answered = in_chunks(caller, path, iter([data[:10], data[10:]]))
    assert status == 200, answered


@pytest.mark.parametrize("path", ["/v1/caching", "/v1/chat/completions", "/admin/login/", "/v1/nothing"])
def test_a_body_without_an_end_is_refused_in_the_middle(bystander, path):
    sent = 0

    def endless():
        nonlocal sent
        while sent < 256:
            sent += 1
            yield b"x" * (1 << 20)

    try:
        status, answered = in_chunks(bystander, path, endless())
    except ConnectionError:
        status = None  # the connection was closed on us before we read why
    assert sent < 256
    if status is not None:
        assert status == 413
        assert json.loads(answered)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", "x"]
)
def test_whatever_its_content_type_a_body_is_json(bystander, content_type):
    body = {"model": "moonshot-v1-8k", "messages": [{"role": "user", "content": "Hello."}]}
    headers = {"Content-Type": content_type}
    path = "/v1/tokenizers/estimate-token-count"
    assert bystander.request("POST", path, body, headers=headers).status == 200


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html", "text/event-stream", "x"])
def test_whatever_is_accepted_the_answer_is_json(bystander, accept):
    for path in ("/v1/models", "/v1/caching?format=xml"):
        answer = bystander.request("GET", path, headers={"Accept": accept})
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")


def test_a_host_that_is_not_ours_is_refused_in_the_envelope(bystander):
    refused = bystander.request("GET", "/v1/models", headers={"Host": "elsewhere.example"})
    assert refused.status == 400
    assert is_envelope(refused, "invalid_request_error")


# --- Without a key ---------------------------------------------------------------------------------------------


def test_a_supervisor_may_ask_without_a_key(instance):
    nobody = Client(instance.base_url, "")
    alive, ready = nobody.request("GET", "/livez"), nobody.request("GET", "/readyz")
    assert (alive.status, alive.json) == (200, {"status": "ok"})
    assert (ready.status, ready.json) == (200, {"status": "ok", "database": True, "engine": True})


def _described(path: str) -> str:
    """As the document names it."""
    return (
        path.replace("cache-00000000000000000000", "{cache_id}")
        .replace("we-00000000000000000000", "{endpoint_id}")
        .replace("moonshot-v1-8k", "{name}")
    )


def test_the_schema_is_a_valid_openapi_document(instance):
    from drf_spectacular.validation import validate_schema

    answer = Client(instance.base_url, "").request("GET", "/v1/schema")
    assert answer.status == 200
    document = answer.json
    validate_schema(document)
    verbs = {(verb.upper(), path) for path, about in document["paths"].items() for verb in about}
    described = {(method, _described(path)) for method, path in ROUTES}
    assert described <= verbs
    operations = [about for paths in document["paths"].values() for about in paths.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all("200" in operation["responses"] for operation in operations)


def test_each_reference_in_the_schema_leads_somewhere(instance):
    answer = Client(instance.base_url, "").request("GET", "/v1/schema")
    for reference in set(re.findall(r'"\$ref": ?"#/([^"]+)"', answer.body.decode())):
        found = answer.json
        for name in reference.split("/"):
            found = found[name]


def test_the_schema_has_a_page_that_needs_no_other_host(instance):
    nobody = Client(instance.base_url, "")
    page = nobody.request("GET", "/v1/schema/page")
    assert page.status == 200
    html = page.body.decode()
    assert "swagger" in html.lower()
    assert re.findall(r"(?:src|href)=\"(?:https?:)?//", html) == []
    for asset in re.findall(r"(?:src|href)=\"(/[^\"]+)\"", html):
        assert nobody.request("GET", asset).status == 200, asset


@pytest.mark.parametrize(
    "path", ["/a%0Ab", "/v1/caching/a%0Ab", "/v1/webhooks/%0A/test", "/v1/chat%0Acompletions"]
)
def test_a_line_break_in_a_path_is_answered_like_any_other_path(bystander, path):
    answer = bystander.request("POST" if path.endswith("test") else "GET", path)
    assert (answer.status, answer.error["type"]) == (404, "resource_not_found_error")
