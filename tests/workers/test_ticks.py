"""Periodic jobs: one holder at a time, a table that names real jobs, and twice is as good as once."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection

from billing import accounts, audit, charging, clock
from billing.models import Hold, Invoice, LedgerEntry, MeterEvent
from cacheplane import dispatch
from cacheplane.access import api_keys, organizations, rate_limits
from cacheplane.access.callers import Caller
from cacheplane.access.models import CallInFlight, RateState
from cacheplane.caching import lifecycle, precompute
from cacheplane.caching.models import ACTIVE, ERROR, EXPIRED, CacheObject, CacheObjectEvent, new_cache_id
from cacheplane.celery import app
from cacheplane.engines import registry, slots
from cacheplane.engines.models import Engine, EngineSlot, ModelFamily
from cacheplane.engines.slots import SlotLease
from cacheplane.errors import EngineError
from cacheplane.gateway import admission
from cacheplane.kv.models import KVState
from cacheplane.kv.store import SavedKV
from tests.domain.billing.conftest import make_payer
from workers import expiry, sweeping, ticks
from workers import metering as metering_jobs
from workers import precompute as precompute_jobs

pytestmark = pytest.mark.django_db

FAMILY, MODEL = "moonshot-v1", "moonshot-v1-8k"
TOKENS = 1_000


# --- One at a time ---------------------------------------------------------------------------------------------


@pytest.fixture
def other_process() -> Iterator[psycopg.Connection]:
    """A second session on the same database, as another worker has it."""
    about = connection.get_connection_params()
    known = {name: about[name] for name in ("dbname", "user", "password", "host", "port") if about.get(name)}
    with psycopg.connect(**known, autocommit=True) as session:
        yield session


def taken_by(session: psycopg.Connection, name: str) -> bool:
    row = session.execute(
        "SELECT pg_try_advisory_lock(%s, %s)", [ticks.LOCK_SPACE, ticks.crc32(name.encode()) & 0x7FFFFFFF]
    ).fetchone()
    assert row is not None
    return bool(row[0])


def test_a_second_holder_is_turned_away(other_process: psycopg.Connection) -> None:
    with ticks.alone("expire") as is_alone:
        assert is_alone
        assert not taken_by(other_process, "expire")
        assert taken_by(other_process, "reap_calls"), "another job's name is another lock"


def test_the_place_is_free_again_afterwards_also_after_a_failure(other_process: psycopg.Connection) -> None:
    with pytest.raises(ZeroDivisionError), ticks.alone("expire"):
        raise ZeroDivisionError
    assert taken_by(other_process, "expire")


def test_one_who_is_turned_away_leaves_the_holder_its_place(other_process: psycopg.Connection) -> None:
    assert taken_by(other_process, "expire")
    with ticks.alone("expire") as is_alone:
        assert not is_alone
    with ticks.alone("expire") as is_alone:
        assert not is_alone


def test_a_holder_s_death_frees_its_place(other_process: psycopg.Connection) -> None:
    assert taken_by(other_process, "expire")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [other_process.info.backend_pid])
    with ticks.alone("expire") as is_alone:
        assert is_alone


# --- The beat table --------------------------------------------------------------------------------------------


def test_the_beat_table_names_real_jobs_with_sound_periods() -> None:
    app.loader.import_default_modules()
    entries = app.conf.beat_schedule
    assert {entry["task"] for entry in entries.values()} == set(dispatch.ALL) - {dispatch.PRECOMPUTE}
    for name, entry in entries.items():
        assert entry["task"] in app.tasks, name
        assert 1 <= entry["schedule"] <= 3600, name
        assert entry["options"]["expires"] >= entry["schedule"], name


def test_what_waits_on_time_is_looked_at_within_seconds() -> None:
    app.loader.import_default_modules()
    every = {entry["task"]: entry["schedule"] for entry in app.conf.beat_schedule.values()}
    assert every[dispatch.EXPIRE] <= 5
    assert every[dispatch.SWEEP_PRECOMPUTE] <= 5
    assert every[dispatch.REAP_CALLS] <= 10


# --- Twice is once ---------------------------------------------------------------------------------------------


@pytest.fixture
def caller() -> Caller:
    new = organizations.create(name="Test", tier_slug="tier5", operator="test")
    charging.recharge(
        organization_id=new.organization.id,
        amount=Decimal(1000),
        purse="cash",
        reason="test",
        operator="test",
        idempotency_key=f"test:{new.organization.id}",
        at=clock.now(),
    )
    return api_keys.authenticate(new.issued_key.secret)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    made = Engine.objects.create(
        name="test",
        kind="llamacpp",
        url="http://127.0.0.1:9",
        kv_dir=str(tmp_path),
        model="nano",
        build="test",
        fingerprint="f" * 64,
        total_slots=1,
        window_tokens=8192,
        persist=True,
    )
    ModelFamily.objects.filter(name=FAMILY).update(engine=made)
    return made


@pytest.fixture
def new_object(caller: Caller) -> Callable[[], CacheObject]:
    """A pending object with its hold, as the API leaves one; its nudge is not sent."""

    def make() -> CacheObject:
        account = accounts.lock(caller.organization_id)
        at, cache_id = clock.now(), new_cache_id()
        hold = lifecycle.hold_creation(account, cache_id=cache_id, model=FAMILY, tokens=TOKENS, at=at)
        return CacheObject.objects.create(
            id=cache_id,
            organization_id=caller.organization_id,
            project_id=caller.project_id,
            api_key_id=caller.api_key_id,
            model=FAMILY,
            messages=[{"role": "system", "content": "x"}],
            message_count=1,
            digest="0" * 64,
            tokens=TOKENS,
            created_at=at,
            expired_at=at + timedelta(hours=1),
            hold_reference=hold,
        )

    return make


@pytest.fixture
def new_active_object(new_object: Callable[[], CacheObject], engine: Engine) -> Callable[[], CacheObject]:
    """An active one, with a file of its own in the engine's folder."""

    def make() -> CacheObject:
        row = new_object()
        claim = lifecycle.claim_next(owner="test")
        assert claim is not None and claim.cache_id == row.id
        filename = f"{row.id}.1.test.kv"
        (Path(engine.kv_dir) / filename).write_bytes(b"bytes")
        saved = SavedKV(
            engine_id=engine.id,
            filename=filename,
            n_tokens=TOKENS,
            size_bytes=5,
            sha256="0" * 64,
            blake3="0" * 64,
            fingerprint=engine.fingerprint,
        )
        assert lifecycle.activate(claim, saved)
        return CacheObject.objects.get(id=row.id)

    return make


