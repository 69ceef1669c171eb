"""Web processes, engines and databases that are killed under their callers' feet."""

from __future__ import annotations

import http.client
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest

from tests.api.streams import Call
from tests.conftest import Answer, Client, Instance, wait_for
from tests.faults import harm

pytestmark = [pytest.mark.own_instance, pytest.mark.xdist_group("faults-gateway")]

VOIDED_SECONDS = 60.0
WHOLE_MINUTES_OF_TOKENS = 6_000
"""More than a call produces while it is being struck."""
QUESTION = {"role": "user", "content": "Tell me all of it."}


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory, first_start: Path) -> Iterator[Instance]:
    yield from harm.own_instance(tmp_path_factory, first_start)


def begun(caller: Client) -> Call:
    """A streamed call that runs for long."""
    return Call(caller, QUESTION, model=harm.LONG_MODEL, max_tokens=WHOLE_MINUTES_OF_TOKENS, stream=True)


def wait_until_served(caller: Client) -> None:
    """Calls are answered again; until then they are refused politely or not at all."""

    def served() -> bool:
        try:
            answer = caller.chat(QUESTION)
        except (OSError, http.client.HTTPException):
            return False
        assert answer.status in (200, 429, 500, 502, 503, 504), answer.body
        return answer.status == 200

    wait_for(served, seconds=harm.BACK_SECONDS, what="calls are served again")


# --- The web process -------------------------------------------------------------------------------------------


def test_a_killed_web_process_costs_its_callers_nothing(
    instance: Instance, new_caller: Callable[..., Client]
) -> None:
    caller, next_caller = new_caller(), new_caller()
    before = caller.balance()
    with begun(caller) as call:
        events = call.events()
        for _ in range(5):
            next(events)
        assert not harm.is_idle(caller)
        killed_at = time.monotonic()
        pid = harm.strike(instance, "web")
        try:
            assert "[DONE]" not in list(events)
        except (http.client.HTTPException, OSError):
            pass  # the client has noticed that the stream was cut
    harm.wait_until_replaced(instance, "web", pid)
    wait_until_served(next_caller)
    wait_for(
        lambda: harm.is_idle(caller), seconds=2 * VOIDED_SECONDS, what="the call has given back all it took"
    )
    assert time.monotonic() - killed_at <= VOIDED_SECONDS
    assert harm.paid_for_calls(caller) == 0
    assert caller.balance() == before
    assert caller.chat(QUESTION).status == 200


def test_a_web_process_that_is_stopped_is_paid_for_what_its_calls_produced(
    instance: Instance, caller: Client
) -> None:
    """Calls get a while to end; one that takes longer is broken off, which is not the same as lost."""
    with Call(caller, QUESTION, model=harm.LONG_MODEL, max_tokens=30_000, stream=True) as call:
        events = call.events()
        first = next(events)
        pid = harm.strike(instance, "web", signal.SIGTERM)
        try:
            rest = list(events)
        except (http.client.HTTPException, OSError):
            rest = []  # the client has noticed that the stream was cut
        assert isinstance(first, dict) and "[DONE]" not in rest, "make the answer longer"
    harm.wait_until_replaced(instance, "web", pid)
    # Before anybody could take it for dead and end its calls for nothing.
    assert harm.is_idle(caller)
    assert harm.paid_for_calls(caller) > Decimal("0.001")
    wait_until_served(caller)


# --- The engine ------------------------------------------------------------------------------------------------


def fingerprint() -> str:
    from cacheplane.engines import registry

    return registry.engine_for("moonshot-v1").fingerprint


def wait_until_registered(since: object) -> None:
    """The supervisor has asked the new engine what it can do: its slots are known to hold nothing."""
    from cacheplane.engines.models import Engine

    wait_for(
        lambda: Engine.objects.filter(registered_at__gt=since).exists(),
        seconds=harm.BACK_SECONDS,
        what="the engine is registered again",
    )


def answers_under_way(instance: Instance) -> int:
    """Calls of which the engine has produced something: one that has not begun is told that it is overloaded."""
    return sum(
        slot["is_processing"] and slot["next_token"][0]["n_decoded"] > 0 for slot in instance.engine_slots()
    )


