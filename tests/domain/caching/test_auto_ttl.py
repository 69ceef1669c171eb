"""`ttl: auto`: kept while it earns, on real rows and a real ledger."""

from __future__ import annotations

import random
import uuid
from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import transaction

from billing import clock, price_book
from cacheplane.caching import lifecycle
from cacheplane.caching.lifetimes import Auto, Fixed
from cacheplane.caching.models import ACTIVE, EXPIRED, PENDING
from cacheplane.chat import Usage
from cacheplane.gateway import admission, matching
from cacheplane.gateway.matching import Reference
from tests.domain.caching.conftest import CREATION, STORAGE, TOKENS, Owner, at_least
from workers import expiry

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("books")]

MINUTE = timedelta(minutes=1)


def test_an_object_is_kept_for_what_its_creation_would_buy(owner: Owner, auto: Auto) -> None:
    """24 for a creation, 5 for a minute: the minute of the activation, and 4 more."""
    row = owner.active(auto)
    assert (row.status, row.ttl_policy, row.kept_minutes) == (ACTIVE, "auto", 4)
    assert owner.lived(row) == 5 * MINUTE
    assert row.segment is not None and row.segment.ends_at == row.expired_at
    assert row.used_at == row.activated_at


def test_while_it_is_pending_only_its_cap_ends_it(owner: Owner) -> None:
    row = owner.pending(Auto(cap_seconds=7200))
    assert row.expired_at == row.cap_at == row.created_at + timedelta(hours=2)


def test_a_hit_moves_the_end_and_says_why(owner: Owner, auto: Auto) -> None:
    row = owner.active(auto)
    owner.pass_time(row, minutes=2.5)
    row = owner.call(row)
    assert owner.lived(row) == 7 * MINUTE, "the third minute, and 4 more"
    [told] = owner.events(row, "auto_extended")
    assert told["expired_at"] == row.expired_at.isoformat()
    assert (told["storage_since_use"], told["recreation_cost"], told["break_even_minutes"]) == (
        "0.010000000",
        "0.024000000",
        4,
    )
    assert "4 more" in told["why"]


def test_hits_within_one_minute_are_one(owner: Owner, auto: Auto) -> None:
    row = owner.active(auto)
    for _ in range(3):
        owner.call(row)
    assert owner.kinds(row).count("auto_extended") == 0
    owner.pass_time(row, seconds=61)
    for _ in range(3):
        owner.call(row)
    assert owner.kinds(row).count("auto_extended") == 1
    assert owner.lived(row) == 6 * MINUTE


def test_a_call_that_did_not_hit_earns_nothing(owner: Owner, auto: Auto) -> None:
    row = owner.active(auto)
    owner.pass_time(row, minutes=2)
    before = owner.read(row).expired_at
    assert owner.call(row, is_hit=False).expired_at == before
    assert owner.call(row, is_hit=False, reset_seconds=3600).expired_at == before, "reset_ttl or not"


def test_no_use_moves_the_end_beyond_the_cap(owner: Owner) -> None:
    row = owner.active(Auto(cap_seconds=400))
    assert owner.lived(row) == 5 * MINUTE
    owner.pass_time(row, minutes=3.5)
    row = owner.call(row)
    assert row.expired_at == row.cap_at
    assert "cap of 400 seconds" in owner.events(row, "auto_extended")[0]["why"]
    owner.pass_time(row, minutes=1)
    assert owner.call(row).expired_at == owner.read(row).cap_at
    assert owner.kinds(row).count("auto_extended") == 1
    owner.pass_time(row, minutes=5)
    expiry.expire()
    assert "cap of 400 seconds" in owner.events(row, "auto_expired")[0]["why"]


def test_what_nobody_uses_expires_and_says_why(owner: Owner, auto: Auto) -> None:
    row = owner.active(auto)
    owner.pass_time(row, minutes=5, seconds=1)
    assert owner.status(row) == EXPIRED, "by the clock, before anything is written"
    for _ in range(2):
        expiry.expire()
    [told] = owner.events(row, "auto_expired")
    assert told["storage_since_use"] == "0.020000000"
    assert told["recreation_cost"] == "0.024000000"
    assert "more than to create it again" in told["why"]
    assert owner.spent("creation", "storage") == CREATION + 5 * STORAGE


def test_it_follows_the_price_book(owner: Owner, auto: Auto) -> None:
    for meter, price in (("creation", "60"), ("storage", "5")):
        price_book.publish(
            meter=meter, model="dear", currency="CNY", per_million=Decimal(price), valid_from=clock.now()
        )
    row = owner.active(auto, model="dear")
    assert owner.lived(row) == 13 * MINUTE


def test_one_that_has_ended_is_bought_again_by_reset_ttl_alone(owner: Owner, auto: Auto) -> None:
    row = owner.active(auto)
    owner.pass_time(row, minutes=6)
    assert owner.call(row).status_at(clock.now()) == EXPIRED
    row = owner.call(row, is_hit=False, reset_seconds=60)
    assert row.status == PENDING
    assert row.cap_at is not None and at_least(
        row.cap_at, clock.now() + timedelta(days=1) - timedelta(seconds=4)
    )
    row = owner.compute(row)
    assert owner.lived(row) == 5 * MINUTE, "by the rule, whatever reset_ttl said"
    assert owner.spent("creation") == 2 * CREATION


