"""Engines, their slots, and the model names that they serve."""

from __future__ import annotations

from django.db import models
from django.utils import timezone


class Engine(models.Model):
    """A running inference server. What it said of itself was proved by a probe when it was registered."""

    name = models.CharField(max_length=64, unique=True)
    kind = models.CharField(max_length=32)
    url = models.URLField(max_length=512)
    kv_dir = models.CharField(
        max_length=1024, help_text="The folder of saved KV states, as this host sees it."
    )
    model = models.CharField(max_length=512)
    build = models.CharField(max_length=128)
    fingerprint = models.CharField(max_length=64, help_text="A KV state of another fingerprint is a miss.")
    total_slots = models.PositiveIntegerField()
    window_tokens = models.PositiveIntegerField(help_text="Context window of one slot.")
    persist = models.BooleanField(help_text="Save, restore and reuse were seen to work.")
    is_draining = models.BooleanField(default=False, help_text="No new call or precompute goes here.")
    registered_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return self.name


class EngineSlot(models.Model):
    """One sequence of an engine. It serves one call at a time: a lease says whose, `resident` says what it holds."""

    engine = models.ForeignKey(Engine, on_delete=models.CASCADE, related_name="slots")
    index = models.PositiveIntegerField()
    lease_owner = models.CharField(max_length=64, blank=True, default="")
    lease_until = models.DateTimeField(null=True, blank=True)
    resident = models.UUIDField(null=True, blank=True, help_text="The KV state whose prefix the slot holds.")
    resident_organization = models.CharField(max_length=40, blank=True, default="")
    last_used_at = models.DateTimeField(null=True, blank=True)
    wanted_until = models.DateTimeField(
        null=True, blank=True, help_text="Calls leave the slot to a precompute that waits for it."
    )
    wanted_by = models.CharField(max_length=64, blank=True, default="")

    class Meta:
        ordering = ["engine_id", "index"]
        constraints = [models.UniqueConstraint(fields=["engine", "index"], name="one_row_per_slot")]

    def __str__(self) -> str:
        return f"{self.engine_id}/{self.index}"


class ModelFamily(models.Model):
    """Model names that share cache objects, because one engine with one model computes for all of them."""

    name = models.CharField(max_length=64, primary_key=True)
    engine = models.ForeignKey(
        Engine,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="families",
        help_text="Without one, calls of this family are told that none serves it.",
    )

    class Meta:
        ordering = ["name"]
        verbose_name_plural = "model families"

    def __str__(self) -> str:
        return self.name


class ServedModel(models.Model):
    """A model name that callers may ask for. Names of one family share cache objects and differ in their window."""

    name = models.CharField(max_length=64, primary_key=True)
    family = models.ForeignKey(
        ModelFamily, on_delete=models.PROTECT, db_column="family", related_name="served_models"
    )
    window_tokens = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text="Without one, the name stands for its family's smallest window that a call fits.",
    )
    owned_by = models.CharField(max_length=64, default="cacheplane")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["family", "window_tokens"]

    def __str__(self) -> str:
        return self.name
