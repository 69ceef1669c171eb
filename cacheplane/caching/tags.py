"""Tags: names for cache objects that their owner moves, and a history of them that is never rewritten.

Every change is made under the lock of the organization's billing account, like every change of its objects: so a
name has one owner at a time, an object cannot go while it is being named, and no history runs backwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.db import transaction

from billing import accounts, clock
from cacheplane.access import gates
from cacheplane.access.callers import Caller
from cacheplane.caching.models import TAG_NAME, CacheObject, CacheTag, CacheTagChange
from cacheplane.errors import InvalidRequest, NotFound

NAME_CHARS_MAX = 128
_NAME = re.compile(TAG_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What a tag pointed to, from when to when, and by whose key. `released_at` is None while it still does."""

    version: int
    cache_id: str
    bound_at: datetime
    bound_by: str
    released_at: datetime | None
    released_by: str | None


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def check_name(tag: str, *, field: str) -> None:
    """Raise InvalidRequest, naming `field`, for what cannot be a tag."""
    if not is_name(tag):
        raise InvalidRequest(
            f"Invalid request: {field}: got {tag[:40]!r}, takes a letter and then letters, digits, '_', '-' and "
            f"'.', {NAME_CHARS_MAX} characters at most"
        )


# --- Reading ---------------------------------------------------------------------------------------------------


def get(caller: Caller, tag: str) -> CacheTag:
    """The caller's tag. Raises NotFound."""
    found = CacheTag.objects.of(caller.organization_id).filter(tag=tag).first() if is_name(tag) else None
    if found is None:
        raise _absent(tag)
    return found


def content(caller: Caller, tag: str) -> CacheObject:
    """The object that the caller's tag names. Raises NotFound."""
    if not is_name(tag):
        raise _absent(tag)
    named = CacheObject.objects.of(caller.organization_id).with_what_decides_status()
    row = named.filter(tags__organization_id=caller.organization_id, tags__tag=tag).first()
    if row is None:
        raise _absent(tag)
    return row


def page(
    caller: Caller, *, limit: int, is_descending: bool, after: str | None, before: str | None
) -> list[CacheTag]:
    """At most `limit` tags in the order of their names. A cursor is a name, whether or not a tag bears it."""
    rows = CacheTag.objects.of(caller.organization_id)
    for cursor, field in ((after, "after"), (before, "before")):
        if cursor is not None:
            check_name(cursor, field=field)
    if after is not None:
        rows = rows.filter(tag__lt=after) if is_descending else rows.filter(tag__gt=after)
    if before is not None:
        rows = rows.filter(tag__gt=before) if is_descending else rows.filter(tag__lt=before)
    return list(rows.order_by("-tag" if is_descending else "tag")[:limit])


def history(
    caller: Caller, tag: str, *, limit: int, is_descending: bool, after: int | None, before: int | None
) -> list[Binding]:
    """What the caller's tag has pointed to, by version, also when it is deleted. Raises NotFound for a name that
    was never given."""
    if not is_name(tag):
        raise _absent(tag)
    changes = CacheTagChange.objects.filter(organization_id=caller.organization_id, tag=tag)
    bound = changes.filter(kind=CacheTagChange.BOUND)
    if after is not None:
        bound = bound.filter(version__lt=after) if is_descending else bound.filter(version__gt=after)
    if before is not None:
        bound = bound.filter(version__gt=before) if is_descending else bound.filter(version__lt=before)
    shown = list(bound.order_by("-version" if is_descending else "version")[:limit])
    if not shown and not changes.exists():
        raise _absent(tag)
    released = changes.filter(kind=CacheTagChange.RELEASED, version__in=[change.version for change in shown])
    return _bindings(shown, released)


