"""Shells around the end of cache objects and of their bytes, and around the next beginning of scheduled ones."""

from __future__ import annotations

from cacheplane import dispatch
from cacheplane.caching import changes, kv_cleanup, lifecycle, openings
from cacheplane.celery import app
from workers.ticks import alone

BATCH_OBJECTS = 500


@app.task(name=dispatch.EXPIRE)
def expire() -> None:
    with alone("expire") as is_alone:
        while is_alone and lifecycle.expire_due(limit=BATCH_OBJECTS) == BATCH_OBJECTS:
            pass


@app.task(name=dispatch.OPEN_SCHEDULED)
def open_scheduled() -> None:
    with alone("open_scheduled") as is_alone:
        while is_alone and openings.open_due(limit=BATCH_OBJECTS) == BATCH_OBJECTS:
            pass


@app.task(name=dispatch.KEEP_TO_BUDGETS)
def keep_to_budgets() -> None:
    with alone("keep_to_budgets") as is_alone:
        if is_alone:
            changes.keep_to_budgets()


@app.task(name=dispatch.DESTROY_KV)
def destroy_kv() -> None:
    with alone("destroy_kv") as is_alone:
        if is_alone:
            kv_cleanup.destroy_doomed(limit=BATCH_OBJECTS)
