"""Which cache object a call means, and whether it may be used: one look-up that starts at the caller."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from django.db import connection

from cacheplane.access.callers import Caller
from cacheplane.caching.digests import digest, sorted_tools
from cacheplane.caching.models import ACTIVE, EXPIRED, PENDING
from cacheplane.caching.tags import NAME_CHARS_MAX
from cacheplane.chat import Message, Tool
from cacheplane.engines.base import KVHandle
from cacheplane.errors import NotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """How a caller named a cache object: as the first message, or in headers; by its id, or by a tag."""

    cache_id: str | None
    tag: str | None = None
    reset_ttl_seconds: int | None = None
    is_dry_run: bool = False
    is_message: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """A caller's cache object as one call sees it. `kv` is set only while the object is active; `messages` is None
    where a header named the object: such a call brings them itself, and the digest says whether they are the same."""

    cache_id: str
    model_family: str
    tokens: int
    messages: list[Message] | None
    tools: list[Tool] | None
    digest: str
    message_count: int
    status: str
    ends_at: datetime
    kv_id: uuid.UUID | None
    engine_id: int | None
    kv: KVHandle | None
    earns_from: datetime | None = None
    """ttl auto: a hit from then on moves its end. None: no hit does."""

    @property
    def kv_tokens(self) -> int:
        """Tokens that a restore brings; 0 while there is nothing to restore."""
        return self.kv.n_tokens if self.kv is not None else 0


# One statement, scoped to the organization in its own WHERE: somebody else's id finds nothing, like an absent one.
SELECT = """
SELECT object.id, object.model, object.tokens, CASE WHEN %s THEN object.messages::text END, object.tools::text,
       object.digest,
       object.message_count, object.status, object.expired_at, segment.closed_at, account.exhaust_at,
       kv.id, kv.engine_id, kv.filename, kv.n_tokens, kv.size_bytes, kv.sha256, kv.blake3, kv.fingerprint,
       CASE WHEN object.ttl_policy = 'auto' AND object.wanted_until IS NULL AND object.expired_at < object.cap_at
            THEN object.expired_at - make_interval(mins => object.kept_minutes) END,
       clock_timestamp() + account.clock_offset
  FROM caching_cacheobject AS object
  JOIN billing_billingaccount AS account ON account.organization_id = object.organization_id
  LEFT JOIN billing_storagesegment AS segment ON segment.id = object.segment_id
  LEFT JOIN kv_kvstate AS kv ON kv.id = object.kv_state_id AND kv.doomed_at IS NULL
 WHERE object.organization_id = %s
"""
BY_ID = "AND object.id = %s"
BY_TAG = (
    "AND object.id = (SELECT cache_object_id FROM caching_cachetag WHERE organization_id = %s AND tag = %s)"
)


def find(caller: Caller, reference: Reference) -> Prefix:
    """The caller's object with its status by the clock. Raises NotFound."""
    organization_id = caller.organization_id
    with connection.cursor() as cursor:
        if reference.tag is not None:
            # One character more than a tag can have: what is longer is not carried to the database, and not found.
            tag, what = reference.tag[: NAME_CHARS_MAX + 1], f"tag {reference.tag[:NAME_CHARS_MAX]}"
            cursor.execute(SELECT + BY_TAG, [reference.is_message, organization_id, organization_id, tag])
        else:
            cache_id = (reference.cache_id or "")[:64]
            what = f"cache object {cache_id}"
            cursor.execute(SELECT + BY_ID, [reference.is_message, organization_id, cache_id])
        row = cursor.fetchone()
    if row is None:
        raise NotFound(f"Not found the {what}")
    (object_id, family, tokens, messages, tools, identity, message_count, stored, expired_at, closed_at) = (
        row[:10]
    )
    (exhaust_at, kv_id, engine_id, filename, n_tokens, size_bytes, sha256, blake3, fingerprint) = row[10:19]
    (earns_from, at) = row[19:]
    ends_at = min(instant for instant in (expired_at, closed_at, exhaust_at) if instant is not None)
    status = EXPIRED if stored in (ACTIVE, PENDING) and ends_at <= at else stored
    kv = None
    if status == ACTIVE and kv_id is not None:
        kv = KVHandle(
            filename=filename,
            n_tokens=n_tokens,
            size_bytes=size_bytes,
            sha256=sha256,
            blake3=blake3,
            fingerprint=fingerprint,
        )
    return Prefix(
        cache_id=object_id,
        model_family=family,
        tokens=tokens,
        messages=msgspec.json.decode(messages) if messages is not None else None,
        tools=sorted_tools(msgspec.json.decode(tools)) if tools is not None else None,
        digest=identity,
        message_count=message_count,
        status=status,
        ends_at=expired_at,
        kv_id=kv_id,
        engine_id=engine_id,
        kv=kv,
        earns_from=earns_from if status == ACTIVE else None,
    )


def is_prefix_of(prefix: Prefix, messages: Sequence[Message], tools: Sequence[Tool] | None) -> bool:
    """Header mode: do the call's first messages and its tools equal the object's?"""
    if len(messages) < prefix.message_count:
        return False
    return digest(messages[: prefix.message_count], tools) == prefix.digest