@pytest.fixture(autouse=True)
def _books() -> Iterator[None]:
    yield
    assert audit.violations(clock.now()) == []


def kinds(row: CacheObject) -> list[str]:
    return list(
        CacheObjectEvent.objects.filter(cache_id=row.id).order_by("at").values_list("kind", flat=True)
    )


def over(row: CacheObject) -> None:
    """As if its time had passed: its end, and its segment's, lie a little back."""
    CacheObject.objects.filter(id=row.id).update(expired_at=clock.now() - timedelta(milliseconds=1))


def test_expiry_run_twice_ends_an_object_once_and_its_bytes_go(
    new_active_object: Callable[[], CacheObject], engine: Engine
) -> None:
    row = new_active_object()
    over(row)
    for _ in range(2):
        expiry.expire()
    row.refresh_from_db()
    assert (row.status, row.kv_state_id) == (EXPIRED, None)
    assert kinds(row).count(EXPIRED) == 1
    assert MeterEvent.objects.filter(subject=row.id, meter="storage").count() == 1
    for _ in range(2):
        expiry.destroy_kv()
    assert not KVState.objects.exists()
    assert list(Path(engine.kv_dir).iterdir()) == []


def test_expiry_leaves_what_lives(new_active_object: Callable[[], CacheObject], engine: Engine) -> None:
    row = new_active_object()
    expiry.expire()
    expiry.destroy_kv()
    row.refresh_from_db()
    assert row.status == ACTIVE
    assert len(list(Path(engine.kv_dir).iterdir())) == 1


