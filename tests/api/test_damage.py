"""KV states that went bad: the call succeeds at the normal price, the object heals, and its owner pays once."""

from __future__ import annotations

import json
import urllib.request

from tests.api import books
from tests.api.test_cached_call import cache_headers
from tests.conftest import wait_for


def kv_path(instance, cache_id):
    from cacheplane.caching.models import CacheObject

    return instance.kv_dir / CacheObject.objects.select_related("kv_state").get(id=cache_id).kv_state.filename


def flip_a_byte(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def cut_short(path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def delete(path) -> None:
    path.unlink()


def heals(caller, active) -> None:
    """A call on a damaged object is an ordinary one, and the object is itself again without a second fee."""
    from cacheplane.caching.models import CacheObjectEvent

    before = sum(books.spent(caller).values())
    answer = caller.ask(active["id"])
    assert answer.status == 200, answer.body
    assert cache_headers(answer) == {}
    usage = answer.json["usage"]
    assert usage["cached_tokens"] == 0
    told = [event.kind for event in CacheObjectEvent.objects.filter(cache_id=active["id"])]
    assert "kv_lost" in told
    healed = caller.wait_until(active["id"], "active")
    assert healed == active
    charged = books.spent(caller)
    assert sum(charged.values()) - before - charged.get("storage", 0) == books.call_price(usage, is_hit=False)
    again = caller.ask(active["id"])
    assert again.json["usage"]["cached_tokens"] == active["tokens"]
    assert books.counted(caller, "creation") == [active["tokens"]]


def test_a_flipped_byte(instance, caller, prose):
    active = caller.active(prose(300))
    flip_a_byte(kv_path(instance, active["id"]))
    heals(caller, active)


def test_a_file_that_was_cut_short(instance, caller, prose):
    active = caller.active(prose(300))
    cut_short(kv_path(instance, active["id"]))
    heals(caller, active)


def test_a_file_that_is_gone(instance, caller, prose):
    active = caller.active(prose(300))
    delete(kv_path(instance, active["id"]))
    heals(caller, active)


def test_another_objects_file_in_its_place(instance, caller, prose):
    active, other = caller.active(prose(300)), caller.active(prose(300))
    kv_path(instance, active["id"]).write_bytes(kv_path(instance, other["id"]).read_bytes())
    before = caller.ask(other["id"]).json
    assert before["usage"]["cached_tokens"] == other["tokens"]
    answer = caller.ask(active["id"])
    assert answer.status == 200
    assert cache_headers(answer) == {}
    caller.wait_until(active["id"], "active")
    assert caller.ask(active["id"]).json["usage"]["cached_tokens"] == active["tokens"]


def test_storage_stops_at_the_last_proof_and_starts_anew(instance, caller, prose):
    from billing.models import StorageSegment

    active = caller.active(prose(300))
    delete(kv_path(instance, active["id"]))
    assert caller.ask(active["id"]).status == 200
    caller.wait_until(active["id"], "active")
    first, second = StorageSegment.objects.filter(subject=active["id"]).order_by("id")
    assert first.closed_at is not None
    assert second.closed_at is None
    assert first.closed_at <= second.started_at


def test_many_calls_on_a_damaged_object_all_succeed_and_it_heals_once(instance, caller, prose):
    from concurrent.futures import ThreadPoolExecutor

    active = caller.active(prose(300))
    flip_a_byte(kv_path(instance, active["id"]))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: caller.ask(active["id"]), range(4)))
    assert [answer.status for answer in answers] == [200] * 4
    caller.wait_until(active["id"], "active")
    assert books.counted(caller, "creation") == [active["tokens"]]


# --- A slot that has forgotten ---------------------------------------------------------------------------------


def resident_slot(cache_id) -> int:
    from cacheplane.caching.models import CacheObject
    from cacheplane.engines.models import EngineSlot

    kv_id = CacheObject.objects.get(id=cache_id).kv_state_id
    return EngineSlot.objects.get(resident=kv_id).index


def tell_engine(instance, path: str, body: dict) -> None:
    """Something that the control plane does not know of, as a restart is."""
    values = instance.settings
    headers = {"Authorization": f"Bearer {values['ENGINE_API_KEY']}", "Content-Type": "application/json"}
    request = urllib.request.Request(values["ENGINE_URL"] + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200


def test_a_slot_that_has_forgotten_all_makes_an_ordinary_call(instance, caller, prose):
    active = caller.active(prose(300))
    assert caller.ask(active["id"]).json["usage"]["cached_tokens"] == active["tokens"]
    tell_engine(instance, f"/slots/{resident_slot(active['id'])}?action=erase", {})
    assert_ordinary_then_a_hit(caller, active)


def test_a_slot_that_holds_a_part_makes_an_ordinary_call(instance, caller, prose):
    active = caller.active(prose(300))
    assert caller.ask(active["id"]).json["usage"]["cached_tokens"] == active["tokens"]
    (message,) = active["messages"]
    half = {
        "messages": [{**message, "content": message["content"][:600]}],
        "max_tokens": 1,
        "cache_prompt": False,
    }
    tell_engine(instance, "/v1/chat/completions", half | {"id_slot": resident_slot(active["id"])})
    assert_ordinary_then_a_hit(caller, active)


def assert_ordinary_then_a_hit(caller, active) -> None:
    before = sum(books.spent(caller).values())
    answer = caller.ask(active["id"])
    assert answer.status == 200
    assert cache_headers(answer) == {}
    assert answer.json["usage"]["cached_tokens"] == 0
    assert sum(books.spent(caller).values()) - before == books.call_price(answer.json["usage"], is_hit=False)
    hit = wait_for(lambda: caller.ask(active["id"]), seconds=5, what="an answer")
    assert hit.json["usage"]["cached_tokens"] == active["tokens"]
    assert caller.get(active["id"]).json == active
