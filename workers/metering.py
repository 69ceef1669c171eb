"""Shells around billing's periodic work."""

from __future__ import annotations

import structlog

from billing import audit, clock, storage
from cacheplane import dispatch
from cacheplane.celery import app
from workers.ticks import alone

log = structlog.get_logger(__name__)


@app.task(name=dispatch.SETTLE_STORAGE)
def settle_storage() -> None:
    with alone("settle_storage") as is_alone:
        if is_alone:
            storage.settle_all()


@app.task(name=dispatch.AUDIT_LEDGER)
def audit_ledger() -> None:
    with alone("audit_ledger") as is_alone:
        if is_alone:
            for violation in audit.violations(clock.now()):
                log.error("ledger_violation", invariant=violation.invariant, subject=violation.subject)
