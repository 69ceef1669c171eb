"""The bytes of ended objects go: from the engine's disk, and from the slots that still hold them."""

from __future__ import annotations

import uuid
from datetime import timedelta
from pathlib import Path

import structlog

from billing import clock
from cacheplane.engines import http, registry, slots
from cacheplane.engines.models import Engine
from cacheplane.errors import EngineError
from cacheplane.kv import store
from cacheplane.kv.models import KVState

log = structlog.get_logger(__name__)

DROP_TIMEOUT_SECONDS = 30.0
ORPHAN_AGE = timedelta(hours=3)
"""Longer than the longest prefill that we wait for: younger files may still be in the making."""


def destroy_doomed(*, limit: int) -> int:
    """Destroy the bytes of doomed states; how many rows are gone. A slot in use is left for the next run."""
    gone = 0
    for state in (
        KVState.objects.filter(doomed_at__isnull=False).select_related("engine").order_by("doomed_at")[:limit]
    ):
        adapter = registry.adapter_of(state.engine)
        http.call(adapter.drop(state.filename), timeout_seconds=DROP_TIMEOUT_SECONDS)
        try:
            _erase_residents(state)
        except EngineError as error:
            log.warning("slot_not_erased", kv_id=str(state.id), code=error.code)
            continue
        if not slots.is_resident_anywhere(engine_id=state.engine_id, resident=state.id):
            state.delete()
            gone += 1
    return gone


def _erase_residents(state: KVState) -> None:
    adapter = registry.adapter_of(state.engine)
    owner = f"erase:{uuid.uuid4().hex[:12]}"
    while lease := slots.lease_holding(
        engine_id=state.engine_id, resident=state.id, owner=owner, seconds=DROP_TIMEOUT_SECONDS
    ):
        still_holds: uuid.UUID | None = state.id
        try:
            http.call(adapter.erase(slot=lease.index), timeout_seconds=DROP_TIMEOUT_SECONDS)
            still_holds = None
        finally:
            slots.release(lease, resident=still_holds, resident_organization=lease.resident_organization)


def destroy_orphans() -> int:
    """Destroy files that no row names: a save that was killed, a zombie's bytes."""
    gone = 0
    for engine in Engine.objects.all():
        adapter = registry.adapter_of(engine)
        for name in store.orphans(kv_dir=Path(engine.kv_dir), older_than=ORPHAN_AGE, at=clock.now()):
            http.call(adapter.drop(name), timeout_seconds=DROP_TIMEOUT_SECONDS)
            log.info("orphan_destroyed", filename=name)
            gone += 1
    return gone
