"""Cache objects as the control plane makes them, without an engine: pending with a hold, claimed, activated."""

from __future__ import annotations

import uuid
from datetime import timedelta

from django.db import transaction

from billing import accounts
from cacheplane.access.callers import Caller
from cacheplane.caching import lifecycle
from cacheplane.caching.lifecycle import Claim
from cacheplane.caching.models import CacheObject, new_cache_id
from cacheplane.kv.store import SavedKV
from cacheplane.management.drill.payer import FAMILY
from cacheplane.management.drill.scene import FINGERPRINT


def new_pending(caller: Caller, *, tokens: int, seconds: float) -> str:
    """A pending object whose creation fee and first minute are held; its id. Raises InsufficientFunds."""
    with transaction.atomic():
        account = accounts.lock(caller.organization_id)
        at, cache_id = account.locked_at, new_cache_id()
        hold = lifecycle.hold_creation(account, cache_id=cache_id, model=FAMILY, tokens=tokens, at=at)
        CacheObject.objects.create(
            id=cache_id,
            organization_id=caller.organization_id,
            project_id=caller.project_id,
            api_key_id=caller.api_key_id,
            model=FAMILY,
            messages=[],
            message_count=1,
            digest="",
            tokens=tokens,
            created_at=at,
            expired_at=at + timedelta(seconds=seconds),
            hold_reference=hold,
        )
    return cache_id


def claimed() -> Claim:
    """The oldest pending object, claimed by a worker of the drill."""
    claim = lifecycle.claim_next(owner="drill")
    assert claim is not None, "it was made pending just before"
    return claim


def saved(claim: Claim, *, engine_id: int, tokens: int) -> SavedKV:
    """What a prefill would have left on the disk."""
    return SavedKV(
        engine_id=engine_id,
        filename=f"{claim.cache_id}.{claim.fence}.{uuid.uuid4().hex[:8]}.kv",
        n_tokens=tokens,
        size_bytes=1,
        sha256="",
        blake3="",
        fingerprint=FINGERPRINT,
    )
