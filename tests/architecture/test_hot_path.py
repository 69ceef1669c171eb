"""The hot path stays beside Django: an upgrade that put Django's machinery around it would fail here, loudly."""

from __future__ import annotations

import sys
import threading
from typing import Any

import anyio
import pytest
from django.core.handlers.asgi import ASGIHandler
from django.urls import Resolver404, resolve

from cacheplane import asgi
from cacheplane.api.bodies import BoundedBodies
from cacheplane.api.chat_completions import ChatCompletions

HOT = "/v1/chat/completions"
REQUESTS = 50


async def ask(path: str, *, key: str = "") -> tuple[int, dict[bytes, bytes]]:
    """One POST through the whole application, as the server would send it."""
    sent: list[dict[str, Any]] = []
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers + ([(b"authorization", f"Bearer {key}".encode())] if key else []),
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1),
    }
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            await anyio.sleep_forever()
        asked = True
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await asgi.application(scope, receive, send)
    start = sent[0]
    return start["status"], dict(start["headers"])


def test_the_route_is_ours_and_comes_before_django() -> None:
    [(path, first)] = asgi.application.hot.items()
    others = asgi.application.others
    assert path == HOT
    assert isinstance(first, ChatCompletions)
    assert isinstance(others, BoundedBodies)
    assert isinstance(others._application, ASGIHandler)


def test_django_does_not_know_the_route() -> None:
    with pytest.raises(Resolver404):
        resolve(HOT)


def test_django_s_handler_is_never_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []
    original = ASGIHandler.__call__

    async def watched(self: ASGIHandler, scope: dict[str, Any], receive: Any, send: Any) -> None:
        entered.append(scope["path"])
        await original(self, scope, receive, send)

    monkeypatch.setattr(ASGIHandler, "__call__", watched)

    async def both() -> tuple[int, int]:
        hot, _ = await ask(HOT)
        cold, _ = await ask("/v1/nothing")
        return hot, cold

    assert anyio.run(both) == (401, 404)
    assert entered == ["/v1/nothing"], "the watch itself must see what does go through Django"


def test_no_thread_is_started_for_a_call() -> None:
    started: list[str] = []

    async def many() -> None:
        await ask(HOT)
        for _ in range(REQUESTS):
            assert (await ask(HOT))[0] == 401

    def tracer(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is threading.Thread.start.__code__:
            started.append(threading.current_thread().name)

    sys.setprofile(tracer)
    try:
        anyio.run(many)
    finally:
        sys.setprofile(None)
    assert len(started) < REQUESTS / 10, f"{len(started)} threads for {REQUESTS} calls"
