"""API keys: issue, prove, rotate, revoke.

A secret is `sk-` + 20 characters of the key's public id + 32 random base62 + 6 of checksum. The checksum
refuses a typo without asking the database; it proves nothing. What proves is the digest: HMAC-SHA256 of the
whole secret under `API_KEY_PEPPER`, so that a stolen table alone lets nobody in.
"""

from __future__ import annotations

import hmac
import re
import secrets
import string
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from cacheplane.access import audit
from cacheplane.access.callers import Caller, TierLimits
from cacheplane.access.models import ApiKey, Project, new_api_key_id
from cacheplane.errors import Conflict, NotAuthenticated, NotFound

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM_CHARS = 32
CHECKSUM_CHARS = 6
SECRET_SHAPE = re.compile(
    r"sk-(?P<body>(?P<public>[0-9a-z]{20})[0-9A-Za-z]{32})(?P<checksum>[0-9A-Za-z]{6})", re.ASCII
)

CACHE_TTL_SECONDS = 5.0
"""How late a revocation, a new tier or a suspension may be felt by another process."""
CACHE_CALLERS_MAX = 10_000
ROTATION_GRACE_SECONDS = 86_400

_NO_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedKey:
    """`secret` exists only here: show it once, then forget it. `repr`, and so a log, leaves it out."""

    key: ApiKey
    secret: str = field(repr=False)


