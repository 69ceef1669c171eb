"""One cache object's life, step by step, with and without it side by side; each step timed and priced."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from cacheplane.engines import make_gguf
from cacheplane.management.demo.client import Api, Asked
from cacheplane.management.demo.costs import Costs
from cacheplane.management.demo.errors import DemoError

FAMILY = "moonshot-v1"
MODEL = "moonshot-v1-32k"
TEXT: Path = make_gguf.CORPUS / "handbook.en.txt"
QUESTIONS = (
    "How many lights does the company keep, and which of them has a road to its door?",
    "The standby lamp has failed as well as the main lamp: what does the watch do next?",
    "Which of the company's four promises comes first, and what is asked of whoever chose another?",
)
ANSWER_TOKENS_MAX = 24
TTL_SECONDS, EXTENDED_TTL_SECONDS = 600, 1200
ACTIVE_WITHIN_SECONDS = 1800.0
LOOK_EVERY_SECONDS = 0.25

WAYS = {"with": "cached", "without": "uncached"}

Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step took. Tokens and seconds are None where the step has none; `cost` is in ¥."""

    name: str
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    first_token_seconds: float | None = None
    seconds: float
    cost: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One question, asked both ways."""

    with_cache: Step
    without: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    creation: Step
    pairs: tuple[Pair, ...]
    listing: Step
    extension: Step
    deletion: Step
    cached_tokens: int
    storage: Decimal

    @property
    def first_with_cache(self) -> float:
        return median(pair.with_cache.first_token_seconds or 0.0 for pair in self.pairs)

    @property
    def first_without(self) -> float:
        return median(pair.without.first_token_seconds or 0.0 for pair in self.pairs)


class Watcher(Protocol):
    """What the journey tells while it runs; the terminal's part implements it."""

    def begin(self, what: str) -> None: ...

    def progress(self, done: int, total: int) -> None: ...

    def end(self, step: Step) -> None: ...


def run(api: Api, costs: Costs, watcher: Watcher) -> Result:
    """The whole journey. Raises DemoError. When a step fails or is interrupted, the object is deleted too."""
    system: Message = {"role": "system", "content": TEXT.read_text(encoding="utf-8")}
    cache_id = ""
    try:
        watcher.begin("create a cache object from the handbook, and wait until it is active")
        started = time.perf_counter()
        made = api.call("POST", "/v1/caching", _new_object(system)).body
        cache_id = made["id"]
        _until_active(api, cache_id, watcher)
        seconds = time.perf_counter() - started
        creation = Step(
            name="create", prompt_tokens=made["tokens"], seconds=seconds, cost=costs.of_creation(cache_id)
        )
        watcher.end(creation)
        pairs = tuple(
            _asked_both_ways(api, costs, watcher, number, question, cache_id=cache_id, system=system)
            for number, question in enumerate(QUESTIONS, start=1)
        )
        listing = _timed(watcher, "list", lambda: _listed(api, cache_id))
        extension = _timed(
            watcher,
            f"extend to {EXTENDED_TTL_SECONDS // 60} min",
            lambda: api.call("PUT", f"/v1/caching/{cache_id}", {"ttl": EXTENDED_TTL_SECONDS}),
        )
        deletion = _timed(watcher, "delete", lambda: _deleted(api, cache_id))
    except BaseException:
        if cache_id:
            _delete_if_there(api, cache_id)
        raise
    return Result(
        creation=creation,
        pairs=pairs,
        listing=listing,
        extension=extension,
        deletion=deletion,
        cached_tokens=made["tokens"],
        storage=costs.of_storage(cache_id),
    )


def _new_object(system: Message) -> dict[str, Any]:
    return {
        "model": FAMILY,
        "messages": [system],
        "name": "demonstration",
        "description": "Made and deleted by manage.py demo.",
        "ttl": TTL_SECONDS,
    }


def _until_active(api: Api, cache_id: str, watcher: Watcher) -> None:
    deadline = time.monotonic() + ACTIVE_WITHIN_SECONDS
    while time.monotonic() < deadline:
        answer = api.call("GET", f"/v1/caching/{cache_id}")
        done, _, total = answer.headers.get("msh-context-cache-progress", "0/0").partition("/")
        watcher.progress(int(done), int(total or 0))
        status = answer.body["status"]
        if status in ("active", "ready"):
            return
        if status == "error":
            raise DemoError(f"The cache object could not be computed: {answer.body['error']['message']}")
        if status != "pending":
            raise DemoError(f"The cache object became {status} before it was active.")
        time.sleep(LOOK_EVERY_SECONDS)
    raise DemoError(
        f"The cache object was not active after {ACTIVE_WITHIN_SECONDS:.0f} s: does a worker run?"
    )


def _asked_both_ways(
    api: Api, costs: Costs, watcher: Watcher, number: int, question: str, *, cache_id: str, system: Message
) -> Pair:
    """Which way comes first changes from question to question, so that neither has the better of it."""
    asked: Message = {"role": "user", "content": question}
    prompts = {
        "with": [{"role": "cache", "content": f"cache_id={cache_id}"}, asked],
        "without": [system, asked],
    }
    steps = {}
    for way in WAYS if number % 2 else reversed(WAYS):
        name = f"question {number}, {WAYS[way]}"
        watcher.begin(f"{name}: {question}")
        answer = api.ask({"model": MODEL, "messages": prompts[way], "max_tokens": ANSWER_TOKENS_MAX})
        if way == "with" and not answer.is_hit:
            raise DemoError("The call on the active cache object was not a hit: the server's log says why.")
        steps[way] = _step_of(name, answer, cost=costs.of_call(answer.request_id))
        watcher.end(steps[way])
    return Pair(with_cache=steps["with"], without=steps["without"])


def _step_of(name: str, answer: Asked, *, cost: Decimal) -> Step:
    return Step(
        name=name,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        first_token_seconds=answer.first_token_seconds,
        seconds=answer.total_seconds,
        cost=cost,
    )


def _timed(watcher: Watcher, name: str, act: Callable[[], object]) -> Step:
    watcher.begin(name)
    started = time.perf_counter()
    act()
    step = Step(name=name, seconds=time.perf_counter() - started, cost=Decimal(0))
    watcher.end(step)
    return step


def _listed(api: Api, cache_id: str) -> None:
    found = api.call("GET", "/v1/caching?limit=100").body["data"]
    if cache_id not in [item["id"] for item in found]:
        raise DemoError("The cache object is missing from the list.")


def _deleted(api: Api, cache_id: str) -> None:
    if not api.call("DELETE", f"/v1/caching/{cache_id}").body.get("deleted"):
        raise DemoError("The server did not say that the cache object is deleted.")


def _delete_if_there(api: Api, cache_id: str) -> None:
    """After a failure or Ctrl-C. What stopped us is what to tell; a second failure adds nothing to it."""
    api.close()  # an answer may be half read
    with suppress(DemoError):
        _deleted(api, cache_id)