def test_put_makes_it_auto_and_back(owner: Owner, auto: Auto) -> None:
    row = owner.active(Fixed(ttl_seconds=3600))
    row = owner.change(row, lifetime=auto)
    assert owner.lived(row) == 5 * MINUTE
    owner.pass_time(row, minutes=3)
    row = owner.change(row, lifetime=Fixed(ttl_seconds=600))
    until = row.expired_at
    assert at_least(until, clock.now() + timedelta(seconds=596))
    assert (row.ttl_policy, row.cap_at, row.used_at) == ("fixed", None, None)
    assert owner.call(row).expired_at == until
    row = owner.call(row, reset_seconds=900)
    assert row.expired_at > until + timedelta(seconds=299)


def test_put_starts_the_cap_anew(owner: Owner) -> None:
    row = owner.active(Auto(cap_seconds=400))
    owner.pass_time(row, minutes=3)
    row = owner.change(row, lifetime=Auto(cap_seconds=400))
    assert row.cap_at is not None and row.cap_at - clock.now() > timedelta(seconds=395)
    assert owner.lived(row) == 8 * MINUTE


def test_lost_bytes_cost_it_no_time(owner: Owner, auto: Auto) -> None:
    row = owner.active(auto)
    owner.pass_time(row, minutes=3)
    assert row.kv_state_id is not None
    assert lifecycle.kv_lost(
        owner.organization_id, row.id, kv_id=row.kv_state_id, reason="test", actor="test"
    )
    row = owner.read(row)
    assert (row.status, row.expired_at) == (PENDING, row.cap_at)
    assert owner.lived(owner.compute(row)) == 5 * MINUTE
    assert owner.spent("creation") == CREATION, "the rework is free"


def test_an_operator_s_extension_of_one_that_has_ended(owner: Owner) -> None:
    row = owner.active(Auto(cap_seconds=400))
    owner.pass_time(row, minutes=20)
    expiry.expire()
    lifecycle.extend(owner.organization_id, row.id, actor="ada", ttl_seconds=3600)
    assert owner.lived(owner.compute(row)) == 5 * MINUTE


def test_the_hot_path_knows_when_a_hit_matters(owner: Owner, auto: Auto) -> None:
    def earns_from(row: object) -> object:
        return matching.find(owner.caller, Reference(cache_id=row.id)).earns_from  # type: ignore[attr-defined]

    row = owner.active(auto)
    assert row.segment is not None
    assert earns_from(row) == row.segment.started_at + MINUTE, "not in the minute that is reckoned with"
    owner.pass_time(row, minutes=2.5)
    row = owner.call(row)
    assert row.segment is not None
    assert earns_from(row) == row.segment.started_at + 3 * MINUTE
    assert earns_from(owner.active(Fixed(ttl_seconds=60))) is None
    capped = owner.active(Auto(cap_seconds=100))
    assert earns_from(capped) is None, "its end cannot be moved any more"
    owner.pass_time(row, minutes=20)
    assert earns_from(row) is None


@pytest.mark.parametrize(
    ("usage", "is_hit", "seconds", "moves"),
    [
        (Usage(prompt_tokens=TOKENS + 9, completion_tokens=1, cached_tokens=TOKENS), True, 61, True),
        (Usage(prompt_tokens=TOKENS + 9, completion_tokens=1, cached_tokens=TOKENS), True, 0, False),
        (Usage(prompt_tokens=TOKENS + 9, completion_tokens=1, cached_tokens=0), False, 61, False),
        (None, True, 61, False),
    ],
    ids=["a hit", "a hit in the same minute", "a miss", "the engine broke off"],
)
def test_the_settlement_of_a_call_moves_the_end(
    owner: Owner, auto: Auto, usage: Usage | None, is_hit: bool, seconds: int, moves: bool
) -> None:
    row = owner.active(auto)
    owner.pass_time(row, seconds=seconds)
    prefix = matching.find(owner.caller, Reference(cache_id=row.id))
    wanted = admission.Wanted(
        call_id=uuid.uuid4(),
        model="moonshot-v1-8k",
        family="moonshot-v1",
        prompt_tokens=TOKENS + 9,
        max_tokens=4,
        prefix=prefix,
        request_id="",
    )
    admitted = admission.admit(owner.caller, wanted, gateway_id=uuid.uuid4(), engine_id=owner.engine.id)
    outcome = admission.Outcome(usage=usage, is_hit=is_hit, started_at=admitted.at)
    admission.settle(owner.caller, wanted, outcome, None)
    assert owner.lived(row) == (6 if moves else 5) * MINUTE
    assert owner.kinds(row).count("auto_extended") == moves


@pytest.mark.parametrize("seed", range(3))
def test_the_ledger_agrees_with_the_rule(owner: Owner, auto: Auto, seed: int) -> None:
    """Calls at random; each object that has ended is bought again by its next call. What was charged is what the
    pure rule says, to nine decimals."""
    chance = random.Random(seed)
    row = owner.active(auto)
    starts, at, expected = [0.0], 0.0, CREATION
    ends = 5
    for _ in range(14):
        gap = chance.choice([0.3, 1.1, 3.4, 4.7, 5.2, 7.9])
        owner.pass_time(row, minutes=gap)
        at += gap
        if at < starts[-1] + ends:
            row = owner.call(row)
            ends = int(at - starts[-1]) + 5
        else:
            expected += ends * STORAGE + CREATION
            row = owner.compute(owner.call(row, is_hit=False, reset_seconds=60))
            starts.append(at)
            ends = 5
        assert owner.lived(row) == ends * MINUTE
    assert len(starts) > 1
    owner.pass_time(row, minutes=30)
    expiry.expire()
    expected += ends * STORAGE
    assert owner.spent("creation", "storage") == expected


def test_deleting_ends_it(owner: Owner, auto: Auto) -> None:
    row = owner.active(auto)
    with transaction.atomic():
        lifecycle.delete(owner.organization_id, row.id, actor="ak-1")
    assert owner.spent("creation", "storage") == CREATION + STORAGE
