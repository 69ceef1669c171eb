"""An engine that has more calls than slots, all the time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.conftest import Client

CALLERS = 8
"""Twice the slots of an engine."""


def test_a_creation_among_many_calls_of_others_gets_its_turn(new_caller: Callable[..., Client]) -> None:
    crowd, other = new_caller(), new_caller()
    over = threading.Event()

    def call_again_and_again() -> list[int]:
        statuses = []
        while not over.is_set():
            statuses.append(crowd.chat({"role": "user", "content": "Hello."}, max_tokens=100).status)
        return statuses

    with ThreadPoolExecutor(CALLERS) as callers:
        calling = [callers.submit(call_again_and_again) for _ in range(CALLERS)]
        try:
            for number in range(3):
                made = other.create(f"This is number {number}. " * 50)
                assert made.status == 200
                other.wait_until(made.json["id"], "active", seconds=20)
        finally:
            over.set()
        answered = [one.result() for one in calling]
    assert {status for statuses in answered for status in statuses} == {200}
    assert sum(map(len, answered)) > CALLERS, "calls went on meanwhile"
