"""Create, find and list cache objects for a caller. Every query starts at the caller's organization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models.lookups import GreaterThan, LessThan

from billing import accounts, clock
from billing.accounts import LockedAccount
from cacheplane import dispatch
from cacheplane.access import gates, rate_limits
from cacheplane.access.callers import Caller
from cacheplane.caching import idempotency, lifecycle, tags
from cacheplane.caching.digests import digest, sorted_tools
from cacheplane.caching.idempotency import Once
from cacheplane.caching.models import ACTIVE, PAGE_ORDER, PENDING, CacheObject, new_cache_id
from cacheplane.chat import Message, Tool
from cacheplane.engines import http, registry
from cacheplane.errors import InvalidRequest, NotFound

FEATURE = "context_caching"
COUNT_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCacheObject:
    """What a caller asked for, checked for form. At most one of `ttl_seconds` and `expired_at` is set."""

    model: str
    messages: Sequence[Message]
    tools: Sequence[Tool] | None
    name: str
    description: str
    metadata: dict[str, str] | None
    ttl_seconds: int | None
    expired_at: datetime | None
    tags: Sequence[str] = ()
    once: Once | None = None


def create(caller: Caller, new: NewCacheObject) -> CacheObject:
    """Write a pending object and nudge a worker; one transaction, nothing left behind when it is refused.

    What `new.once` has made before is answered instead. Raises FeatureClosed, InvalidRequest, LimitExceeded,
    EngineError, billing's InsufficientFunds, and NotFound when what was made before is deleted.
    """
    now = clock.read(caller.organization_id)
    gates.require(caller, feature=FEATURE, at=now.machine)
    if (earlier := _made_before(caller, new, at=now.machine)) is not None:
        return earlier
    tools, tokens = counted(caller, new, at=now.at)
    # The limits are decided and committed on their own: a refused creation has still been asked for.
    rate_limits.admit_tokens(caller, tokens=tokens)
    with transaction.atomic():
        account = accounts.lock(caller.organization_id)
        # The same creation may have come by another way meanwhile.
        if (earlier := _made_before(caller, new, at=account.machine_at)) is not None:
            return earlier
        row = _write(account, caller, new, tools=tools, tokens=tokens)
        dispatch.after_commit(dispatch.PRECOMPUTE)
    return row


def counted(caller: Caller, new: NewCacheObject, *, at: datetime) -> tuple[list[Tool] | None, int]:
    """(tools with their keys sorted, tokens) of a new object. Raises InvalidRequest for what the tier does not allow,
    and EngineError."""
    registry.require_family(new.model)
    check_end(caller, ttl_seconds=new.ttl_seconds, expired_at=new.expired_at, at=at)
    tools = sorted_tools(new.tools)
    tokens = count_tokens(new.model, new.messages, tools)
    if tokens > caller.tier.object_tokens_max:
        raise InvalidRequest(
            f"Input token length too long: {tokens} tokens; a cache object of {caller.tier.slug} takes at most "
            f"{caller.tier.object_tokens_max}"
        )
    return tools, tokens


def _made_before(caller: Caller, new: NewCacheObject, *, at: datetime) -> CacheObject | None:
    if new.once is None:
        return None
    cache_id = idempotency.made_by(caller.organization_id, new.once, at=at)
    return get(caller, cache_id) if cache_id is not None else None


def _write(
    account: LockedAccount, caller: Caller, new: NewCacheObject, *, tools: list[Tool] | None, tokens: int
) -> CacheObject:
    """The row with all that belongs to it, inside the creation's transaction."""
    at = account.locked_at
    lifecycle.require_room(
        caller.organization_id, tokens=tokens, cached_tokens_max=caller.tier.cached_tokens_max, at=at
    )
    cache_id = new_cache_id()
    hold_reference = lifecycle.hold_creation(
        account, cache_id=cache_id, model=new.model, tokens=tokens, at=at
    )
    row = CacheObject.objects.create(
        id=cache_id,
        organization_id=caller.organization_id,
        project_id=caller.project_id,
        api_key_id=caller.api_key_id,
        model=new.model,
        name=new.name,
        description=new.description,
        metadata=new.metadata,
        messages=new.messages,
        tools=tools,
        message_count=len(new.messages),
        digest=digest(new.messages, tools),
        tokens=tokens,
        created_at=at,
        expired_at=end_of_life(ttl_seconds=new.ttl_seconds, expired_at=new.expired_at, at=at),
        hold_reference=hold_reference,
    )
    lifecycle.note(
        cache_id,
        caller.organization_id,
        "created",
        at=at,
        actor=caller.api_key_id,
        tokens=tokens,
        expired_at=row.expired_at.isoformat(),
    )
    for tag in new.tags:
        tags.point(caller.organization_id, tag, cache_id=cache_id, at=at, actor=caller.api_key_id)
    if new.once is not None:
        idempotency.remember(caller.organization_id, new.once, cache_id=cache_id, at=account.machine_at)
    return row