def _bindings(bound: Sequence[CacheTagChange], released: Iterable[CacheTagChange]) -> list[Binding]:
    ends = {change.version: change for change in released}
    found = []
    for change in bound:
        end = ends.get(change.version)
        found.append(
            Binding(
                version=change.version,
                cache_id=change.cache_id,
                bound_at=change.at,
                bound_by=change.actor,
                released_at=end.at if end is not None else None,
                released_by=end.actor if end is not None else None,
            )
        )
    return found


def _absent(tag: str) -> NotFound:
    return NotFound(f"Not found the tag {tag[:NAME_CHARS_MAX]}")


# --- Changing --------------------------------------------------------------------------------------------------


def bind(caller: Caller, *, tag: str, cache_id: str) -> CacheTag:
    """Give the name to the caller's object; a name that another object bears is moved, in one step.

    Twice is once: a name that the object bears already is left as it is. Raises FeatureClosed, InvalidRequest, and
    NotFound for absent and foreign objects alike.
    """
    gates.require(caller, feature=gates.CONTEXT_CACHING, at=clock.now())
    check_name(tag, field="tag")
    with transaction.atomic():
        account = accounts.lock(caller.organization_id)
        if not CacheObject.objects.of(caller.organization_id).filter(id=cache_id).exists():
            raise NotFound(f"Not found the cache object {cache_id[:64]}")
        return point(
            caller.organization_id, tag, cache_id=cache_id, at=account.locked_at, actor=caller.api_key_id
        )


def point(organization_id: str, tag: str, *, cache_id: str, at: datetime, actor: str) -> CacheTag:
    """The same inside the caller's transaction: the account is locked, the object is its organization's."""
    known = CacheTag.objects.of(organization_id).filter(tag=tag).first()
    if known is not None and known.cache_object_id == cache_id:
        return known
    if known is None:
        _require_room(organization_id)
        version = _last_version(organization_id, tag) + 1
        known = CacheTag(organization_id=organization_id, tag=tag)
    else:
        _append(CacheTagChange.RELEASED, [known], at=at, actor=actor)
        version = known.version + 1
    known.cache_object_id, known.version, known.created_at = cache_id, version, at
    known.save()
    _append(CacheTagChange.BOUND, [known], at=at, actor=actor)
    return known


def release(caller: Caller, tag: str) -> None:
    """Take the name from whatever bears it; one that nothing bears is no error."""
    if not is_name(tag):
        return
    with transaction.atomic():
        account = accounts.lock(caller.organization_id)
        named = CacheTag.objects.of(caller.organization_id).filter(tag=tag)
        _release(list(named), at=account.locked_at, actor=caller.api_key_id)


def release_all_of(organization_id: str, cache_id: str, *, at: datetime, actor: str) -> None:
    """An object goes, inside the caller's transaction and under the account's lock: its names go with it."""
    named = CacheTag.objects.of(organization_id).filter(cache_object_id=cache_id)
    _release(list(named), at=at, actor=actor)


def _release(named: Sequence[CacheTag], *, at: datetime, actor: str) -> None:
    _append(CacheTagChange.RELEASED, named, at=at, actor=actor)
    CacheTag.objects.filter(id__in=[row.id for row in named]).delete()


def _append(kind: str, named: Iterable[CacheTag], *, at: datetime, actor: str) -> None:
    CacheTagChange.objects.bulk_create(
        CacheTagChange(
            organization_id=row.organization_id,
            tag=row.tag,
            version=row.version,
            kind=kind,
            cache_id=row.cache_object_id,
            at=at,
            actor=actor,
        )
        for row in named
    )


def _last_version(organization_id: str, tag: str) -> int:
    versions = CacheTagChange.objects.filter(organization_id=organization_id, tag=tag).order_by("-version")
    return versions.values_list("version", flat=True).first() or 0


def _require_room(organization_id: str) -> None:
    if CacheTag.objects.of(organization_id).count() >= settings.TAGS_PER_ORGANIZATION_MAX:
        raise InvalidRequest(
            f"Invalid request: tag: got one more, takes {settings.TAGS_PER_ORGANIZATION_MAX} in an organization"
        )
