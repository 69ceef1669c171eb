"""Create, find and list cache objects for a caller. Every query starts at the caller's organization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Value
from django.db.models.lookups import GreaterThan, LessThan
from psycopg.types.json import Jsonb

from billing import accounts, clock
from billing.accounts import LockedAccount
from billing.budgets import Budget
from cacheplane import database, dispatch
from cacheplane.access import gates, rate_limits
from cacheplane.access.callers import Caller
from cacheplane.caching import budgets, changes, idempotency, lifecycle, schedules, tags
from cacheplane.caching.changes import Change
from cacheplane.caching.digests import canonical, digest_of, sorted_tools
from cacheplane.caching.idempotency import Once
from cacheplane.caching.lifetimes import Auto, Fixed, Lifetime, Scheduled
from cacheplane.caching.models import ACTIVE, PAGE_ORDER, PENDING, CacheObject, new_cache_id
from cacheplane.chat import Message, Tool
from cacheplane.engines import http, registry
from cacheplane.errors import InvalidRequest, NotFound

FEATURE = "context_caching"
COUNT_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCacheObject:
    """What a caller asked for, checked for form."""

    model: str
    messages: Sequence[Message]
    tools: Sequence[Tool] | None
    name: str
    description: str
    metadata: dict[str, str] | None
    lifetime: Lifetime = Fixed()
    budget: Budget | None = None
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
    new = replace(new, lifetime=checked(caller, new.lifetime, at=now.at))
    tools, tokens = counted(caller, new)
    # The limits are decided and committed on their own: a refused creation has still been asked for.
    rate_limits.admit_tokens(caller, tokens=tokens)
    messages = canonical(new.messages)
    identity = digest_of(
        messages, tools
    )  # of a megabyte it takes a while, in which the account is not locked
    with transaction.atomic():
        account = accounts.lock(caller.organization_id)
        # The same creation may have come by another way meanwhile.
        if (earlier := _made_before(caller, new, at=account.machine_at)) is not None:
            return earlier
        row = _write(account, caller, new, messages=messages, tools=tools, identity=identity, tokens=tokens)
        dispatch.after_commit(dispatch.PRECOMPUTE)
    return row


def counted(caller: Caller, new: NewCacheObject) -> tuple[list[Tool] | None, int]:
    """(tools with their keys sorted, tokens) of a new object. Raises InvalidRequest for what the tier does not allow,
    and EngineError."""
    registry.require_family(new.model)
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
    account: LockedAccount,
    caller: Caller,
    new: NewCacheObject,
    *,
    messages: bytes,
    tools: list[Tool] | None,
    identity: str,
    tokens: int,
) -> CacheObject:
    """The row with all that belongs to it, inside the creation's transaction. `messages` are canonical."""
    at = account.locked_at
    until = new.lifetime.until(at)
    row = CacheObject(
        id=new_cache_id(),
        organization_id=caller.organization_id,
        project_id=caller.project_id,
        api_key_id=caller.api_key_id,
        model=new.model,
        name=new.name,
        description=new.description,
        metadata=new.metadata,
        messages=Value(Jsonb(messages, dumps=bytes)),  # they are JSON already
        tools=tools,
        message_count=len(new.messages),
        digest=identity,
        tokens=tokens,
        created_at=at,
        expired_at=until or at,
        budget_amount=new.budget.amount if new.budget is not None else None,
        budget_per=new.budget.per if new.budget is not None else "",
        **new.lifetime.columns(at),
    )
    budgets.require_creation(account, row, at=at)
    if until is not None:
        lifecycle.require_room(
            caller.organization_id, tokens=tokens, cached_tokens_max=caller.tier.cached_tokens_max, at=at
        )
        row.hold_reference = lifecycle.hold_creation(
            account, cache_id=row.id, model=new.model, tokens=tokens, at=at
        )
    with database.values_apart():
        row.save(force_insert=True)
    row.messages = list(new.messages)
    lifecycle.note(
        row.id,
        caller.organization_id,
        "created",
        at=at,
        actor=caller.api_key_id,
        tokens=tokens,
        expired_at=row.expired_at.isoformat(),
    )
    if until is None:
        lifecycle.keep_closed(row, at=at)
    for tag in new.tags:
        tags.point(caller.organization_id, tag, cache_id=row.id, at=at, actor=caller.api_key_id)
    if new.once is not None:
        idempotency.remember(caller.organization_id, new.once, cache_id=row.id, at=account.machine_at)
    return row


def checked(caller: Caller, lifetime: Lifetime, *, at: datetime) -> Lifetime:
    """The same with what the caller's tier adds to it. Raises InvalidRequest for what it does not allow."""
    longest = caller.tier.ttl_seconds_max
    if isinstance(lifetime, Fixed):
        check_end(caller, ttl_seconds=lifetime.ttl_seconds, expired_at=lifetime.expired_at, at=at)
    elif isinstance(lifetime, Auto):
        if lifetime.cap_seconds is not None:
            check_ttl(caller, field="ttl_cap", seconds=lifetime.cap_seconds)
        return Auto(cap_seconds=lifetime.cap_seconds or longest)
    elif isinstance(lifetime, Scheduled):
        schedule = schedules.parse(lifetime.windows, at=at)
        if max(one.closes_at - one.opens_at for one in schedule.openings(at)) > timedelta(seconds=longest):
            raise InvalidRequest(
                f"Invalid request: schedule.windows: got one of more than {longest} seconds, takes none that is "
                f"longer on {caller.tier.slug}"
            )
    return lifetime


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
    return http.call(adapter.count_prefix_tokens(messages, tools), timeout_seconds=COUNT_TIMEOUT_SECONDS)


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
    wanted: Change,
) -> CacheObject:
    """PUT: new metadata, another lifetime, another budget.

    An ended object is computed again, and counts towards the limits as its creation did. Raises FeatureClosed,
    NotFound, InvalidRequest, LimitExceeded, and billing's InsufficientFunds.
    """
    now = clock.read(caller.organization_id)
    gates.require(caller, feature=FEATURE, at=now.machine)
    if wanted.lifetime is not None:
        wanted = replace(wanted, lifetime=checked(caller, wanted.lifetime, at=now.at))
    row = get(caller, cache_id)
    is_alive = row.status_at(now.at) in (PENDING, ACTIVE)
    if wanted.lifetime is not None and wanted.lifetime.until(now.at) is not None and not is_alive:
        rate_limits.admit_tokens(caller, tokens=row.tokens)
    return changes.change(
        caller.organization_id,
        row.id,
        wanted,
        actor=caller.api_key_id,
        cached_tokens_max=caller.tier.cached_tokens_max,
    )


def delete(caller: Caller, cache_id: str) -> None:
    lifecycle.delete(caller.organization_id, possible(cache_id), actor=caller.api_key_id)
