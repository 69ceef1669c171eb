"""The names of the jobs, and the only way that work leaves a request: by name, after commit.

A row is the queue and the message is a nudge: when the broker is away the nudge is dropped with a warning, and the
sweep finds the row. So an enqueue never fails a request and never holds one up for long.
"""

from __future__ import annotations

import structlog
from django.db import transaction
from kombu.exceptions import OperationalError

from cacheplane.celery import app

PRECOMPUTE = "workers.precompute"
DESTROY_KV = "workers.destroy_kv"
EXPIRE = "workers.expire"
SWEEP_PRECOMPUTE = "workers.sweep_precompute"
REAP_CALLS = "workers.reap_calls"
SETTLE_STORAGE = "workers.settle_storage"
AUDIT_LEDGER = "workers.audit_ledger"
MAKE_INVOICES = "workers.make_invoices"
DESTROY_ORPHANS = "workers.destroy_orphans"
DELIVER_WEBHOOKS = "workers.deliver_webhooks"
WATCH_FOR_WEBHOOKS = "workers.watch_for_webhooks"
SWEEP_WEBHOOKS = "workers.sweep_webhooks"
OPEN_SCHEDULED = "workers.open_scheduled"
KEEP_TO_BUDGETS = "workers.keep_to_budgets"
EXPORT_USAGE = "workers.export_usage"

ALL = (
    PRECOMPUTE,
    DESTROY_KV,
    EXPIRE,
    SWEEP_PRECOMPUTE,
    REAP_CALLS,
    SETTLE_STORAGE,
    AUDIT_LEDGER,
    MAKE_INVOICES,
    DESTROY_ORPHANS,
    DELIVER_WEBHOOKS,
    WATCH_FOR_WEBHOOKS,
    SWEEP_WEBHOOKS,
    OPEN_SCHEDULED,
    KEEP_TO_BUDGETS,
    EXPORT_USAGE,
)

log = structlog.get_logger(__name__)


def after_commit(name: str) -> None:
    """Send the named job once the current transaction has committed, or now when there is none."""
    transaction.on_commit(lambda: _send(name))


def _send(name: str) -> None:
    try:
        app.send_task(name, retry=False, ignore_result=True)
    except (OperationalError, OSError) as error:
        log.warning("nudge_lost", job=name, reason=type(error).__name__)
