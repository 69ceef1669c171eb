"""The clock of a sandbox: its owner sets it forward, so that a month of bills can be rehearsed in a minute.

Money and lifetimes follow the organization's clock; machines follow the machine's: leases, retries, limits, webhook
deliveries, idempotency keys, gates. What falls due in a jump is written down as of the instant at which it fell due,
in order: an object that ends gives back what it held, and with that another may live longer.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from django.db import transaction

from billing import accounts, clock, storage
from billing.accounts import LockedAccount
from billing.clock import Reading
from cacheplane.access import rate_limits
from cacheplane.access.callers import Caller
from cacheplane.caching import lifecycle
from cacheplane.caching.models import ACTIVE, PENDING, CacheObject
from cacheplane.errors import InvalidRequest, PermissionDenied

ADVANCE_SECONDS_MAX = 366 * 86_400
LATEST = datetime(2200, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
OBJECT_DAYS_MAX = 3_000
"""Living objects times the days of a jump: so many are written in some seconds."""
DAYS_START = timezone(timedelta(hours=8))
"""Storage is posted day by day of a jump, so that its lines tell the days apart as hourly ticks would."""


def read(caller: Caller) -> Reading:
    """Raises PermissionDenied unless the caller is a sandbox."""
    _require_sandbox(caller)
    return clock.read(caller.organization_id)


def advance(caller: Caller, *, seconds: int | None = None, to: datetime | None = None) -> Reading:
    """Set the caller's clock forward, by so many seconds or to an instant, and settle what fell due meanwhile.

    The offset stays a whole number of seconds, so `to` is passed by less than one. It counts as one request. Raises
    PermissionDenied, InvalidRequest, LimitExceeded.
    """
    _require_sandbox(caller)
    rate_limits.admit_tokens(caller, tokens=0)
    with transaction.atomic():
        account = accounts.lock(caller.organization_id)
        until = account.locked_at + timedelta(seconds=_seconds_ahead(account, seconds=seconds, to=to))
        if until > LATEST:
            raise InvalidRequest(
                f"Invalid request: {'to' if to else 'advance'}: got {until:%Y-%m-%d}, takes a time before {LATEST:%Y}"
            )
        _require_few(account, until=until)
        _walk(account, until=until)
        accounts.advance_clock(account, to=until)
    return clock.read(caller.organization_id)


def _require_few(account: LockedAccount, *, until: datetime) -> None:
    """All of a jump is one transaction, in which the account is locked: what it has to write is bounded."""
    alive = CacheObject.objects.of(account.organization_id).filter(status__in=[PENDING, ACTIVE])
    ends = alive.values_list("expired_at", flat=True)
    days = sum((min(end, until) - account.locked_at) // DAY + 1 for end in ends)
    if days > OBJECT_DAYS_MAX:
        raise InvalidRequest(
            f"Invalid request: the clock would pass {days} days of cache objects at once, takes {OBJECT_DAYS_MAX}: set "
            "it forward in smaller steps"
        )


def _require_sandbox(caller: Caller) -> None:
    if not caller.is_sandbox:
        raise PermissionDenied(
            "The API you are accessing is not open: only an organization that was made as a sandbox has a clock of its "
            "own"
        )


def _seconds_ahead(account: LockedAccount, *, seconds: int | None, to: datetime | None) -> int:
    if seconds is not None:
        return seconds
    assert to is not None
    ahead = -((account.locked_at - to) // timedelta(seconds=1))
    if to <= account.locked_at:
        raise InvalidRequest(
            f"Invalid request: to: got {to.isoformat()}, takes a time after the clock's "
            f"{account.locked_at.isoformat()}: it is never set back"
        )
    if ahead > ADVANCE_SECONDS_MAX:
        raise InvalidRequest(
            f"Invalid request: to: got {to.isoformat()}, takes at most {ADVANCE_SECONDS_MAX} seconds ahead"
        )
    return ahead


def _walk(account: LockedAccount, *, until: datetime) -> None:
    """From stop to stop: where an object ends, where money runs out, where a day begins, and the last one."""
    at = account.locked_at
    lifecycle.expire_over(account, at=at)
    while at < until:
        day = _next_day(at)
        at = min(_stops(account, after=at, day=day), default=until)
        at = min(at, until)
        lifecycle.expire_over(account, at=at)
        if at in (day, until):
            storage.settle(account, at=at)


def _stops(account: LockedAccount, *, after: datetime, day: datetime) -> list[datetime]:
    stops = [lifecycle.next_end(account.organization_id), account.exhaust_at]
    if account.committed_until is not None:
        stops.append(day)
    return [stop for stop in stops if stop is not None and stop > after]


def _next_day(at: datetime) -> datetime:
    midnight = at.astimezone(DAYS_START).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + DAY
