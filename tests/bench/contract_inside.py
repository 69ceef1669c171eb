"""What `tests.bench.contract` measures on the server's own code: a case comes as JSON, milliseconds go as JSON."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import aiohttp

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cacheplane.settings")
import django

django.setup()

from django.test import Client  # noqa: E402

from cacheplane.access import api_keys  # noqa: E402
from cacheplane.caching.models import CacheObject  # noqa: E402
from cacheplane.engines import http  # noqa: E402
from cacheplane.gateway import matching  # noqa: E402


def main() -> None:
    parts = {"match": match, "create": create}
    print(json.dumps(parts[sys.argv[1]](json.load(sys.stdin))))


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def match(given: dict[str, Any]) -> dict[str, float]:
    """Finding the object, and comparing a conversation with it; beside it the one hash nobody can do without."""
    row = CacheObject.objects.get(id=given["cache_id"])
    caller = _caller_of(row)
    conversation = [*given["messages"], {"role": "user", "content": "And now?"}]
    written = json.dumps(conversation).encode()
    reference = matching.Reference(cache_id=row.id, is_message=False)

    def whole() -> None:
        assert matching.is_prefix_of(matching.find(caller, reference), conversation, None)

    whole()
    pairs = [
        (_timed(whole), _timed(lambda: hashlib.sha256(written).hexdigest())) for _ in range(given["rounds"])
    ]
    ours = [found for found, _ in pairs]
    return {"match": median(ours), "least": min(ours), "sha256": median(one for _, one in pairs)}


def _caller_of(row: CacheObject) -> Any:
    from cacheplane.access.callers import Caller

    limits = api_keys.TierLimits(
        slug="bench",
        rank=0,
        concurrency=0,
        requests_per_minute=0,
        tokens_per_minute=0,
        tokens_per_day=None,
        object_tokens_max=0,
        cached_tokens_max=0,
        ttl_seconds_max=0,
    )
    return Caller(
        organization_id=row.organization_id,
        organization_name="",
        organization_state="active",
        project_id=row.project_id,
        api_key_id="",
        tier=limits,
    )


class AtTheEngine:
    """How long at least one question was on its way to the engine, or its answer on the way back. What is done between
    two questions, to write one and to understand an answer, is ours."""

    def __init__(self) -> None:
        self.took_ms = 0.0
        self._asked = 0
        self._since = 0.0

    def watch(self) -> None:
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(self._ask)
        trace.on_response_chunk_received.append(self._hear)
        trace.freeze()
        http.call(self._join(trace), timeout_seconds=http.CONTROL_SECONDS)

    async def _join(self, trace: aiohttp.TraceConfig) -> None:
        http.session().trace_configs.append(trace)

    async def _ask(self, *_told: object) -> None:
        if not self._asked:
            self._since = time.perf_counter()
        self._asked += 1

    async def _hear(self, *_told: object) -> None:
        self._asked -= 1
        if not self._asked:
            self.took_ms += (time.perf_counter() - self._since) * 1000


def create(given: dict[str, Any]) -> dict[str, float]:
    """The whole request through Django, less the time in which the engine is at work for it."""
    there = AtTheEngine()
    there.watch()
    client = Client(headers={"Authorization": f"Bearer {given['api_key']}", "Host": "127.0.0.1"})
    body = json.dumps({"model": "moonshot-v1", "ttl": 600, "messages": given["messages"]})
    whole, engine, cpu, tokens = [], [], [], 0
    for number in range(given["rounds"] + 1):
        while True:
            there.took_ms = 0.0
            started, busy = time.perf_counter(), time.process_time()
            answer = client.post("/v1/caching", body, content_type="application/json")
            took, worked = (time.perf_counter() - started) * 1000, (time.process_time() - busy) * 1000
            if answer.status_code != 429:
                break
            time.sleep(
                int(answer.headers["Retry-After"])
            )  # the tokens of a minute are used up: once more, later
        assert answer.status_code == 200, answer.content[:500]
        made = answer.json()
        client.delete(f"/v1/caching/{made['id']}")
        if number:  # the first one warms up
            whole.append(took)
            engine.append(there.took_ms)
            cpu.append(worked)
            tokens = made["tokens"]
    beyond = [one - other for one, other in zip(whole, engine, strict=True)]
    return {
        "whole": median(whole),
        "engine": median(engine),
        "beyond": median(beyond),
        "least": min(beyond),
        "cpu": min(cpu),
        "bytes": len(body),
        "tokens": tokens,
    }


if __name__ == "__main__":
    main()