def end_of_life(*, ttl_seconds: int | None, expired_at: datetime | None, at: datetime) -> datetime:
    if expired_at is not None:
        return expired_at
    return at + timedelta(seconds=ttl_seconds or settings.CACHE_DEFAULT_TTL_SECONDS)


def check_end(caller: Caller, *, ttl_seconds: int | None, expired_at: datetime | None, at: datetime) -> None:
    """Raise InvalidRequest for an end in the past or beyond what the caller's tier allows."""
    longest = caller.tier.ttl_seconds_max
    if ttl_seconds is not None:
        check_ttl(caller, field="ttl", seconds=ttl_seconds)
    if expired_at is None:
        return
    if expired_at <= at:
        raise InvalidRequest(
            f"Invalid request: expired_at: got {int(expired_at.timestamp())}, takes a unix time in the future"
        )
    if expired_at > at + timedelta(seconds=longest):
        raise InvalidRequest(
            f"Invalid request: expired_at: got {int(expired_at.timestamp())}, takes at most "
            f"{longest} seconds from now on {caller.tier.slug}"
        )


def check_ttl(caller: Caller, *, field: str, seconds: int) -> None:
    """Raise InvalidRequest, naming `field`, for a lifetime that the caller's tier does not allow."""
    if not 0 < seconds <= caller.tier.ttl_seconds_max:
        raise InvalidRequest(
            f"Invalid request: {field}: got {seconds}, takes 1 to {caller.tier.ttl_seconds_max} seconds on "
            f"{caller.tier.slug}"
        )


def count_tokens(family: str, messages: Sequence[Message], tools: Sequence[Tool] | None) -> int:
    """Tokens that these messages and tools take as a prefix, the opening of an answer not counted."""
    engine = registry.engine_for(family)
    adapter = registry.adapter_of(engine)
    return len(http.call(adapter.prefix_tokens(messages, tools), timeout_seconds=COUNT_TIMEOUT_SECONDS))


def possible(cache_id: str) -> str:
    """An id to ask the database for, which takes no NUL. Raises NotFound."""
    if "\0" in cache_id:
        raise NotFound("Not found the cache object")
    return cache_id[:64]


def get(caller: Caller, cache_id: str) -> CacheObject:
    """The caller's object. Raises NotFound, for absent and for foreign ids alike."""
    row = (
        CacheObject.objects.of(caller.organization_id)
        .with_what_decides_status()
        .filter(id=possible(cache_id))
        .first()
    )
    if row is None:
        raise NotFound(f"Not found the cache object {cache_id[:64]}")
    return row


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A window on a caller's objects, keyed by id; ids sort by time of creation."""

    limit: int
    newest_first: bool
    after: str | None
    before: str | None
    metadata: dict[str, str]


def page(caller: Caller, wanted: Page) -> list[CacheObject]:
    """At most `limit` objects in order of creation. A cursor that is not the caller's raises NotFound."""
    rows = CacheObject.objects.of(caller.organization_id).with_what_decides_status()
    for cursor in (wanted.after, wanted.before):
        if cursor is not None and not rows.filter(id=cursor).exists():
            raise NotFound(f"Not found the cache object {cursor[:64]}")
    later, earlier = (LessThan, GreaterThan) if wanted.newest_first else (GreaterThan, LessThan)
    if wanted.after is not None:
        rows = rows.filter(later(PAGE_ORDER, wanted.after))
    if wanted.before is not None:
        rows = rows.filter(earlier(PAGE_ORDER, wanted.before))
    if wanted.metadata:
        rows = rows.filter(metadata__contains=wanted.metadata)
    return list(rows.order_by(PAGE_ORDER.desc() if wanted.newest_first else PAGE_ORDER.asc())[: wanted.limit])


def update(
    caller: Caller,
    cache_id: str,
    *,
    ttl_seconds: int | None,
    expired_at: datetime | None,
    metadata: dict[str, str] | None,
) -> CacheObject:
    """PUT: new metadata, a new end.

    An ended object is computed again, and counts towards the limits as its creation did. Raises FeatureClosed,
    NotFound, InvalidRequest, LimitExceeded, and billing's InsufficientFunds.
    """
    now = clock.read(caller.organization_id)
    gates.require(caller, feature=FEATURE, at=now.machine)
    check_end(caller, ttl_seconds=ttl_seconds, expired_at=expired_at, at=now.at)
    row = get(caller, cache_id)
    if (ttl_seconds or expired_at) and row.status_at(now.at) not in (PENDING, ACTIVE):
        rate_limits.admit_tokens(caller, tokens=row.tokens)
    return lifecycle.extend(
        caller.organization_id,
        row.id,
        actor=caller.api_key_id,
        ttl_seconds=ttl_seconds,
        expired_at=expired_at,
        metadata=metadata,
        cached_tokens_max=caller.tier.cached_tokens_max,
    )


def delete(caller: Caller, cache_id: str) -> None:
    lifecycle.delete(caller.organization_id, possible(cache_id), actor=caller.api_key_id)