def test_an_object_that_was_tried_in_vain_ends_once_and_is_not_charged(
    new_object: Callable[[], CacheObject],
) -> None:
    row = new_object()
    CacheObject.objects.filter(id=row.id).update(attempts=3, lease_until=clock.now() - timedelta(seconds=1))
    CacheObject.objects.exclude(id=row.id).delete()
    for _ in range(2):
        lifecycle.fail_exhausted_attempts()
    row.refresh_from_db()
    assert (row.status, row.hold_reference) == (ERROR, None)
    assert "3 times" in row.error_message
    assert kinds(row).count(ERROR) == 1
    assert not MeterEvent.objects.filter(subject=row.id).exists()
    assert not Hold.objects.filter(subject=row.id, state="open").exists()


def test_a_dead_worker_s_last_attempt_is_left_while_its_lease_runs(
    new_object: Callable[[], CacheObject],
) -> None:
    row = new_object()
    CacheObject.objects.filter(id=row.id).update(attempts=3, lease_until=clock.now() + timedelta(seconds=30))
    lifecycle.fail_exhausted_attempts()
    row.refresh_from_db()
    assert row.status == "pending"


def test_a_dead_gateway_s_call_is_ended_once(caller: Caller) -> None:
    call_id, gateway_id = uuid.uuid4(), uuid.uuid4()
    wanted = admission.Wanted(
        call_id=call_id,
        model=MODEL,
        family=FAMILY,
        prompt_tokens=100,
        max_tokens=100,
        prefix=None,
        request_id="",
    )
    admission.admit(caller, wanted, gateway_id=gateway_id, engine_id=0)
    rate_limits.heartbeat(gateway_id=gateway_id, host="test", pid=1)
    sweeping.reap_calls()
    assert CallInFlight.objects.filter(id=call_id).exists(), "its gateway lives"
    with connection.cursor() as cursor:
        cursor.execute("UPDATE access_gateway SET heartbeat_at = heartbeat_at - interval '31 seconds'")
    for _ in range(2):
        sweeping.reap_calls()
    assert not CallInFlight.objects.exists()
    assert RateState.objects.get(organization_id=caller.organization_id).in_flight == 0
    assert Hold.objects.get(reference=call_id).state == "voided"
    assert not MeterEvent.objects.exists()
    late = admission.Outcome(usage=None, is_hit=False, started_at=clock.now())
    admission.settle(caller, wanted, late, None)
    assert RateState.objects.get(organization_id=caller.organization_id).in_flight == 0


def test_files_that_no_row_names_go_when_they_are_old(
    new_active_object: Callable[[], CacheObject], engine: Engine
) -> None:
    row = new_active_object()
    folder = Path(engine.kv_dir)
    named = KVState.objects.get(id=row.kv_state_id).filename
    old, young, foreign = folder / "cache-1.2.old.kv", folder / "cache-1.3.young.kv.tmp", folder / "notes.txt"
    for path in (old, young, foreign):
        path.write_bytes(b"x")
    long_ago = clock.now().timestamp() - 4 * 3600
    for path in (old, foreign, folder / named):
        os.utime(path, (long_ago, long_ago))
    for _ in range(2):
        sweeping.destroy_orphans()
    assert {path.name for path in folder.iterdir()} == {young.name, foreign.name, named}


def test_storage_settled_twice_is_billed_once(new_active_object: Callable[[], CacheObject]) -> None:
    row = new_active_object()
    for _ in range(2):
        metering_jobs.settle_storage()
    lines = MeterEvent.objects.filter(subject=row.id, meter="storage")
    assert sum(event.end_minute - event.first_minute for event in lines) == 1


def test_a_sweep_with_nothing_pending_asks_no_engine() -> None:
    """No engine is registered here: asking for one would raise."""
    precompute_jobs.sweep()
    precompute_jobs.drain()