def test_a_killed_engine_fails_its_calls_cleanly_and_free_of_charge(
    instance: Instance, caller: Client
) -> None:
    from cacheplane.engines import registry

    kept = caller.active("The engine may die, this stays.")["id"]
    harm.require_hit(caller, kept)
    paid, world = harm.paid_for_calls(caller), fingerprint()
    since = registry.engine_for("moonshot-v1").registered_at
    whole: list[Answer] = []
    waiting = threading.Thread(
        target=lambda: whole.append(
            caller.chat(QUESTION, model=harm.LONG_MODEL, max_tokens=WHOLE_MINUTES_OF_TOKENS)
        )
    )
    with begun(caller) as call:
        waiting.start()
        events = call.events()
        for _ in range(5):
            next(events)
        wait_for(lambda: answers_under_way(instance) == 2, seconds=30, what="both are answered", every=0.02)
        pid = harm.strike(instance, "engine")
        rest = list(events)
    waiting.join(60)
    assert rest[-1] != "[DONE]" and set(rest[-1]) == {"error"}
    assert rest[-1]["error"]["type"] == "server_error"
    assert [answer.status for answer in whole] == [500]
    assert set(whole[0].json) == {"error"}
    harm.wait_until_replaced(instance, "engine", pid)
    wait_until_registered(since)
    assert fingerprint() == world
    wait_for(lambda: harm.is_idle(caller), seconds=30, what="the calls have given back all they took")
    assert harm.paid_for_calls(caller) == paid
    harm.require_hit(caller, kept)
    assert caller.get(kept).json["status"] == "active"


def test_an_engine_killed_in_the_middle_of_a_prefill(instance: Instance, caller: Client) -> None:
    from cacheplane.engines import registry

    since = registry.engine_for("moonshot-v1").registered_at
    kept = caller.active("This one was there before.")["id"]
    cache_id = harm.created(caller, harm.long_text("Interrupted"))
    harm.wait_until_computing(cache_id)
    pid = harm.strike(instance, "engine")
    harm.wait_until_replaced(instance, "engine", pid)
    wait_until_registered(since)
    caller.wait_until(cache_id, "active", seconds=2 * harm.COMPUTE_SECONDS)
    assert len(harm.instants(cache_id, "attempt_failed")) >= 1
    harm.require_computed_once(caller, cache_id)
    harm.wait_until_only_its_file(instance, cache_id)
    harm.require_hit(caller, cache_id)
    harm.require_hit(caller, kept)


# --- The database ----------------------------------------------------------------------------------------------


@dataclass
class Load:
    """A caller who creates, asks and deletes without a pause, and remembers what was acknowledged."""

    caller: Client
    acknowledged: list[str] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)
    in_doubt: set[str] = field(default_factory=set)
    statuses: list[int] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        number = 0
        while not self.over.is_set():
            number += 1
            try:
                self.step(number)
            except (OSError, http.client.HTTPException):
                self.statuses.append(0)

    def step(self, number: int) -> None:
        answer = self.caller.create(f"{self.caller.organization} {number}")
        self.statuses.append(answer.status)
        if answer.status != 200:
            return
        self.acknowledged.append(answer.json["id"])
        self.statuses.append(self.caller.ask(self.acknowledged[-1]).status)
        gone = self.acknowledged[-2:][0]
        if number % 3 == 0 and gone not in self.in_doubt:
            self.in_doubt.add(gone)
            answer = self.caller.request("DELETE", f"/v1/caching/{gone}")
            self.statuses.append(answer.status)
            if answer.status == 200:
                self.deleted.add(gone)


def test_a_killed_database_loses_nothing_that_was_acknowledged(
    instance: Instance, new_caller: Callable[..., Client]
) -> None:
    from cacheplane.caching.models import CacheObject

    loads = [Load(new_caller()) for _ in range(2)]
    threads = [threading.Thread(target=load.run) for load in loads]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: all(len(load.deleted) >= 2 for load in loads), seconds=60, what="there is some load")
        pid = harm.strike(instance, "postgres", signal.SIGKILL)
        harm.wait_until_replaced(instance, "postgres", pid)
        # Server processes of the dead one may be the last to go: the books are open when it answers.
        seen = [len(load.acknowledged) for load in loads]
        wait_for(
            lambda: all(len(load.acknowledged) > before for load, before in zip(loads, seen, strict=True)),
            seconds=harm.BACK_SECONDS,
            what="objects are created again",
        )
    finally:
        for load in loads:
            load.over.set()
        for thread in threads:
            thread.join(120)
    harm.reconnect()
    for load in loads:
        found = set(
            CacheObject.objects.filter(organization_id=load.caller.organization).values_list("id", flat=True)
        )
        assert set(load.acknowledged) - load.in_doubt <= found
        assert not load.deleted & found
        assert set(load.statuses) <= {0, 200, 404, 429, 500, 503}, load.statuses
        assert load.statuses.count(500) == 0, "a database that is away is told as such"
        for cache_id in found:
            load.caller.wait_until(cache_id, "active", seconds=harm.COMPUTE_SECONDS)
            harm.require_computed_once(load.caller, cache_id)
        wait_for(
            lambda load=load: harm.is_idle(load.caller),
            seconds=2 * VOIDED_SECONDS,
            what="all calls are settled",
        )
