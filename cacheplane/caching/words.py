"""The words for an object's status that callers see: ours, or those of the reference of 2024."""

from __future__ import annotations

from django.conf import settings

from cacheplane.caching.models import ACTIVE, EXPIRED

REFERENCE = {ACTIVE: "ready", EXPIRED: "inactive"}


def word_for(status: str) -> str:
    return REFERENCE.get(status, status) if settings.CACHE_STATUS_WORDS == "reference" else status
