"""One lease takes one slot, whatever plan the database chooses."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection, connections

from cacheplane.engines import slots
from cacheplane.engines.models import Engine, EngineSlot


def engine_of(total_slots: int) -> Engine:
    engine = Engine.objects.create(
        name=uuid.uuid4().hex,
        kind="llamacpp",
        url="http://127.0.0.1:1",
        kv_dir="/nowhere",
        model="m",
        build="b",
        fingerprint="f" * 64,
        total_slots=total_slots,
        window_tokens=8192,
        persist=True,
    )
    EngineSlot.objects.bulk_create(EngineSlot(engine=engine, index=index) for index in range(total_slots))
    return engine


def lease(engine: Engine, *, owner: str = "one", wanted: uuid.UUID | None = None):
    return slots.lease_for_call(engine_id=engine.id, owner=owner, seconds=60, wanted=wanted)


@pytest.mark.django_db
@pytest.mark.parametrize("total_slots", [1, 2, 4, 8, 50])
def test_a_lease_takes_one_slot_also_when_the_planner_knows_the_table(total_slots):
    engine = engine_of(total_slots)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE engines_engineslot")
        cursor.execute("ANALYZE engines_engine")
    assert lease(engine) is not None
    assert engine.slots.filter(lease_until__isnull=False).count() == 1


@pytest.mark.django_db
def test_the_slot_that_holds_the_prefix_is_taken_first():
    engine, wanted = engine_of(4), uuid.uuid4()
    engine.slots.filter(index=2).update(resident=wanted, resident_organization="org-a")
    taken = lease(engine, wanted=wanted)
    assert (taken.index, taken.resident, taken.resident_organization) == (2, wanted, "org-a")


@pytest.mark.django_db
def test_the_lane_of_precompute_is_taken_by_a_call_only_when_nothing_else_is_free():
    engine = engine_of(3)
    assert [lease(engine, owner=str(n)).index for n in range(3)] == [0, 1, 2]
    assert lease(engine, owner="late") is None
    assert slots.lease_for_prefill(engine_id=engine.id, owner="late", seconds=60) is None


def want(engine: Engine, owner: str) -> bool:
    return slots.want_lane(engine_id=engine.id, owner=owner, seconds=60)


@pytest.mark.django_db
def test_a_lane_that_is_wanted_is_left_to_who_wants_it():
    engine = engine_of(2)
    calls = [lease(engine, owner=str(uuid.uuid4())) for _ in range(2)]
    assert want(engine, "host:1:a") and want(engine, "host:1:a")
    assert not want(engine, "host:1:b"), "one waits, and nobody waits for it"
    for call in calls:
        slots.release(call, resident=None, resident_organization="org-a")
    assert lease(engine, owner=str(uuid.uuid4())).index == 0
    assert lease(engine, owner=str(uuid.uuid4())) is None
    lane = slots.lease_for_prefill(engine_id=engine.id, owner="host:1:a", seconds=60)
    assert lane.index == 1
    assert not want(engine, "host:1:b"), "a prefill is in it"
    slots.release(lane, resident=None, resident_organization="org-a")
    assert lease(engine, owner=str(uuid.uuid4())).index == 1, "it was wanted once"


@pytest.mark.django_db
def test_a_draining_engine_gives_no_slot():
    engine = engine_of(2)
    Engine.objects.filter(id=engine.id).update(is_draining=True)
    assert lease(engine) is None


@pytest.mark.django_db
def test_a_lost_lease_changes_nothing():
    engine = engine_of(1)
    lost = lease(engine, owner="first")
    engine.slots.update(lease_until=None)
    kept = lease(engine, owner="second")
    assert not slots.renew(lost, seconds=60)
    slots.release(lost, resident=None, resident_organization="org-a")
    assert engine.slots.get().lease_owner == "second"
    slots.release(kept, resident=None, resident_organization="org-b")
    assert engine.slots.get().resident_organization == "org-b"


def test_of_many_at_once_each_slot_goes_to_one(committed_engine):
    engine = committed_engine

    def take(number: int):
        try:
            return lease(engine, owner=str(number))
        finally:
            connections.close_all()

    with ThreadPoolExecutor(12) as threads:
        taken = [found for found in threads.map(take, range(24)) if found is not None]
    assert sorted(found.index for found in taken) == [0, 1, 2, 3]


@pytest.fixture
def committed_engine(django_db_blocker, django_db_setup):
    """Rows that other connections see; taken away by themselves, so that the seeds of other tests stay."""
    with django_db_blocker.unblock():
        engine = engine_of(4)
        yield engine
        engine.slots.all().delete()
        engine.delete()
