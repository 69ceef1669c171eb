"""Shells around what dead processes leave behind."""

from __future__ import annotations

from cacheplane import dispatch
from cacheplane.caching import kv_cleanup
from cacheplane.celery import app
from cacheplane.gateway import admission
from workers.ticks import alone

GATEWAY_DEAD_AFTER_SECONDS = 30


@app.task(name=dispatch.REAP_CALLS)
def reap_calls() -> None:
    with alone("reap_calls") as is_alone:
        if is_alone:
            admission.reap(dead_after_seconds=GATEWAY_DEAD_AFTER_SECONDS)


@app.task(name=dispatch.DESTROY_ORPHANS)
def destroy_orphans() -> None:
    with alone("destroy_orphans") as is_alone:
        if is_alone:
            kv_cleanup.destroy_orphans()
