"""`GET /v1/billing/savings`: against figures worked out by hand from what the calls told."""

from __future__ import annotations

from decimal import Decimal
from urllib.parse import urlencode

import pytest

from tests.api import books

PATH = "/v1/billing/savings"
HELLO = {"role": "user", "content": "Hello."}


def savings(caller, **query) -> dict:
    answer = caller.request("GET", f"{PATH}?{urlencode(query)}")
    assert answer.status == 200, answer.body
    return answer.json


@pytest.fixture
def cached(caller, prose):
    """An object with two hits on a cheap model and one on a dear one, and one without; both are deleted."""
    used, idle = caller.active(prose(400)), caller.active(prose(100))
    caller.usages = [
        (model, caller.ask(used["id"], "And?", model=model).json["usage"])
        for model in ("moonshot-v1-8k", "moonshot-v1-8k", "moonshot-v1-128k")
    ]
    caller.chat(HELLO)
    for made in (used, idle):
        assert caller.request("DELETE", f"/v1/caching/{made['id']}").status == 200
    caller.used, caller.idle = used, idle
    return caller


def paid(caller, cache_id: str) -> Decimal:
    from billing.models import LedgerEntry

    entries = LedgerEntry.objects.filter(
        organization_id=caller.organization,
        meter_event__subject=cache_id,
        kind__in=["creation", "storage", "call"],
    )
    return sum((entry.amount for entry in entries), Decimal(0))


def prefill_seconds(caller, cache_id: str) -> Decimal:
    events = caller.request("GET", f"/v1/caching/{cache_id}/events").json["data"]
    [told] = [event["detail"]["prefill_ms"] for event in events if event["kind"] == "active"]
    return Decimal(told) / 1000


def test_by_object(cached):
    told = savings(cached)
    assert (told["object"], told["group_by"], told["currency"]) == ("billing.savings", "object", "CNY")
    rows = {row["cache"]: row for row in told["data"]}
    assert set(rows) == {cached.used["id"], cached.idle["id"]}
    row = rows[cached.used["id"]]
    uncached = sum(usage["cached_tokens"] * books.TOKENS[model] for model, usage in cached.usages)
    cost = paid(cached, cached.used["id"])
    assert row["calls"] == 3
    assert row["cached_tokens"] == sum(usage["cached_tokens"] for _, usage in cached.usages) > 0
    assert Decimal(row["cost_uncached"]) == uncached
    assert Decimal(row["cost"]) == cost
    assert Decimal(row["saved"]) == uncached - cost
    assert Decimal(str(row["seconds_saved"])) == 3 * prefill_seconds(cached, cached.used["id"])
    assert row["seconds_saved"] > 0
    assert (row["advice"], row["reason"] != "") == ("keep", True)


def test_what_nobody_called_is_to_be_stopped(cached):
    [row] = [row for row in savings(cached)["data"] if row["cache"] == cached.idle["id"]]
    assert (row["calls"], row["cost_uncached"], row["seconds_saved"]) == (0, "0.000000000", None)
    assert row["advice"] == "stop"
    assert Decimal(row["saved"]) == -paid(cached, cached.idle["id"]) < 0
    assert row["break_even_calls_per_hour"] is None


def test_break_even_is_what_the_fixed_cost_takes(cached):
    [row] = [row for row in savings(cached)["data"] if row["cache"] == cached.used["id"]]
    spared = Decimal(row["cost_uncached"]) - 3 * books.CALL
    if spared <= 0:
        assert row["break_even_calls_per_hour"] is None
        return
    from billing.models import StorageSegment

    fixed = Decimal(row["cost"]) - 3 * books.CALL
    minutes = StorageSegment.objects.get(subject=cached.used["id"]).billed_minutes
    wanted = fixed / (spared / 3) * 60 / minutes
    assert 0 <= row["break_even_calls_per_hour"] - wanted < 1


def test_by_model_and_day_the_sums_are_the_same(cached):
    whole = savings(cached)["total"]
    for by, name in (("model", "model"), ("day", "day")):
        told = savings(cached, group_by=by)
        assert told["total"] == whole
        assert all(row["advice"] is None and row["reason"] is None for row in told["data"])
        assert sum(row["calls"] for row in told["data"]) == 3
        assert {row[name] for row in told["data"]}
    assert [row["model"] for row in savings(cached, group_by="model")["data"]] == ["moonshot-v1"]
    assert Decimal(whole["cost"]) == paid(cached, cached.used["id"]) + paid(cached, cached.idle["id"])


def test_a_long_prefix_on_a_dear_model_saves_money(caller, prose):
    """Tokens enough that a call spares more than its fee."""
    active = caller.active(prose(2_000))
    for number in range(40):
        assert caller.ask(active["id"], f"{number}?", model="moonshot-v1-128k", max_tokens=1).status == 200
    caller.request("DELETE", f"/v1/caching/{active['id']}")
    [row] = savings(caller)["data"]
    assert Decimal(row["saved"]) > 0
    assert row["advice"] == "keep"
    assert row["break_even_calls_per_hour"] > 0


def test_nobody_sees_somebody_elses(cached, outsider):
    told = savings(outsider)
    assert told["data"] == []
    assert told["total"] == {
        "calls": 0,
        "cached_tokens": 0,
        "cost": "0.000000000",
        "cost_uncached": "0.000000000",
        "saved": "0.000000000",
        "seconds_saved": None,
    }


@pytest.mark.parametrize(
    ("query", "named"),
    [("group_by=key", "group_by"), ("start=x", "start"), ("tz=x", "tz"), ("end=-1", "end"), ("by=day", "by")],
)
def test_each_refusal_names_the_parameter(bystander, query, named):
    refused = bystander.request("GET", f"{PATH}?{query}")
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith(f"Invalid request: {named}: got ")
