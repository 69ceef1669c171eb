"""`DELETE /v1/caching/{id}`: the object, its bytes and what slots know of it go; what was paid stays on the books."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.api import books
from tests.conftest import wait_for


def delete(caller, cache_id):
    return caller.request("DELETE", f"/v1/caching/{cache_id}")


def kv_files(instance, cache_id) -> list[str]:
    return [path.name for path in instance.kv_dir.iterdir() if cache_id in path.name]


def slots_that_hold_it(cache_id) -> list[int]:
    from cacheplane.caching.models import CacheObject
    from cacheplane.engines.models import EngineSlot

    kv_id = CacheObject.objects.get(id=cache_id).kv_state_id
    return list(EngineSlot.objects.filter(resident=kv_id).values_list("index", flat=True))


def test_it_is_gone(caller):
    active = caller.active()
    deleted = delete(caller, active["id"])
    assert deleted.status == 200
    assert deleted.json == {"deleted": True, "id": active["id"], "object": "context_cache_object.deleted"}
    assert caller.get(active["id"]).status == 404
    assert caller.ask(active["id"]).status == 404
    assert caller.request("PUT", f"/v1/caching/{active['id']}", {"ttl": 60}).status == 404
    assert active["id"] not in caller.request("GET", "/v1/caching").body.decode()


def test_its_bytes_are_destroyed_within_seconds(instance, caller):
    active = caller.active()
    assert len(kv_files(instance, active["id"])) == 1
    assert delete(caller, active["id"]).status == 200
    wait_for(lambda: not kv_files(instance, active["id"]), seconds=15, what="the bytes are gone")


def test_the_slot_that_held_it_forgets_it(instance, caller, prose):
    active = caller.active(prose(700))
    assert caller.ask(active["id"]).headers["msh-context-cache-id"] == active["id"]
    (slot,) = slots_that_hold_it(active["id"])
    assert instance.engine_slots()[slot]["n_prompt_tokens"] >= active["tokens"]
    assert delete(caller, active["id"]).status == 200
    wait_for(
        lambda: instance.engine_slots()[slot]["n_prompt_tokens"] < active["tokens"],
        seconds=15,
        what="the engine's slot is empty",
    )


def test_what_was_paid_stays_on_the_books(caller):
    active = caller.active()
    paid = books.spent(caller)["creation"]
    assert delete(caller, active["id"]).status == 200
    assert books.spent(caller) == {"creation": paid, "storage": active["tokens"] * books.STORAGE}


def test_twice_is_once(caller):
    made = caller.create().json
    assert delete(caller, made["id"]).status == 200
    again = delete(caller, made["id"])
    assert (again.status, again.error["type"]) == (404, "resource_not_found_error")


def test_of_many_at_once_one_deletes(caller):
    active = caller.active()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: delete(caller, active["id"]), range(6)))
    assert sorted(answer.status for answer in answers) == [200] + [404] * 5
    assert books.spent(caller)["storage"] == active["tokens"] * books.STORAGE


def test_a_pending_object_costs_nothing(instance, caller, no_precompute):
    with no_precompute():
        made = caller.create().json
        assert books.purse(caller)[1] > 0
        assert delete(caller, made["id"]).status == 200
        assert books.purse(caller) == (1000, 0)
    caller.active("The lane goes on.")
    assert kv_files(instance, made["id"]) == []
    assert len(books.counted(caller, "creation")) == 1


def test_an_expired_object_can_be_deleted(caller):
    expired = caller.expired()
    assert delete(caller, expired["id"]).status == 200
    assert caller.get(expired["id"]).status == 404
    assert books.spent(caller)["storage"] == expired["tokens"] * books.STORAGE


def test_calls_that_use_it_meanwhile_end_well(caller, prose):
    active = caller.active(prose(700))
    with ThreadPoolExecutor(7) as pool:
        calls = [pool.submit(caller.ask, active["id"], max_tokens=16) for _ in range(6)]
        deleted = pool.submit(delete, caller, active["id"])
    assert deleted.result().status == 200
    assert {call.result().status for call in calls} <= {200, 404}
    assert caller.get(active["id"]).status == 404
