"""KV states: what was computed for whom, and where its bytes lie."""

from __future__ import annotations

import uuid

from django.db import models


class KVState(models.Model):
    """Saved attention keys and values of one prefix, as a file on an engine's disk.

    It belongs to one organization and is never shared, not even for equal texts. `proved_at` is the last instant at
    which its bytes were seen to be whole. A doomed state is never served again; a job destroys its bytes.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    organization = models.ForeignKey(
        "access.Organization", on_delete=models.PROTECT, related_name="kv_states"
    )
    engine = models.ForeignKey("engines.Engine", on_delete=models.PROTECT, related_name="kv_states")
    filename = models.CharField(max_length=255, unique=True)
    n_tokens = models.PositiveIntegerField()
    size_bytes = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    blake3 = models.CharField(max_length=64)
    fingerprint = models.CharField(max_length=64)
    created_at = models.DateTimeField()
    proved_at = models.DateTimeField()
    doomed_at = models.DateTimeField(null=True, blank=True, db_index=True)

    class Meta:
        verbose_name = "KV state"

    def __str__(self) -> str:
        return str(self.id)