def test_settling_lets_a_voucher_lapse_also_where_nothing_is_stored(caller: Caller) -> None:
    at = clock.now()
    charging.recharge(
        organization_id=caller.organization_id,
        amount=Decimal(7),
        purse="voucher",
        reason="test",
        operator="test",
        idempotency_key=f"voucher:{caller.organization_id}",
        at=at,
        expires_at=at + timedelta(milliseconds=1),
    )
    for _ in range(2):
        metering_jobs.settle_storage()
    lapses = LedgerEntry.objects.filter(organization_id=caller.organization_id, kind="lapse")
    assert [entry.amount for entry in lapses] == [Decimal(7)]


# --- The lane of precompute ------------------------------------------------------------------------------------


@pytest.fixture
def lane(engine: Engine) -> SlotLease:
    EngineSlot.objects.create(engine=engine, index=0)
    lease = slots.lease_for_prefill(engine_id=engine.id, owner="first", seconds=30)
    assert lease is not None
    return lease


def test_an_engine_that_is_away_uses_up_nobody_s_attempts(
    new_object: Callable[[], CacheObject], engine: Engine
) -> None:
    """Nothing listens where this engine is said to be."""
    EngineSlot.objects.create(engine=engine, index=0)
    row = new_object()
    for _ in range(4):
        precompute_jobs.sweep()
    row.refresh_from_db()
    assert (row.status, row.attempts, kinds(row)) == ("pending", 0, [])
    assert slots.lease_for_prefill(engine_id=engine.id, owner="next", seconds=30) is not None, (
        "the lane is free"
    )


def test_a_lane_that_was_seized_is_lost_to_who_had_it(engine: Engine, lane: SlotLease) -> None:
    assert slots.renew(lane, seconds=30)
    slots.seize(engine_id=engine.id, owner="register", seconds=30)
    assert not slots.renew(lane, seconds=30)
    slots.release(lane, resident=uuid.uuid4(), resident_organization="org")
    slot = EngineSlot.objects.get(engine=engine)
    assert (slot.lease_owner, slot.resident, slot.resident_organization) == (
        "register",
        None,
        slots.UNKNOWN_ORGANIZATION,
    )
    assert slots.lease_for_call(engine_id=engine.id, owner="call", seconds=30, wanted=None) is None


def test_a_registration_that_fails_gives_the_slots_back(
    engine: Engine, lane: SlotLease, settings: Any, tmp_path: Path
) -> None:
    Engine.objects.filter(id=engine.id).update(name=registry.DEFAULT_ENGINE)
    settings.ENGINE_URL, settings.ENGINE_KV_DIR = engine.url, tmp_path
    with pytest.raises(EngineError):
        registry.register()
    assert slots.lease_for_call(engine_id=engine.id, owner="call", seconds=30, wanted=None) is not None


def test_bytes_saved_after_the_lane_was_lost_are_never_kept(engine: Engine, lane: SlotLease) -> None:
    assert precompute.require_lane(lane) is None
    EngineSlot.objects.filter(id=lane.slot_id).update(lease_until=clock.now() - timedelta(seconds=1))
    assert slots.lease_for_prefill(engine_id=engine.id, owner="second", seconds=30) is not None
    with pytest.raises(EngineError):
        precompute.require_lane(lane)


def test_an_engine_is_given_the_objects_of_its_families_alone(
    engine: Engine, new_object: Callable[[], CacheObject]
) -> None:
    row = new_object()
    assert registry.families_of(engine) == [FAMILY]
    assert lifecycle.claim_next(owner="w", families=["aurora"]) is None
    claim = lifecycle.claim_next(owner="w", families=registry.families_of(engine))
    assert claim is not None and claim.cache_id == row.id


def test_a_month_that_is_over_is_invoiced_once() -> None:
    payer = make_payer(recharged="20")
    payer.call(prompt=1_000_000, hold="12")
    for _ in range(2):
        metering_jobs.make_invoices()
    [invoice] = Invoice.objects.filter(organization_id=payer.organization_id)
    assert (f"{invoice.month:%Y-%m}", invoice.amount) == ("2024-07", 12)
