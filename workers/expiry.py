"""Shells around the end of cache objects and of their bytes."""

from __future__ import annotations

from cacheplane import dispatch
from cacheplane.caching import kv_cleanup, lifecycle
from cacheplane.celery import app
from workers.ticks import alone

BATCH_OBJECTS = 500


@app.task(name=dispatch.EXPIRE)
def expire() -> None:
    with alone("expire") as is_alone:
        while is_alone and lifecycle.expire_due(limit=BATCH_OBJECTS) == BATCH_OBJECTS:
            pass


@app.task(name=dispatch.DESTROY_KV)
def destroy_kv() -> None:
    with alone("destroy_kv") as is_alone:
        if is_alone:
            kv_cleanup.destroy_doomed(limit=BATCH_OBJECTS)
