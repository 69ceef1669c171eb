"""Precompute: turn pending cache objects into KV states, one at a time per engine.

Rows are the queue. `drain` takes the engine's precompute lane and works until nothing is pending; a second drain on
the same engine finds the lane taken and leaves. So a nudge may be lost, doubled or late: the next one, or the sweep,
finds what is left.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path

import structlog
from django.conf import settings

from billing.errors import BillingError
from cacheplane.caching import lifecycle
from cacheplane.caching.digests import sorted_tools
from cacheplane.caching.lifecycle import Claim
from cacheplane.caching.models import PENDING, CacheObject
from cacheplane.engines import http, registry, slots
from cacheplane.engines.base import Engine as EngineAdapter
from cacheplane.engines.base import KVHandle
from cacheplane.engines.models import Engine
from cacheplane.engines.slots import SlotLease
from cacheplane.errors import ControlPlaneError, EngineTimeout, InvalidRequest, LaneLost
from cacheplane.kv import store
from cacheplane.kv.store import SavedKV

log = structlog.get_logger(__name__)

DROP_TIMEOUT_SECONDS = 30.0
HEALTH_TIMEOUT_SECONDS = 5.0
LANE_WAIT_SECONDS, LANE_POLL_SECONDS = 6.0, 0.05
"""A little longer than the pause between two sweeps."""
LANE_WANTED_SECONDS = 2.0
PROGRESS_SECONDS = 0.5
"""How often the progress of a prefill is written down; leases are renewed by the same beat."""


class ClaimLost(Exception):
    """The object was deleted, expired or taken over while it was being computed: nothing of ours may stay."""


def new_owner() -> str:
    return f"{socket.gethostname()[:20]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def drain() -> int:
    """Compute what is pending, engine by engine, until nothing is; how many became active.

    An engine whose lane is somebody else's is passed over: a drain that found it free works there, and this one
    goes on with the next.
    """
    owner = new_owner()
    return sum(_drain(engine, owner=owner) for engine in registry.engines_in_service())


def _drain(engine: Engine, *, owner: str) -> int:
    done = 0
    families = registry.families_of(engine)
    while CacheObject.objects.filter(status=PENDING, model__in=families).exists():
        lease = _lane(engine, owner=owner)
        if lease is None:
            return done
        worked = 0
        try:
            while _may_go_on(engine, lease) and (
                claim := lifecycle.claim_next(owner=owner, families=families)
            ):
                worked += 1
                done += run(claim, engine=engine, lease=lease)
        finally:
            slots.release(lease, resident=None, resident_organization=slots.UNKNOWN_ORGANIZATION)
        if not worked:
            return done
        # A row that came between the last look and the release had its nudge turned away: look again.
    return done


def _lane(engine: Engine, *, owner: str) -> SlotLease | None:
    """The engine's lane, after the call that may be in it; None when another drain has it or is waiting for it, and
    when that call takes long: then the next sweep goes on waiting."""
    deadline = time.monotonic() + LANE_WAIT_SECONDS
    while True:
        lease = slots.lease_for_prefill(
            engine_id=engine.id, owner=owner, seconds=settings.PRECOMPUTE_LEASE_SECONDS
        )
        if lease is not None or time.monotonic() > deadline:
            return lease
        if not slots.want_lane(engine_id=engine.id, owner=owner, seconds=LANE_WANTED_SECONDS):
            return None
        time.sleep(LANE_POLL_SECONDS)


def _may_go_on(engine: Engine, lease: SlotLease) -> bool:
    """The lane is still ours, and the engine is there: one that is being restarted uses up nobody's attempts."""
    if not slots.renew(lease, seconds=settings.PRECOMPUTE_LEASE_SECONDS):
        return False
    return http.call(registry.adapter_of(engine).is_healthy(), timeout_seconds=HEALTH_TIMEOUT_SECONDS)


