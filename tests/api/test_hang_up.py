"""A caller who leaves: the engine stops, what was produced is paid, all that was taken is given back."""

from __future__ import annotations

import time

from tests.api import books
from tests.api.streams import Call
from tests.conftest import wait_for

LONG = 6000
QUESTION = {"role": "user", "content": "Tell me everything."}


def is_working(instance) -> bool:
    return any(slot["is_processing"] for slot in instance.engine_slots())


def free_slots() -> int:
    from cacheplane.engines.models import EngineSlot

    return EngineSlot.objects.filter(lease_owner="").count()


def all_is_given_back(instance, caller) -> bool:
    return books.is_idle(caller) and not is_working(instance) and free_slots() == len(instance.engine_slots())


def hang_up_after(caller, pieces: int, *messages, **fields) -> int:
    """Read so many pieces of text from a stream and close the connection; how many came."""
    came = 0
    with Call(caller, *messages, stream=True, max_tokens=LONG, **fields) as call:
        assert call.answer.status == 200, call.answer.read()
        for event in call.events():
            assert event != "[DONE]", "the answer ended before its caller could leave"
            came += bool(event["choices"][0]["delta"].get("content"))
            if came == pieces:
                return came
    raise AssertionError("the answer ended before its caller could leave")


def test_in_mid_stream_the_engine_stops_and_what_was_produced_is_paid(instance, caller):
    came = hang_up_after(caller, 5, QUESTION)
    wait_for(lambda: all_is_given_back(instance, caller), seconds=15, what="all is given back")
    (produced,) = books.counted(caller, "completion")
    assert came <= produced < LONG
    (prompt,) = books.counted(caller, "prompt")
    assert books.spent(caller) == {
        "prompt": prompt * books.TOKENS["moonshot-v1-8k"],
        "completion": produced * books.TOKENS["moonshot-v1-8k"],
    }
    assert books.purse(caller) == (1000 - sum(books.spent(caller).values()), 0)


def test_in_mid_stream_of_a_hit_the_fee_is_paid_and_the_slot_still_holds_the_object(instance, caller, prose):
    active = caller.active(prose(300))
    hang_up_after(caller, 3, {"role": "cache", "content": f"cache_id={active['id']}"}, QUESTION)
    wait_for(lambda: all_is_given_back(instance, caller), seconds=15, what="all is given back")
    assert books.spent(caller)["call"] == books.CALL
    assert 3 <= books.counted(caller, "completion")[0] < LONG
    again = caller.ask(active["id"])
    assert again.json["usage"]["cached_tokens"] == active["tokens"]


def test_a_caller_who_left_did_not_succeed_so_no_end_is_moved(instance, caller):
    active = caller.active(ttl=100)
    cache = {"role": "cache", "content": f"cache_id={active['id']};reset_ttl=500"}
    hang_up_after(caller, 2, cache, QUESTION)
    wait_for(lambda: all_is_given_back(instance, caller), seconds=15, what="all is given back")
    assert caller.get(active["id"]).json == active


def test_without_a_stream_it_is_the_same(instance, caller):
    with Call(caller, QUESTION, max_tokens=LONG) as call:
        wait_for(
            lambda: any(
                slot["is_processing"] and slot["next_token"][0]["n_decoded"] > 0
                for slot in instance.engine_slots()
            ),
            seconds=30,
            what="the engine answers",
            every=0.01,
        )
        assert call is not None
    wait_for(lambda: all_is_given_back(instance, caller), seconds=15, what="all is given back")
    (produced,) = books.counted(caller, "completion")
    assert 0 < produced < LONG


def test_during_a_cold_prefill_nothing_is_paid(instance, caller, prose):
    with Call(caller, {"role": "user", "content": prose(25_000)}, model="moonshot-v1-128k", stream=True):
        wait_for(lambda: is_working(instance), seconds=30, what="the engine works", every=0.01)
    started = time.monotonic()
    wait_for(lambda: all_is_given_back(instance, caller), seconds=20, what="all is given back")
    assert time.monotonic() - started < 20
    assert books.spent(caller) == {}
    assert books.purse(caller) == (1000, 0)


def test_before_anything_was_answered_nothing_is_paid_however_often(instance, caller, prose):
    text = prose(3000)
    for pause in (0, 0, 0.005, 0.01, 0.02, 0.05):
        with Call(caller, {"role": "user", "content": text}, stream=True, max_tokens=1):
            time.sleep(pause)
    wait_for(lambda: all_is_given_back(instance, caller), seconds=30, what="all is given back")
    posted, held = books.purse(caller)
    assert held == 0
    assert posted == 1000 - sum(books.spent(caller).values())


def test_the_next_caller_is_served(instance, caller, outsider):
    for _ in range(6):
        hang_up_after(caller, 1, QUESTION)
    assert outsider.chat(QUESTION).status == 200
    wait_for(lambda: all_is_given_back(instance, caller), seconds=15, what="all is given back")
    assert len(books.counted(caller, "completion")) == 6
