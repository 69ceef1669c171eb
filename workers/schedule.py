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
    "destroy KV": _every(5.0, dispatch.DESTROY_KV),
    "reap calls": _every(5.0, dispatch.REAP_CALLS),
    # A lost nudge delays a webhook by no more than this; a retry is due at its own time.
    "deliver webhooks": _every(5.0, dispatch.DELIVER_WEBHOOKS),
    "watch for webhooks": _every(5.0, dispatch.WATCH_FOR_WEBHOOKS),
    # Lines of storage are posted hourly; what is owed is exact in between without them.
    "settle storage": _every(3600.0, dispatch.SETTLE_STORAGE),
    "audit ledger": _every(3600.0, dispatch.AUDIT_LEDGER),
    "sweep webhooks": _every(3600.0, dispatch.SWEEP_WEBHOOKS),
    "destroy orphans": _every(3600.0, dispatch.DESTROY_ORPHANS),
}