class CallerCache:
    """Digest → Caller for a few seconds, within one process. Only proved keys enter it.

    Keyed by the digest, never by the secret. `clock` gives seconds that never run backwards.
    """

    def __init__(
        self,
        *,
        ttl_seconds: float = CACHE_TTL_SECONDS,
        callers_max: int = CACHE_CALLERS_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._ttl_seconds = ttl_seconds
        self._callers_max = callers_max
        self._callers: dict[str, tuple[float, Caller]] = {}
        self._lock = threading.Lock()

    def get(self, digest: str) -> Caller | None:
        held = self._callers.get(digest)
        if held is None or self.clock() >= held[0]:
            return None
        return held[1]

    def put(self, digest: str, caller: Caller, *, read_at: float, lives_seconds: float | None = None) -> None:
        """`read_at` is the clock from before the query: a slow query must not stretch the five seconds."""
        ttl_seconds = self._ttl_seconds if lives_seconds is None else min(self._ttl_seconds, lives_seconds)
        with self._lock:
            self._callers.pop(digest, None)
            while len(self._callers) >= self._callers_max:
                del self._callers[next(iter(self._callers))]
            self._callers[digest] = (read_at + ttl_seconds, caller)

    def forget(self, digest: str) -> None:
        with self._lock:
            self._callers.pop(digest, None)

    def clear(self) -> None:
        with self._lock:
            self._callers.clear()

    def __len__(self) -> int:
        return len(self._callers)


_cache = CallerCache()


def issue(
    *, project: Project, name: str, operator: str, reason: str = "", expires_at: datetime | None = None
) -> IssuedKey:
    """A new key of a project, audited. The answer is the only place where the secret is ever seen."""
    key_id = new_api_key_id()
    secret = _new_secret(public=key_id.removeprefix("ak-"))
    with transaction.atomic():
        key = ApiKey.objects.create(
            id=key_id,
            organization_id=project.organization_id,
            project=project,
            name=name,
            digest=digest_of(secret),
            hint=secret[-4:],
            expires_at=expires_at,
        )
        audit.record(
            operator=operator,
            action="api_key.issue",
            subject=key.id,
            organization_id=key.organization_id,
            reason=reason,
            detail={"project": project.id, "name": name, "hint": key.hint},
        )
    return IssuedKey(key=key, secret=secret)


def authenticate(secret: str | None, *, cache: CallerCache = _cache) -> Caller:
    """The caller behind a secret; NotAuthenticated when there is none or it is not a live key of ours."""
    if not secret:
        raise NotAuthenticated("Invalid Authentication")
    public = _public_part(secret)
    if public is None:
        raise NotAuthenticated("Incorrect API key provided")
    digest = digest_of(secret)
    return cache.get(digest) or _prove(key_id=f"ak-{public}", digest=digest, cache=cache)


def cached(secret: str | None, *, cache: CallerCache = _cache) -> Caller | None:
    """The caller, when this process proved the secret a moment ago. No I/O: fit for an event loop."""
    if not secret or _public_part(secret) is None:
        return None
    return cache.get(digest_of(secret))


def revoke(
    *, api_key_id: str, operator: str, reason: str, at: datetime, cache: CallerCache = _cache
) -> ApiKey:
    """End a key for good. Felt at once here and within CACHE_TTL_SECONDS by every other process."""
    reason = audit.required_reason(reason)
    with transaction.atomic():
        key = _live_key_for_update(api_key_id)
        key.revoked_at = at
        key.save(update_fields=["revoked_at"])
        audit.record(
            operator=operator,
            action="api_key.revoke",
            subject=key.id,
            organization_id=key.organization_id,
            reason=reason,
        )
        transaction.on_commit(lambda: cache.forget(key.digest))
    return key


def rotate(
    *,
    api_key_id: str,
    operator: str,
    reason: str,
    at: datetime,
    grace_seconds: int = ROTATION_GRACE_SECONDS,
    cache: CallerCache = _cache,
) -> IssuedKey:
    """A second live key beside the old one, which ends after `grace_seconds` (or earlier, if it would
    anyway).
    """
    reason = audit.required_reason(reason)
    with transaction.atomic():
        old = _live_key_for_update(api_key_id)
        ends_at = at + timedelta(seconds=grace_seconds)
        old.expires_at = ends_at if old.expires_at is None else min(old.expires_at, ends_at)
        old.save(update_fields=["expires_at"])
        audit.record(
            operator=operator,
            action="api_key.rotate",
            subject=old.id,
            organization_id=old.organization_id,
            reason=reason,
            detail={"expires_at": old.expires_at.isoformat()},
        )
        issued = issue(project=old.project, name=old.name, operator=operator, reason=reason)
        transaction.on_commit(lambda: cache.forget(old.digest))
    return issued


def digest_of(secret: str) -> str:
    """HMAC-SHA256 of the secret under the installation's pepper, as 64 hex characters."""
    return hmac.digest(settings.API_KEY_PEPPER.encode(), secret.encode(), "sha256").hex()


def _new_secret(*, public: str) -> str:
    body = public + "".join(secrets.choice(BASE62) for _ in range(RANDOM_CHARS))
    return f"sk-{body}{_checksum(body)}"


def _public_part(secret: str) -> str | None:
    """The key's public id when shape and checksum are right, else None: a typo costs no query."""
    match = SECRET_SHAPE.fullmatch(secret)
    if match is None or _checksum(match["body"]) != match["checksum"]:
        return None
    return match["public"]


def _checksum(body: str) -> str:
    number, digits = zlib.crc32(body.encode()), []
    for _ in range(CHECKSUM_CHARS):
        number, digit = divmod(number, 62)
        digits.append(BASE62[digit])
    return "".join(reversed(digits))


# The database's clock decides, not this machine's.
PROVE_SQL = """
SELECT k.digest, k.revoked_at IS NULL AND coalesce(k.expires_at > clock_timestamp(), true) AS is_live,
       extract(epoch FROM least(k.expires_at, v.ends_at) - clock_timestamp())::float8 AS good_for_seconds,
       coalesce(k.last_used_at < clock_timestamp() - interval '1 minute', true) AS use_is_stale,
       o.id, o.name, o.state, k.project_id, o.kind = 'sandbox' AS is_sandbox,
       t.slug, t.rank, t.concurrency, t.requests_per_minute, t.tokens_per_minute, t.tokens_per_day,
       t.object_tokens_max, t.cached_tokens_max, t.ttl_seconds_max
FROM access_apikey k
JOIN access_organization o ON o.id = k.organization_id
LEFT JOIN LATERAL (
    SELECT v.tier_id, v.ends_at FROM access_tieroverride v
    WHERE v.organization_id = o.id AND coalesce(v.ends_at > clock_timestamp(), true)
    ORDER BY v.id DESC LIMIT 1
) v ON true
JOIN access_tier t ON t.slug = coalesce(v.tier_id, o.tier_id)
WHERE k.id = %s
"""
# Asked again in the statement: of several processes that see a stale use, one writes.
TOUCH_SQL = """
UPDATE access_apikey SET last_used_at = clock_timestamp()
WHERE id = %s AND coalesce(last_used_at < clock_timestamp() - interval '1 minute', true)
"""


def _prove(*, key_id: str, digest: str, cache: CallerCache) -> Caller:
    read_at = cache.clock()
    with connection.cursor() as cursor:
        cursor.execute(PROVE_SQL, [key_id])
        row = cursor.fetchone()
        # An unknown id is compared too, so that it takes as long as a wrong secret.
        is_right = hmac.compare_digest(row[0] if row else _NO_DIGEST, digest)
        if not (row and is_right and row[1]):
            raise NotAuthenticated("Incorrect API key provided")
        if row[3]:
            cursor.execute(TOUCH_SQL, [key_id])
    caller = _caller_from(row, key_id=key_id)
    cache.put(digest, caller, read_at=read_at, lives_seconds=row[2])
    return caller


def _caller_from(row: tuple[Any, ...], *, key_id: str) -> Caller:
    organization_id, organization_name, organization_state, project_id, is_sandbox = row[4:9]
    slug, rank, concurrency, requests, tokens, day_tokens, object_tokens, cached_tokens, ttl_seconds = row[9:]
    return Caller(
        organization_id=organization_id,
        organization_name=organization_name,
        organization_state=organization_state,
        project_id=project_id,
        api_key_id=key_id,
        is_sandbox=is_sandbox,
        tier=TierLimits(
            slug=slug,
            rank=rank,
            concurrency=concurrency,
            requests_per_minute=requests,
            tokens_per_minute=tokens,
            tokens_per_day=day_tokens,
            object_tokens_max=object_tokens,
            cached_tokens_max=cached_tokens,
            ttl_seconds_max=ttl_seconds,
        ),
    )


def _live_key_for_update(api_key_id: str) -> ApiKey:
    key = (
        ApiKey.objects.select_for_update(of=("self",), no_key=True)
        .select_related("project")
        .filter(id=api_key_id)
        .first()
    )
    if key is None:
        raise NotFound(f"No API key has the id {api_key_id}")
    if key.revoked_at is not None:
        raise Conflict(f"The API key {api_key_id} was revoked at {key.revoked_at:%Y-%m-%d %H:%M:%S} UTC")
    return key
