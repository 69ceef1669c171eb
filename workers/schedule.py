"""The beat table. A tick that finds nothing to do costs one query; a tick that is missed is made up by the next."""

from __future__ import annotations

from cacheplane import dispatch
from cacheplane.celery import app


def _every(seconds: float, job: str) -> dict[str, object]:
    # A tick that waited for a whole period is superseded by the next: it is not run late.
    return {"task": job, "schedule": seconds, "options": {"expires": max(seconds, 5.0)}}


app.conf.beat_schedule = {
    # Readers know of an end at once; that it is written down, and the bytes go, takes two seconds at most.
    "expire": _every(1.0, dispatch.EXPIRE),
    # A lost nudge or a dead worker delays a precompute by no more than this and the lease.
    "sweep precompute": _every(5.0, dispatch.SWEEP_PRECOMPUTE),
    # An opening is planned a minute ahead at least; so much later it is begun at most.
    "open scheduled": _every(5.0, dispatch.OPEN_SCHEDULED),
    # A price is announced 300 seconds ahead: within them each budget reckons with it.
    "keep to budgets": _every(60.0, dispatch.KEEP_TO_BUDGETS),
    "destroy KV": _every(5.0, dispatch.DESTROY_KV),
    "reap calls": _every(5.0, dispatch.REAP_CALLS),
    # A lost nudge delays a webhook by no more than this; a retry is due at its own time.
    "deliver webhooks": _every(5.0, dispatch.DELIVER_WEBHOOKS),
    "watch for webhooks": _every(5.0, dispatch.WATCH_FOR_WEBHOOKS),
    # Usage is with other systems so long after it is recorded; without a place to export to it does nothing.
    "export usage": _every(10.0, dispatch.EXPORT_USAGE),
    # Lines of storage are posted hourly; what is owed is exact in between without them.
    "settle storage": _every(3600.0, dispatch.SETTLE_STORAGE),
    "audit ledger": _every(3600.0, dispatch.AUDIT_LEDGER),
    # Only the hour after a month's end, and an hour of waiting, has something to do.
    "make invoices": _every(3600.0, dispatch.MAKE_INVOICES),
    "sweep webhooks": _every(3600.0, dispatch.SWEEP_WEBHOOKS),
    "destroy orphans": _every(3600.0, dispatch.DESTROY_ORPHANS),
}
