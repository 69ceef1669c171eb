"""The web process: the hot path in plain ASGI, everything else through Django."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cacheplane.settings")
# A connection per request costs more than most requests. Only here: a pool does not survive the forks of a worker,
# so what this process starts must not inherit the wish for one.
POOL_SETTING = "DATABASE_POOL_CONNECTIONS_MAX"
is_given = POOL_SETTING in os.environ
os.environ.setdefault(POOL_SETTING, "24")
django_application = get_asgi_application()
if not is_given:
    del os.environ[POOL_SETTING]

# Django must be set up before anything that owns a model is imported.
from starlette.applications import Starlette  # noqa: E402
from starlette.types import Receive, Scope, Send  # noqa: E402

from cacheplane import database  # noqa: E402
from cacheplane.access import rate_limits  # noqa: E402
from cacheplane.api.bodies import BoundedBodies  # noqa: E402
from cacheplane.api.chat_completions import GATEWAY_ID, ChatCompletions  # noqa: E402
from cacheplane.caching import waiting  # noqa: E402
from cacheplane.engines import http  # noqa: E402
from cacheplane.errors import ServiceUnavailable  # noqa: E402
from cacheplane.gateway import completion  # noqa: E402

log = structlog.get_logger(__name__)

HEARTBEAT_SECONDS = 5.0
STOP_SECONDS = 10.0


async def _beat() -> None:
    """Say that this process lives: calls of a process that stops saying so are ended by a worker."""
    while True:
        try:
            # Apart: calls of an organization that is locked for long may hold all the other threads, and a process
            # that misses its heartbeats is taken for dead, with all its calls.
            await database.run_apart(
                rate_limits.heartbeat, gateway_id=GATEWAY_ID, host=socket.gethostname(), pid=os.getpid()
            )
        except ServiceUnavailable:
            log.warning("heartbeat_missed")
        await asyncio.sleep(HEARTBEAT_SECONDS)


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    beating = asyncio.create_task(_beat())
    try:
        yield
    finally:
        waiting.stop()
        await completion.drained(timeout_seconds=STOP_SECONDS)
        beating.cancel()
        with suppress(asyncio.CancelledError):
            await beating
        await http.aclose()


class Application:
    """The hot path first, before anything that every call would have to pass through."""

    def __init__(self) -> None:
        self.hot = {"/v1/chat/completions": ChatCompletions()}
        self.others = BoundedBodies(django_application)  # type: ignore[arg-type]  # Django's scope is narrower
        self._lifespan = Starlette(lifespan=lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.hot.get(scope["path"], self.others)(scope, receive, send)
        else:
            # Start and stop; and a websocket, which is closed: there is none.
            await self._lifespan(scope, receive, send)


application = Application()
