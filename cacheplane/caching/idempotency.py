"""A creation that is sent twice is made once: which object a caller's `Idempotency-Key` has made in the last day."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cacheplane.caching.models import IdempotencyKey
from cacheplane.errors import InvalidRequest

LIFETIME = timedelta(hours=24)
FORGOTTEN_AT_ONCE_MAX = 100
"""Each new key takes so many old ones of its organization away, so that they need no sweep and no creation is slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """A caller's key, and the digest of the body that it came with."""

    key: str
    body_digest: str


def made_by(organization_id: str, once: Once, *, at: datetime) -> str | None:
    """The id of the object that was created with this key; exact under the lock of the organization's account.

    Raises InvalidRequest when that was another body.
    """
    known = IdempotencyKey.objects.filter(
        organization_id=organization_id, key=once.key, created_at__gt=at - LIFETIME
    ).first()
    if known is None:
        return None
    if known.body_digest != once.body_digest:
        raise InvalidRequest(
            f"Invalid request: Idempotency-Key: got {once.key[:40]!r} with another body than the one that created "
            f"{known.cache_id}, takes a new key for each creation"
        )
    return known.cache_id


def remember(organization_id: str, once: Once, *, cache_id: str, at: datetime) -> None:
    """To be called in the creation's own transaction, under the account's lock, where `made_by` found nothing."""
    keys = IdempotencyKey.objects.filter(organization_id=organization_id)
    keys.filter(key=once.key).delete()
    over = keys.filter(created_at__lte=at - LIFETIME).order_by("created_at").values("id")
    keys.filter(id__in=over[:FORGOTTEN_AT_ONCE_MAX]).delete()
    IdempotencyKey.objects.create(
        organization_id=organization_id,
        key=once.key,
        body_digest=once.body_digest,
        cache_id=cache_id,
        created_at=at,
    )
