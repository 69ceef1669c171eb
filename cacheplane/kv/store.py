"""Where the bytes of KV states lie, how many may lie there, and how they are destroyed.

A state is doomed inside the transaction that ends its object; its bytes go afterwards, by a job that may run twice,
late, or on two workers at once.
"""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from django.conf import settings
from django.db.models import Sum

from cacheplane.errors import KVStoreFull
from cacheplane.kv.models import KVState

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedKV:
    """What a prefill left on the disk, ready to be recorded: the engine's handle without the engine's words.

    `prefill_ms` is how long the engine worked on it, as the worker measured it; None: not measured.
    """

    engine_id: int
    filename: str
    n_tokens: int
    size_bytes: int
    sha256: str
    blake3: str
    fingerprint: str
    prefill_ms: int | None = None


def filename_for(*, cache_id: str, fence: int) -> str:
    """The fence is in the name, so that a zombie's bytes can never be taken for those of a later attempt."""
    return f"{cache_id}.{fence}.{uuid.uuid4().hex[:8]}.kv"


def record(saved: SavedKV, *, organization_id: str, at: datetime) -> KVState:
    return KVState.objects.create(
        organization_id=organization_id,
        engine_id=saved.engine_id,
        filename=saved.filename,
        n_tokens=saved.n_tokens,
        size_bytes=saved.size_bytes,
        sha256=saved.sha256,
        blake3=saved.blake3,
        fingerprint=saved.fingerprint,
        created_at=at,
        proved_at=at,
    )


def doom(kv_id: uuid.UUID, *, at: datetime) -> None:
    KVState.objects.filter(id=kv_id, doomed_at__isnull=True).update(doomed_at=at)


def mark_proved(kv_id: uuid.UUID, *, at: datetime) -> None:
    """The bytes were seen whole at `at`; storage is never billed past the last proof when they are found lost."""
    KVState.objects.filter(id=kv_id, proved_at__lt=at).update(proved_at=at)


def require_space(*, engine_id: int, kv_dir: Path, expected_bytes: int) -> None:
    """Raise KVStoreFull when `expected_bytes` more would pass the quota or eat the disk's reserve."""
    free = shutil.disk_usage(kv_dir).free if kv_dir.is_dir() else None
    if free is not None and free - expected_bytes < settings.KV_DISK_RESERVE_BYTES:
        raise KVStoreFull(
            f"The engine's disk has {free} bytes free; {expected_bytes} are needed beside the reserve of "
            f"{settings.KV_DISK_RESERVE_BYTES}."
        )
    if settings.KV_QUOTA_BYTES:
        used = KVState.objects.filter(engine_id=engine_id).aggregate(sum=Sum("size_bytes"))["sum"] or 0
        if used + expected_bytes > settings.KV_QUOTA_BYTES:
            raise KVStoreFull(f"KV states take {used} of {settings.KV_QUOTA_BYTES} bytes (KV_QUOTA_BYTES).")


def expected_bytes(*, engine_id: int, n_tokens: int) -> int:
    """A guess from the newest state of this engine; 0 when there is none to learn from."""
    newest = KVState.objects.filter(engine_id=engine_id).order_by("-created_at").first()
    return 0 if newest is None or not newest.n_tokens else newest.size_bytes * n_tokens // newest.n_tokens


def orphans(*, kv_dir: Path, older_than: timedelta, at: datetime) -> list[str]:
    """Files on the disk that no state names: a killed save, a zombie's bytes. Young ones may still be in the making."""
    if not kv_dir.is_dir():
        return []
    limit = (at - older_than).timestamp()
    found: list[str] = []
    with os.scandir(kv_dir) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False) and ".kv" in entry.name and entry.stat().st_mtime < limit:
                found.append(entry.name)
    known = set(KVState.objects.filter(filename__in=found).values_list("filename", flat=True))
    return [name for name in found if name not in known]
