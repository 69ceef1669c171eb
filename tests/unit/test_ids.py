"""Public ids."""

from __future__ import annotations

import re
import uuid
from concurrent.futures import ThreadPoolExecutor

from cacheplane import ids


def test_an_id_is_the_prefix_and_twenty_characters():
    assert re.fullmatch(r"cache-[a-z0-9]{20}", ids.new_id("cache"))


def test_ids_of_one_process_rise_even_within_one_millisecond():
    made = [ids.new_id("x") for _ in range(20_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_threads_never_make_the_same_id():
    with ThreadPoolExecutor(8) as threads:
        made = [
            one
            for batch in threads.map(lambda _: [ids.new_id("x") for _ in range(2_000)], range(8))
            for one in batch
        ]
    assert len(set(made)) == 16_000


def test_a_clock_set_back_does_not_turn_the_order_round(monkeypatch):
    later = ids.new_id("x")
    monkeypatch.setattr(ids.time, "time_ns", lambda: 1_700_000_000_000_000_000)
    assert ids.new_id("x") > later


def test_the_time_part_is_the_milliseconds_in_base_36(monkeypatch):
    monkeypatch.setattr(ids, "_last_ms", 0)
    monkeypatch.setattr(ids.time, "time_ns", lambda: 1_719_763_200_123_999_999)
    assert int(ids.new_id("x").removeprefix("x-")[:10], 36) == 1_719_763_200_123


def test_a_full_millisecond_spills_into_the_next(monkeypatch):
    monkeypatch.setattr(ids, "_last_ms", 2_000_000_000_000)
    monkeypatch.setattr(ids, "_last_random", ids.RANDOM_SPAN - 1)
    assert int(ids.new_id("x").removeprefix("x-")[:10], 36) == 2_000_000_000_001


def test_ordered_uuids_are_of_version_seven_and_rise():
    made = [ids.new_ordered_uuid() for _ in range(1000)]
    assert made == sorted(made) and len(set(made)) == 1000
    assert {(one.version, one.variant) for one in made} == {(7, uuid.RFC_4122)}
