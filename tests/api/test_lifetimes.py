"""`ttl: auto`, schedules and budgets over HTTP, on the real engine: what is taken, what is shown, what it costs."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tests.api import books

DAYS = "mon-sun"


def put(caller, cache_id, **fields):
    return caller.request("PUT", f"/v1/caching/{cache_id}", fields)


def events(caller, cache_id, kind):
    found = caller.request("GET", f"/v1/caching/{cache_id}/events?limit=100").json["data"]
    return [event for event in found if event["kind"] == kind]


def hours(opens_in: float, closes_in: float, *, now: datetime | None = None) -> dict:
    """A window around `now`, cut to whole minutes; name it where the answer is compared with it."""
    now = now or datetime.now(UTC)

    def clock_time(ahead: float) -> str:
        return f"{now + timedelta(hours=ahead):%H:%M}"

    return {
        "windows": [{"days": DAYS, "from": clock_time(opens_in), "to": clock_time(closes_in), "tz": "UTC"}]
    }


def whole_minute(at: datetime) -> int:
    return int(at.timestamp()) // 60 * 60


def pass_time(caller, cache_id, *, seconds: int) -> None:
    """What one object knows of time, and its storage, lies further back."""
    from django.db.models import F

    from billing.models import BillingAccount, StorageSegment
    from cacheplane.caching.models import CacheObject

    by = timedelta(seconds=seconds)
    CacheObject.objects.filter(id=cache_id).update(
        **{name: F(name) - by for name in ("expired_at", "used_at", "cap_at")}
    )
    StorageSegment.objects.filter(subject=cache_id, closed_at__isnull=True).update(
        started_at=F("started_at") - by, ends_at=F("ends_at") - by
    )
    BillingAccount.objects.filter(organization_id=caller.organization).update(
        committed_until=F("committed_until") - by
    )


# --- ttl: auto --------------------------------------------------------------------------------------------------


def test_auto_is_kept_while_it_earns(caller):
    active = caller.active(ttl="auto")
    assert active["ttl_policy"] == "auto"
    assert active["ttl_cap"] == 30 * 86_400, "the tier's longest"
    assert abs(active["expired_at"] - time.time() - 300) < 15
    assert caller.ask(active["id"]).headers["msh-context-cache-id"] == active["id"]
    assert caller.get(active["id"]).json["expired_at"] == active["expired_at"], "the same minute"
    pass_time(caller, active["id"], seconds=120)
    answer = caller.ask(active["id"])
    assert answer.json["usage"]["cached_tokens"] > 0
    assert caller.get(active["id"]).json["expired_at"] == active["expired_at"], (
        "two minutes back, two minutes on"
    )
    [told] = events(caller, active["id"], "auto_extended")
    assert told["actor"].startswith("ak-")
    assert set(told["detail"]) == {
        *("expired_at_before", "expired_at", "used_at", "why"),
        *("storage_since_use", "recreation_cost", "break_even_minutes"),
    }
    assert Decimal(told["detail"]["recreation_cost"]) == active["tokens"] * books.CREATION
    assert Decimal(told["detail"]["storage_since_use"]) == 2 * active["tokens"] * books.STORAGE
    assert books.spent(caller)["call"] == 2 * books.CALL


def test_auto_that_nobody_used_is_let_go_and_says_why(caller):
    active = caller.active(ttl="auto", ttl_cap=3600)
    assert active["ttl_cap"] == 3600
    pass_time(caller, active["id"], seconds=310)
    assert caller.get(active["id"]).json["status"] == "expired"
    answer = caller.ask(active["id"])
    assert (answer.status, answer.json["usage"]["cached_tokens"]) == (200, 0)
    deadline = time.monotonic() + 20
    while not (told := events(caller, active["id"], "auto_expired")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert told[0]["actor"] == "system"
    assert told[0]["detail"]["break_even_minutes"] == 4
    assert caller.get(active["id"]).json["status"] == "expired", "a call alone buys nothing again"
    assert books.spent(caller)["creation"] == active["tokens"] * books.CREATION
    assert books.spent(caller)["storage"] == 5 * active["tokens"] * books.STORAGE
    assert caller.ask(active["id"], options=";reset_ttl=60").status == 200
    again = caller.wait_until(active["id"], "active")
    assert abs(again["expired_at"] - time.time() - 300) < 15


def test_put_makes_it_auto_and_back(caller):
    fixed = caller.active(ttl=3600)
    assert {"ttl_policy", "ttl_cap", "schedule", "next_open_at", "budget"}.isdisjoint(fixed)
    auto = put(caller, fixed["id"], ttl="auto", ttl_cap=7200)
    assert auto.status == 200
    assert (auto.json["ttl_policy"], auto.json["ttl_cap"]) == ("auto", 7200)
    assert auto.json["expired_at"] < fixed["expired_at"]
    back = put(caller, fixed["id"], ttl=600).json
    assert "ttl_policy" not in back and "ttl_cap" not in back


def test_the_estimate_tells_how_long_auto_keeps_it(bystander):
    body = {"model": "moonshot-v1", "messages": [{"role": "system", "content": "x"}], "ttl": "auto"}
    found = bystander.request("POST", "/v1/caching/estimate", body)
    assert found.status == 200
    assert (found.json["break_even_minutes"], found.json["lifetime_seconds"]) == (4, 300)
    scheduled = body | {"ttl": None, "schedule": hours(1, 3)}
    assert bystander.request("POST", "/v1/caching/estimate", scheduled).json["lifetime_seconds"] == 7200


# --- Schedules --------------------------------------------------------------------------------------------------


def test_a_schedule_opens_and_closes_it(caller):
    from cacheplane.caching.models import CacheObject

    now = datetime.now(UTC)
    later = hours(3, 5, now=now)
    made = caller.create(ttl=None, schedule=later).json
    opens_at = whole_minute(now + timedelta(hours=3))
    assert (made["status"], made["ttl_policy"], made["next_open_at"]) == ("expired", "schedule", opens_at)
    assert made["schedule"] == later
    assert caller.get(made["id"]).json == made
    assert books.purse(caller) == (1000, 0)
    outside = caller.ask(made["id"], options=";reset_ttl=60")
    assert (outside.status, outside.json["usage"]["cached_tokens"]) == (200, 0)
    assert caller.get(made["id"]).json["status"] == "expired"
    now = datetime.now(UTC)
    CacheObject.objects.filter(id=made["id"]).update(schedule=hours(-1, 2, now=now), reopen_at=now)
    opened = caller.wait_until(made["id"], "active", seconds=30)
    assert opened["expired_at"] == whole_minute(now + timedelta(hours=2))
    assert caller.ask(made["id"]).json["usage"]["cached_tokens"] > 0
    [told] = events(caller, made["id"], "schedule_opened")
    assert told["actor"] == "system"
    assert {"opens_at", "closes_at", "recreation_cost", "why"} <= set(told["detail"])
    closed = put(caller, made["id"], schedule=hours(3, 5)).json
    assert closed["status"] == "expired"
    assert len(events(caller, made["id"], "schedule_closed")) == 2
    assert books.spent(caller)["creation"] == made["tokens"] * books.CREATION


def test_within_a_window_it_is_created_at_once(caller):
    now = datetime.now(UTC)
    active = caller.active(ttl=None, schedule=hours(-1, 1, now=now))
    assert active["expired_at"] == whole_minute(now + timedelta(hours=1))
    assert active["next_open_at"] > active["expired_at"]


# --- Budgets ----------------------------------------------------------------------------------------------------


def test_a_budget_bounds_its_end(caller):
    tokens = caller.create().json["tokens"]
    amount = tokens * (books.CREATION + 3 * books.STORAGE)
    active = caller.active(ttl=3600, budget={"amount": str(amount), "per": "month"})
    assert active["budget"] == {"amount": f"{amount:.9f}", "per": "month"}
    assert abs(active["expired_at"] - time.time() - 180) < 15
    more = put(caller, active["id"], budget={"amount": "100"}).json
    assert more["budget"] == {"amount": "100.000000000", "per": "total"}
    assert abs(more["expired_at"] - time.time() - 3600) < 15
    assert "budget" not in put(caller, active["id"], budget={"amount": None}).json


def test_a_budget_that_pays_no_creation_is_refused(caller):
    refused = caller.create(budget={"amount": "0.000000001"})
    assert refused.status == 400
    assert refused.error["message"].startswith("Invalid request: budget.amount: got 0.000000001 in total")
    assert books.purse(caller) == (1000, 0)


# --- What is not taken ------------------------------------------------------------------------------------------

WEEK = {"days": "mon-fri", "from": "09:00", "to": "24:00", "tz": "Asia/Shanghai"}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"ttl": "soon"}, "ttl: got 'soon', takes seconds, or \"auto\""),
        ({"ttl": "auto", "expired_at": 9_000_000_000}, "ttl: got auto beside expired_at"),
        ({"ttl": "auto", "ttl_cap": 10**12}, "ttl_cap: got 1000000000000, takes 1 to "),
        ({"ttl": 60, "ttl_cap": 60}, "ttl_cap: got 60"),
        ({"ttl": 60, "schedule": {"windows": [WEEK]}}, "ttl: got 60, takes none beside a schedule"),
        ({"schedule": {"windows": []}}, "schedule.windows: "),
        ({"schedule": {"windows": [WEEK | {"days": "weekend"}]}}, "schedule.windows[0].days: got 'weekend'"),
        ({"schedule": {"windows": [WEEK, WEEK | {"tz": "Mars"}]}}, "schedule.windows[1].tz: got 'Mars'"),
        ({"schedule": {"windows": [WEEK | {"to": 24}]}}, "schedule.windows[0].to: expected str, got int"),
        ({"schedule": "daily"}, "schedule: "),
        ({"budget": {"amount": "0"}}, "budget.amount: got '0', takes an amount above 0"),
        ({"budget": {"amount": 1}}, "budget.amount: expected str | null, got int"),
        ({"budget": {"amount": "1", "per": "day"}}, "budget.per: "),
        ({"budget": "1"}, "budget: "),
    ],
)
@pytest.mark.parametrize("route", ["create", "change", "estimate"])
def test_each_refusal_names_the_field(bystander, route, fields, named):
    body = {"model": "moonshot-v1", "messages": [{"role": "system", "content": "x"}]} | fields
    if route == "change":
        refused = put(bystander, "cache-000000000000000000000", **fields)
    else:
        path = "/v1/caching" if route == "create" else "/v1/caching/estimate"
        refused = bystander.request("POST", path, body)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith(f"Invalid request: {named}")


def test_a_window_longer_than_the_tier_s_longest_life_is_refused(new_caller):
    from cacheplane.access.models import Tier

    Tier.objects.filter(slug="tier5").update(ttl_seconds_max=3600)
    try:
        refused = new_caller().create(ttl=None, schedule=hours(1, 3))
    finally:
        Tier.objects.filter(slug="tier5").update(ttl_seconds_max=30 * 86_400)
    assert refused.status == 400
    assert "schedule.windows: got one of more than 3600 seconds" in refused.error["message"]


def test_a_repeated_creation_with_another_lifetime_is_another(caller):
    def create(**fields):
        body = {"model": "moonshot-v1", "messages": [{"role": "system", "content": "x"}]} | fields
        return caller.request("POST", "/v1/caching", body, headers={"Idempotency-Key": "one"})

    first = create(ttl="auto")
    assert create(ttl="auto").json["id"] == first.json["id"]
    for other in ({"ttl": 60}, {"ttl": "auto", "ttl_cap": 60}, {"ttl": "auto", "budget": {"amount": "1"}}):
        assert create(**other).status == 400
