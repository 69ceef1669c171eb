"""Shells around webhooks: seeing what is to be told, telling it, forgetting it."""

from __future__ import annotations

import time

from billing import clock
from cacheplane import dispatch
from cacheplane.caching import reminders
from cacheplane.celery import app
from cacheplane.events import balances, delivery
from workers.ticks import alone

RUN_SECONDS = 20.0
"""After which no batch is begun any more: the next tick goes on."""


@app.task(name=dispatch.DELIVER_WEBHOOKS)
def deliver_webhooks() -> None:
    with alone("deliver_webhooks") as is_alone:
        until = time.monotonic() + RUN_SECONDS
        while is_alone and delivery.deliver_due() and time.monotonic() < until:
            pass


@app.task(name=dispatch.WATCH_FOR_WEBHOOKS)
def watch_for_webhooks() -> None:
    with alone("watch_for_webhooks") as is_alone:
        if is_alone:
            reminders.tell_expiring()
            balances.tell_low()


@app.task(name=dispatch.SWEEP_WEBHOOKS)
def sweep_webhooks() -> None:
    with alone("sweep_webhooks") as is_alone:
        while is_alone and delivery.sweep(at=clock.now()) == delivery.SWEEP_ROWS:
            pass
