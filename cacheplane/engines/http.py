"""How adapters reach an engine: one connection pool per event loop, and a bridge for synchronous callers."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import aiohttp

from cacheplane.errors import EngineTimeout

T = TypeVar("T")

CONNECT_SECONDS = 2.0
CONTROL_SECONDS = 30.0
"""For a question or a slot action: an idle engine answers in milliseconds, a busy one between two batches."""
SILENCE_SECONDS = 300.0
"""The longest pause in the course of a prefill. A call as a whole is bounded by who makes it: a timer that is set
anew for each token costs more than the token."""
HEALTH_SECONDS = 2.0

CONNECTIONS_PER_ENGINE = 128
PORTION_SECONDS_MIN, PORTION_SECONDS_MAX = 0.002, 0.05
KEEPALIVE_SECONDS = 3.0
"""Below the server's own 5 s: a connection must not be taken up as the server drops it."""
_CLOSE_SECONDS = 1.0

CONTROL = aiohttp.ClientTimeout(total=CONTROL_SECONDS, sock_connect=CONNECT_SECONDS)
CALL = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
PREFILL = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
HEALTH = aiohttp.ClientTimeout(total=HEALTH_SECONDS)

_sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = WeakKeyDictionary()


def session() -> aiohttp.ClientSession:
    """The running event loop's pool. It carries no cookies and no proxy: engines are neighbours."""
    loop = asyncio.get_running_loop()
    open_session = _sessions.get(loop)
    if open_session is None or open_session.closed:
        connector = aiohttp.TCPConnector(
            limit=0, limit_per_host=CONNECTIONS_PER_ENGINE, keepalive_timeout=KEEPALIVE_SECONDS
        )
        open_session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        _sessions[loop] = open_session
    return open_session


async def portions(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """A body that arrives in many small pieces, read a few at a time: each waking costs more than a piece's content.

    The last portion comes late by at most an eighth of what the body took so far, and by PORTION_SECONDS_MAX.
    """
    began = time.monotonic()
    async for piece in response.content.iter_any():
        yield piece
        transport = response.connection.transport if response.connection is not None else None
        if transport is None:
            continue  # all of it has arrived
        elapsed = time.monotonic() - began
        transport.pause_reading()
        try:
            await asyncio.sleep(min(max(elapsed / 8, PORTION_SECONDS_MIN), PORTION_SECONDS_MAX))
        finally:
            transport.resume_reading()


async def aclose() -> None:
    """Close the running event loop's pool; the next call opens a new one."""
    open_session = _sessions.pop(asyncio.get_running_loop(), None)
    if open_session is not None:
        await open_session.close()


class _Background:
    """One event loop in one daemon thread, for all synchronous callers of this process."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="engines-http", daemon=True).start()
        atexit.register(self.close)

    def close(self) -> None:
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(aclose(), self.loop).result(_CLOSE_SECONDS)


_background: _Background | None = None
_lock = threading.Lock()


_inherited: list[object] = []


def _forget() -> None:
    """A forked child has the objects but not the thread. They are kept unused: collected, they would close,
    and take the parent's sockets out of the poll that both share."""
    global _background, _lock, _sessions
    _inherited.append((_background, dict(_sessions)))
    if _background is not None:
        atexit.unregister(_background.close)
    _background, _lock, _sessions = None, threading.Lock(), WeakKeyDictionary()


os.register_at_fork(after_in_child=_forget)


def submit(coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Start a coroutine on the background loop. Cancelling the future cancels it, and the engine stops."""
    global _background
    with _lock:
        if _background is None:
            _background = _Background()
        return asyncio.run_coroutine_threadsafe(coroutine, _background.loop)


def call(coroutine: Coroutine[Any, Any, T], timeout_seconds: float) -> T:
    """Run a coroutine for a synchronous caller. Not from within an event loop: that would stop it.

    Raises EngineTimeout when the time is over; the coroutine is cancelled then, as it is when the caller is
    interrupted.
    """
    future = submit(coroutine)
    try:
        return future.result(timeout_seconds)
    except concurrent.futures.TimeoutError as error:
        if future.done() and not future.cancelled():  # a timeout of the coroutine's own
            raise
        raise EngineTimeout(f"The engine did not finish within {timeout_seconds:g} s.") from error
    finally:
        future.cancel()
