"""Bringing an ended object back is work like its creation: the limits, the total and the gate bind it too."""

from __future__ import annotations

import time


def test_it_counts_towards_the_limits_and_moving_a_living_end_does_not(caller):
    from cacheplane.access.models import RateState

    ended, living = caller.expired(), caller.active()
    RateState.objects.filter(organization_id=caller.organization).update(requests_level=1e9)
    refused = caller.request("PUT", f"/v1/caching/{ended['id']}", {"ttl": 60})
    assert refused.status == 429 and refused.error["type"] == "rate_limit_reached_error"
    assert caller.get(ended["id"]).json["status"] == "expired"
    assert caller.request("PUT", f"/v1/caching/{living['id']}", {"ttl": 60}).status == 200


def test_it_stays_within_the_organizations_total(caller):
    from cacheplane.caching.models import CacheObject

    ended, living = caller.expired(), caller.active()
    CacheObject.objects.filter(id=living["id"]).update(tokens=1_000_000)
    try:
        refused = caller.request("PUT", f"/v1/caching/{ended['id']}", {"ttl": 60})
        assert refused.status == 400 and "1000000 tokens are cached" in refused.error["message"]
        kept = caller.ask(ended["id"], options=";reset_ttl=60")
        assert kept.status == 200
        assert caller.get(ended["id"]).json["status"] == "expired"
    finally:
        CacheObject.objects.filter(id=living["id"]).update(tokens=living["tokens"])


def test_a_closed_gate_keeps_a_call_from_moving_the_end(caller):
    from cacheplane.access import gates
    from cacheplane.access.models import Organization

    active = caller.active(ttl=100)
    organization = Organization.objects.get(id=caller.organization)
    gates.close_for(organization, feature="context_caching", reason="test", operator="test")
    answer = caller.ask(active["id"], options=";reset_ttl=500")
    assert answer.status == 200 and answer.json["usage"]["cached_tokens"] == active["tokens"]
    assert caller.get(active["id"]).json["expired_at"] == active["expired_at"] < time.time() + 100


def test_nul_in_the_model_and_too_many_parameters_are_refused(caller):
    nul = caller.request(
        "POST",
        "/v1/chat/completions",
        b'{"model":"a\\u0000","messages":[{"role":"user","content":"x"}]}',
    )
    assert nul.status == 400 and nul.error["message"].startswith("Invalid request: model: got a NUL")
    many = "&".join(f"metadata[a{n}]=1" for n in range(2000))
    refused = caller.request("GET", f"/v1/caching?{many}")
    assert refused.status == 400 and refused.error["type"] == "invalid_request_error"
