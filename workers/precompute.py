"""Shells around precompute: they call one function each."""

from __future__ import annotations

from cacheplane import dispatch
from cacheplane.caching import lifecycle, precompute
from cacheplane.celery import app


@app.task(name=dispatch.PRECOMPUTE)
def drain() -> None:
    precompute.drain()


@app.task(name=dispatch.SWEEP_PRECOMPUTE)
def sweep() -> None:
    """Finds what a lost nudge or a dead worker left pending."""
    lifecycle.fail_exhausted_attempts()
    precompute.drain()
