"""A month in a minute: what a sandbox sees, and is billed, when its owner sets its clock forward."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tests.api import books
from tests.conftest import wait_for

CLOCK = "/v1/sandbox/clock"
HOUR, DAY = 3600, 86_400
ROUNDTRIP_SECONDS = 30


@pytest.fixture
def sandbox(new_caller):
    return new_caller(kind="sandbox")


def now_of(caller) -> float:
    answer = caller.request("GET", CLOCK)
    assert answer.status == 200, answer.body
    return datetime.fromisoformat(answer.json["now"]).timestamp()


def advance(caller, **by) -> float:
    answer = caller.request("POST", CLOCK, by)
    assert answer.status == 200, answer.body
    return datetime.fromisoformat(answer.json["now"]).timestamp()


def events(caller, cache_id) -> dict[str, float]:
    found = caller.request("GET", f"/v1/caching/{cache_id}/events").json["data"]
    return {event["kind"]: datetime.fromisoformat(event["at"]).timestamp() for event in found}


def test_it_goes_forward_by_seconds_and_to_an_instant(sandbox):
    told = sandbox.request("GET", CLOCK).json
    assert (told["object"], told["offset_seconds"]) == ("sandbox.clock", 0)
    assert abs(now_of(sandbox) - time.time()) < ROUNDTRIP_SECONDS
    assert abs(advance(sandbox, advance=10 * DAY) - time.time() - 10 * DAY) < ROUNDTRIP_SECONDS
    unix = int(time.time()) + 20 * DAY
    assert 0 <= advance(sandbox, to=unix) - unix < ROUNDTRIP_SECONDS
    iso = datetime.fromtimestamp(unix + 5 * DAY, UTC) + timedelta(milliseconds=250)
    assert 0 <= advance(sandbox, to=iso.isoformat()) - iso.timestamp() < ROUNDTRIP_SECONDS
    offset = sandbox.request("GET", CLOCK).json["offset_seconds"]
    assert abs(offset - 25 * DAY) < ROUNDTRIP_SECONDS


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "advance"),
        ({"advance": 60, "to": 4_000_000_000}, "advance"),
        ({"advance": 0}, "advance"),
        ({"advance": -60}, "advance"),
        ({"advance": 366 * DAY + 1}, "advance"),
        ({"advance": "60"}, "advance"),
        ({"advance": 1.5}, "advance"),
        ({"to": 1_700_000_000}, "to"),
        ({"to": "2024-01-01T00:00:00Z"}, "to"),
        ({"to": "2099-01-01T00:00:00"}, "to"),
        ({"to": "2199-01-01T00:00:00Z"}, "to"),
        ({"to": "9999-12-31T23:59:59-23:59"}, "to"),
        ({"to": "soon"}, "to"),
        ({"to": True}, "to"),
        ([], "body"),
    ],
)
def test_what_is_no_way_forward_is_refused_by_its_name(sandbox, body, field):
    refused = sandbox.request("POST", CLOCK, body)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith(f"Invalid request: {field}")
    assert sandbox.request("GET", CLOCK).json["offset_seconds"] == 0


def test_the_longest_step_is_a_leap_year(sandbox):
    assert advance(sandbox, advance=366 * DAY) > time.time() + 365 * DAY


def test_a_standard_organization_has_no_clock_of_its_own(bystander):
    for method, body in (("GET", None), ("POST", {"advance": 60})):
        refused = bystander.request(method, CLOCK, body)
        assert (refused.status, refused.error["type"]) == (403, "permission_denied_error")
        assert "sandbox" in refused.error["message"]


def test_a_jump_leaves_everybody_elses_objects_alone(sandbox, caller):
    others = caller.active()
    advance(sandbox, advance=30 * DAY)
    assert caller.get(others["id"]).json["status"] == "active"


def test_objects_end_at_once_and_each_at_its_own_instant(sandbox):
    short, long = sandbox.active(ttl=HOUR), sandbox.active("Another text.", ttl=2 * DAY)
    lasting = sandbox.active("A third text.", ttl=20 * DAY)
    advance(sandbox, advance=5 * DAY)
    listed = {row["id"]: row["status"] for row in sandbox.request("GET", "/v1/caching").json["data"]}
    assert listed == {short["id"]: "expired", long["id"]: "expired", lasting["id"]: "active"}
    assert sandbox.get(short["id"]).json["status"] == "expired"
    for ended in (short, long):
        assert int(events(sandbox, ended["id"])["expired"]) == ended["expired_at"]
    assert sandbox.ask(short["id"]).json["usage"]["cached_tokens"] == 0
    hit = sandbox.ask(lasting["id"])
    assert hit.json["usage"]["cached_tokens"] == lasting["tokens"]
    assert int(hit.headers["msh-context-cache-token-exp"]) == lasting["expired_at"]


def test_each_started_minute_of_a_jump_is_billed_and_told_day_by_day(sandbox):
    from billing.models import MeterEvent

    active = sandbox.active(ttl=3 * DAY)
    began = events(sandbox, active["id"])["active"]
    advance(sandbox, advance=10 * DAY)
    minutes = -(-int(active["expired_at"] * 10**6 - round(began * 10**6)) // 60_000_000)
    assert minutes in (3 * 1440, 3 * 1440 - 1)
    assert sum(books.counted(sandbox, "storage")) == minutes * active["tokens"]
    assert books.spent(sandbox)["storage"] == minutes * active["tokens"] * books.STORAGE
    facts = MeterEvent.objects.filter(organization_id=sandbox.organization, meter="storage")
    assert len({(fact.occurred_at + timedelta(hours=8)).date() for fact in facts}) == 4
    assert len(facts) == 4


def test_money_that_runs_out_on_the_way_ends_objects_at_the_right_minute(new_caller):
    poor = new_caller(kind="sandbox", money="0.1")
    active = poor.active(ttl=25 * DAY)
    began = events(poor, active["id"])["active"]
    paid = Decimal("0.1") - active["tokens"] * books.CREATION
    minutes = int(paid // (active["tokens"] * books.STORAGE))
    advance(poor, advance=20 * DAY)
    assert poor.get(active["id"]).json["status"] == "expired"
    ended = events(poor, active["id"])["expired"]
    assert abs(ended - began - minutes * 60) < 0.01
    assert books.spent(poor)["storage"] == minutes * active["tokens"] * books.STORAGE
    assert 0 <= books.purse(poor)[0] < active["tokens"] * books.STORAGE


def test_what_a_pending_object_held_pays_for_others_from_its_end_on(new_caller, no_precompute, prose):
    """Settled in order: what it gives back when it ends keeps the other alive for longer than the jump's first look."""
    poor = new_caller(kind="sandbox", money="0.1")
    active = poor.active(ttl=25 * DAY)
    with no_precompute():
        waiting = poor.create(prose(600), ttl=60)
        assert waiting.status == 200
        held = books.purse(poor)[1]
        assert held > active["tokens"] * books.STORAGE, "money for minutes"
        advance(poor, advance=20 * DAY)
    assert poor.get(waiting.json["id"]).json["status"] == "expired"
    paid = Decimal("0.1") - active["tokens"] * books.CREATION
    minutes = int(paid // (active["tokens"] * books.STORAGE))
    assert books.spent(poor)["storage"] == minutes * active["tokens"] * books.STORAGE


def test_a_reset_counts_from_the_sandboxs_now(sandbox):
    advance(sandbox, advance=7 * DAY)
    active = sandbox.active(ttl=HOUR)
    assert active["expired_at"] - now_of(sandbox) <= HOUR
    assert active["expired_at"] - time.time() > 7 * DAY
    answer = sandbox.ask(active["id"], options=";reset_ttl=7200")
    told = int(answer.headers["msh-context-cache-token-exp"])
    assert 0 <= told - now_of(sandbox) - 7200 + ROUNDTRIP_SECONDS < 2 * ROUNDTRIP_SECONDS
    assert abs(sandbox.get(active["id"]).json["expired_at"] - told) <= ROUNDTRIP_SECONDS
    past = sandbox.request("PUT", f"/v1/caching/{active['id']}", {"expired_at": int(time.time()) + DAY})
    assert (past.status, past.error["type"]) == (400, "invalid_request_error")


def test_a_hit_keeps_an_object_that_earns_by_the_sandboxs_clock(sandbox):
    advance(sandbox, advance=7 * DAY)
    active = sandbox.active(ttl="auto")
    advance(sandbox, advance=150)
    assert sandbox.ask(active["id"]).json["usage"]["cached_tokens"] == active["tokens"]
    moved = sandbox.get(active["id"]).json["expired_at"] - active["expired_at"]
    assert moved in (120, 180), "the minute of the use is the third, or the fourth, and four more are paid"
    assert "auto_extended" in events(sandbox, active["id"])


def test_a_jump_over_more_than_can_be_written_at_once_is_refused(new_caller, no_precompute):
    many = new_caller(kind="sandbox")
    with no_precompute():
        made = [many.create(f"Object {number}.", ttl=30 * DAY) for number in range(101)]
        assert {answer.status for answer in made} == {200}
        refused = many.request("POST", CLOCK, {"advance": 60 * DAY})
        assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
        assert "takes 3000: set it forward in smaller steps" in refused.error["message"]
        advance(many, advance=2 * DAY)


def test_its_calls_are_dated_and_paid_by_its_clock(sandbox):
    from billing.models import LedgerEntry, MeterEvent

    advance(sandbox, advance=40 * DAY)
    usage = sandbox.chat({"role": "user", "content": "Hello."}).json["usage"]
    assert sum(books.spent(sandbox).values()) == books.call_price(usage, is_hit=False)
    at = [fact.occurred_at for fact in MeterEvent.objects.filter(organization_id=sandbox.organization)]
    at += [
        entry.created_at
        for entry in LedgerEntry.objects.filter(organization_id=sandbox.organization, kind="completion")
    ]
    assert len(at) == 3
    assert all(instant.timestamp() > time.time() + 39 * DAY for instant in at)


def test_its_limits_are_the_machines(new_caller):
    """Three requests a minute are three, however many minutes its clock has passed."""
    small = new_caller(kind="sandbox", tier="tier0")
    answers = [small.request("POST", CLOCK, {"advance": HOUR}) for _ in range(5)]
    assert [answer.status for answer in answers] == [200] * 3 + [429] * 2
    assert small.request("GET", CLOCK).json["offset_seconds"] == 3 * HOUR


def test_lost_bytes_stop_its_storage_where_they_were_last_proved(instance, sandbox):
    from billing.models import StorageSegment
    from tests.api.test_delete import kv_files

    advance(sandbox, advance=5 * DAY)
    active = sandbox.active(ttl=2 * DAY)
    (name,) = kv_files(instance, active["id"])
    (instance.kv_dir / name).write_bytes(b"damaged")
    assert sandbox.ask(active["id"]).status == 200
    sandbox.wait_until(active["id"], "active")
    first = StorageSegment.objects.filter(subject=active["id"]).order_by("id").first()
    assert first.billed_minutes == 1
    assert first.closed_at is not None
    assert first.closed_at.timestamp() > time.time() + 4 * DAY


def test_a_hit_proves_its_bytes_by_its_clock(sandbox):
    from cacheplane.caching.models import CacheObject

    active = sandbox.active(ttl=2 * DAY)
    advance(sandbox, advance=HOUR)
    assert sandbox.ask(active["id"]).json["usage"]["cached_tokens"] == active["tokens"]
    kv = CacheObject.objects.select_related("kv_state").get(id=active["id"]).kv_state
    assert timedelta(hours=1) <= kv.proved_at - kv.created_at < timedelta(hours=1, minutes=5)


def test_a_webhook_of_it_is_sent_now_and_speaks_of_its_time(sandbox):
    from cacheplane.events.models import Delivery

    advance(sandbox, advance=30 * DAY)
    made = sandbox.request(
        "POST", "/v1/webhooks", {"url": "https://hooks.example.com/x", "events": ["cache.active"]}
    )
    assert made.status == 200, made.body
    active = sandbox.active()
    delivery = wait_for(
        lambda: Delivery.objects.filter(event__subject=active["id"]).select_related("event").first(),
        seconds=20,
        what="the delivery is written",
    )
    assert delivery.event.at.timestamp() > time.time() + 29 * DAY
    assert delivery.created_at.timestamp() < time.time() + DAY
    assert delivery.next_at.timestamp() < time.time() + DAY
    sandbox.request("DELETE", f"/v1/webhooks/{made.json['id']}")