def run(claim: Claim, *, engine: Engine, lease: SlotLease) -> bool:
    """One attempt at one object; True when it became active. Whatever fails is written into the row."""
    bound = log.bind(cache_id=claim.cache_id, attempt=claim.attempt, fence=claim.fence)
    adapter = registry.adapter_of(engine)
    filename = store.filename_for(cache_id=claim.cache_id, fence=claim.fence)
    try:
        handle = _compute(claim, engine=engine, adapter=adapter, lease=lease, filename=filename)
        require_lane(lease)
        if lifecycle.activate(claim, _saved(engine, handle)):
            bound.info("cache_active", tokens=handle.n_tokens, bytes=handle.size_bytes)
            return True
        bound.warning("claim_lost")
    except ClaimLost:
        bound.warning("claim_lost")
    except (InvalidRequest, BillingError) as error:
        bound.warning("precompute_refused", code=type(error).__name__)
        lifecycle.fail_attempt(claim, reason=error.message, is_final=True)
    except ControlPlaneError as error:
        bound.warning("precompute_failed", code=error.code)
        lifecycle.fail_attempt(claim, reason=error.message)
    # Not in a `finally`: after a lost connection nobody knows whether the activation was committed, and then the
    # bytes must stay. The sweep of orphans takes what no row names.
    http.call(adapter.drop(filename), timeout_seconds=DROP_TIMEOUT_SECONDS)
    return False


def require_lane(lease: SlotLease) -> None:
    """Keep the lane. Raises LaneLost when it is not ours any more: nobody knows then whose tokens the slot held."""
    if not slots.renew(lease, seconds=settings.PRECOMPUTE_LEASE_SECONDS):
        raise LaneLost("The engine's slot was given to somebody else during the prefill.")


def _saved(engine: Engine, handle: KVHandle) -> SavedKV:
    return SavedKV(
        engine_id=engine.id,
        filename=handle.filename,
        n_tokens=handle.n_tokens,
        size_bytes=handle.size_bytes,
        sha256=handle.sha256,
        blake3=handle.blake3,
        fingerprint=handle.fingerprint,
        prefill_ms=handle.prefill_ms,
    )


def _compute(
    claim: Claim, *, engine: Engine, adapter: EngineAdapter, lease: SlotLease, filename: str
) -> KVHandle:
    """Tokenize, make room, prefill and save, while both leases are kept. Raises ClaimLost when ours is gone."""
    if not engine.persist:
        raise InvalidRequest(
            "The engine of this model cannot keep KV states, so nothing can be cached on it."
        )
    row = CacheObject.objects.filter(id=claim.cache_id).only("messages", "tools", "tokens").first()
    if row is None:
        raise ClaimLost
    tokens = http.call(
        adapter.prefix_tokens(row.messages, sorted_tools(row.tools)),
        timeout_seconds=settings.CALL_TIMEOUT_SECONDS,
    )
    expected = store.expected_bytes(engine_id=engine.id, n_tokens=len(tokens))
    store.require_space(engine_id=engine.id, kv_dir=Path(engine.kv_dir), expected_bytes=expected)
    evaluated = [0]

    def on_progress(done: int, _all: int) -> None:
        evaluated[0] = done

    future = http.submit(
        adapter.prefill(tokens, slot=lease.index, filename=filename, on_progress=on_progress)
    )
    return _kept_alive(claim, lease=lease, future=future, evaluated=evaluated)


def _kept_alive(
    claim: Claim, *, lease: SlotLease, future: Future[KVHandle], evaluated: list[int]
) -> KVHandle:
    """Wait for a prefill; renew both leases and write its progress meanwhile."""
    renew_every_beats = max(1, int(settings.PRECOMPUTE_LEASE_SECONDS / 3 / PROGRESS_SECONDS))
    written, beat = 0, 0
    try:
        while True:
            try:
                return future.result(timeout=PROGRESS_SECONDS)
            except FutureTimeout:
                if future.done():
                    raise EngineTimeout("The engine did not finish the prefill in time.") from None
            beat += 1
            if beat * PROGRESS_SECONDS > settings.PREFILL_TIMEOUT_SECONDS:
                raise EngineTimeout(
                    f"The prefill took longer than {settings.PREFILL_TIMEOUT_SECONDS:.0f} seconds."
                )
            if evaluated[0] == written and beat % renew_every_beats:
                continue
            written = evaluated[0]
            if not lifecycle.renew(claim, prefilled_tokens=written):
                raise ClaimLost
            require_lane(lease)
    finally:
        future.cancel()
