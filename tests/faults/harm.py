"""Doing harm to a running instance, and seeing what it makes of it.

Only processes that the instance itself names in its ready file are touched, and those that a test has started.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from tests.conftest import Client, Instance, start_instance, wait_for

SENTENCE = "The keeper of the north light wrote down the wind, the water and each ship that passed. "
LONG_SENTENCES = 350
"""Some seconds of prefill for the smallest model: long enough to be struck in the middle of it."""
LONG_MODEL = "moonshot-v1-32k"
COMPUTE_SECONDS = 120.0
BACK_SECONDS = 60.0


def own_instance(
    factory: pytest.TempPathFactory, first_start: Path, **environment: str
) -> Iterator[Instance]:
    """For a fixture: an instance that nobody else uses; it must still stop in order when the harm is done."""
    running = start_instance(factory.mktemp("harmed") / "data", environment=environment, copy_of=first_start)
    try:
        yield running
    finally:
        status = stopped(running)
    assert status == 0, running.log.read_text()[-4000:]


def stopped(instance: Instance) -> int:
    try:
        return instance.stop()
    finally:
        instance.process.kill()
        instance.process.wait()


def pids(instance: Instance) -> dict[str, int]:
    """As they are now: the ready file is written anew whenever a process is replaced."""
    ready = instance.data_dir.parent / f"{instance.data_dir.name}.ready.json"
    return dict(json.loads(ready.read_text())["pids"])


def strike(instance: Instance, name: str, number: int = signal.SIGKILL) -> int:
    """Send a signal to one of its processes; its pid."""
    pid = pids(instance)[name]
    os.kill(pid, number)
    return pid


def wait_until_replaced(instance: Instance, name: str, pid: int) -> None:
    wait_for(
        lambda: pids(instance).get(name) not in (None, pid),
        seconds=BACK_SECONDS,
        what=f"a new {name} is started",
    )


@contextmanager
def paused(instance: Instance, *names: str) -> Iterator[None]:
    """Within it these processes stand still, and know nothing of it."""
    stopped_pids = [strike(instance, name, signal.SIGSTOP) for name in names]
    try:
        yield
    finally:
        for pid in stopped_pids:
            os.kill(pid, signal.SIGCONT)


def reconnect() -> None:
    """This test's own connection may have died with the server."""
    from django.db import connection

    connection.close()


# --- Cache objects ---------------------------------------------------------------------------------------------


def long_text(title: str) -> str:
    """Its first words are its own, so that no two texts have a beginning in common."""
    return f"{title}. " + SENTENCE * LONG_SENTENCES


def created(caller: Client, text: str, **fields: object) -> str:
    answer = caller.create(text, **fields)
    assert answer.status == 200, answer.body
    return str(answer.json["id"])


def wait_until_computing(cache_id: str) -> str:
    """Wait until a worker is in the middle of its prefill; the worker's name of itself."""
    from cacheplane.caching.models import PENDING, CacheObject

    def owner() -> str:
        row = CacheObject.objects.get(id=cache_id)
        assert row.status == PENDING, (
            f"{cache_id} was computed before it could be struck; make the text longer"
        )
        return row.lease_owner if row.prefilled_tokens else ""

    return str(wait_for(owner, seconds=COMPUTE_SECONDS, what="a prefill is under way", every=0.02))


def instants(cache_id: str, kind: str) -> list[datetime]:
    """When a kind of event happened to an object, in order."""
    from cacheplane.caching.models import CacheObjectEvent

    found = CacheObjectEvent.objects.filter(cache_id=cache_id, kind=kind).order_by("at")
    return list(found.values_list("at", flat=True))


def require_computed_once(caller: Client, cache_id: str) -> None:
    """One activation, one fee for it, no money held any more, and the one file that its row names."""
    from billing.models import Hold, LedgerEntry, MeterEvent
    from cacheplane.caching.models import CacheObject

    row = CacheObject.objects.select_related("kv_state").get(id=cache_id)
    assert len(instants(cache_id, "active")) == 1
    facts = MeterEvent.objects.filter(subject=cache_id, meter="creation")
    assert [fact.quantity for fact in facts] == [row.tokens]
    fees = LedgerEntry.objects.filter(meter_event__in=facts)
    assert sum((fee.amount for fee in fees), Decimal(0)) == row.tokens * Decimal(24) / 1_000_000
    assert not Hold.objects.filter(subject=cache_id, state="open").exists()
    assert row.kv_state is not None and row.kv_state.filename.startswith(f"{cache_id}.{row.fence}.")


def files_of(instance: Instance, cache_id: str) -> list[str]:
    return sorted(path.name for path in instance.kv_dir.iterdir() if path.name.startswith(cache_id))


def wait_until_only_its_file(instance: Instance, cache_id: str) -> None:
    from cacheplane.kv.models import KVState

    [named] = KVState.objects.filter(filename__startswith=f"{cache_id}.").values_list("filename", flat=True)
    wait_for(
        lambda: files_of(instance, cache_id) == [named],
        seconds=BACK_SECONDS,
        what=f"nothing but {named} is left of {cache_id}",
    )


def require_hit(caller: Client, cache_id: str) -> None:
    """A call finds the object's tokens computed, and says so."""
    from cacheplane.caching.models import CacheObject

    answer = caller.ask(cache_id, model=LONG_MODEL)
    assert answer.status == 200, answer.body
    tokens = CacheObject.objects.get(id=cache_id).tokens
    assert answer.json["usage"]["cached_tokens"] >= tokens - 1 > 0, answer.body
    assert answer.headers["msh-context-cache-id"] == cache_id


# --- Calls -----------------------------------------------------------------------------------------------------


def is_idle(caller: Client) -> bool:
    """No call of this organization is in flight, holds money, or keeps a slot."""
    from billing.models import Hold
    from cacheplane.access.models import CallInFlight, RateState
    from cacheplane.engines.models import EngineSlot

    of = {"organization_id": caller.organization}
    state = RateState.objects.filter(**of).first()
    return not (
        CallInFlight.objects.filter(**of).exists()
        or (state is not None and state.in_flight)
        or Hold.objects.filter(**of, kind="call", state="open").exists()
        or EngineSlot.objects.exclude(lease_owner="").filter(lease_until__isnull=False).exists()
    )


def paid_for_calls(caller: Client) -> Decimal:
    from billing.models import LedgerEntry

    entries = LedgerEntry.objects.filter(
        organization_id=caller.organization, kind__in=["prompt", "completion", "call"]
    )
    return sum((entry.amount for entry in entries), Decimal(0))
