"""The bridge by which synchronous callers (workers, admin, commands) use an adapter."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest

from cacheplane.chat import ChatRequest
from cacheplane.engines import http
from cacheplane.errors import EngineTimeout

from .conftest import Server

MESSAGES = [{"role": "user", "content": "Is the lamp lit?"}]


def test_a_synchronous_caller_gets_the_answer(bundled: Server) -> None:
    assert http.call(bundled.adapter().count_tokens(MESSAGES, None), timeout_seconds=10) > 3


def test_many_threads_share_one_pool(bundled: Server) -> None:
    engine = bundled.adapter()
    counts: list[int] = []

    def count() -> None:
        for _ in range(20):
            counts.append(http.call(engine.count_tokens(MESSAGES, None), timeout_seconds=10))

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == 160
    assert len(set(counts)) == 1


def test_time_that_runs_out_stops_the_engine(bundled: Server) -> None:
    engine = bundled.adapter()

    async def long_answer() -> None:
        request = ChatRequest(model="m", messages=MESSAGES, max_tokens=12_000)
        async for _ in engine.chat(request, slot=3, reuse_tokens=False):
            pass

    with pytest.raises(EngineTimeout):
        http.call(long_answer(), timeout_seconds=0.5)
    deadline = time.monotonic() + 2.0
    while bundled.is_busy() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not bundled.is_busy()


def test_an_error_of_the_coroutine_is_the_callers() -> None:
    async def fails() -> None:
        raise LookupError("no such light")

    with pytest.raises(LookupError, match="no such light"):
        http.call(fails(), timeout_seconds=5)


def test_a_forked_child_can_call_and_the_parent_still_can(bundled: Server) -> None:
    engine = bundled.adapter()
    before = http.call(engine.count_tokens(MESSAGES, None), timeout_seconds=10)
    child = os.fork()
    if child == 0:
        same = http.call(engine.count_tokens(MESSAGES, None), timeout_seconds=10) == before
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert http.call(engine.count_tokens(MESSAGES, None), timeout_seconds=10) == before


def test_each_event_loop_has_its_own_pool_and_may_close_it(bundled: Server) -> None:
    async def twice() -> bool:
        one = http.session()
        assert http.session() is one
        await http.aclose()
        assert one.closed
        healthy = await bundled.adapter().is_healthy()
        await http.aclose()
        return healthy

    assert asyncio.run(twice())
    assert asyncio.run(twice())
