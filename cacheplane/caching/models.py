"""Cache objects and their life."""

from __future__ import annotations

import uuid
from datetime import datetime

from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models import DateTimeField, ExpressionWrapper, F, Q, Value
from django.db.models.functions import Collate, Now

from billing.budgets import MONTH, TOTAL
from cacheplane.caching import schedules
from cacheplane.caching.schedules import Schedule
from cacheplane.ids import new_id

PENDING, ACTIVE, EXPIRED, ERROR = "pending", "active", "expired", "error"
FIXED, AUTO, SCHEDULED = "fixed", "auto", "schedule"

PAGE_ORDER = Collate("id", "C")
"""What pages of objects are ordered by: ids sort by time."""

TAG_NAME = r"[A-Za-z][A-Za-z0-9_.-]{0,127}"


CLOCK_OFFSET = F("organization__billing_account__clock_offset")
OWN_NOW = ExpressionWrapper(Now() + CLOCK_OFFSET, output_field=DateTimeField())
"""What the clock of a row's organization shows: a sandbox's is ahead."""


def new_cache_id() -> str:
    return new_id("cache")


class CacheObjectQuerySet(models.QuerySet["CacheObject"]):
    def of(self, organization_id: str) -> CacheObjectQuerySet:
        """Where every look-up for a caller starts."""
        return self.filter(organization_id=organization_id)

    def with_what_decides_status(self) -> CacheObjectQuerySet:
        return self.select_related("segment", "organization__billing_account")

    def due(self, at: datetime) -> CacheObjectQuerySet:
        """Stored as alive, but over by its organization's clock or for want of money; `at` is the machine's."""
        own = ExpressionWrapper(Value(at) + CLOCK_OFFSET, output_field=DateTimeField())
        return self.filter(
            Q(status__in=[PENDING, ACTIVE], expired_at__lte=own)
            | Q(status=ACTIVE, organization__billing_account__exhaust_at__lte=own)
            | Q(status=ACTIVE, segment__closed_at__isnull=False)
        )


class CacheObject(models.Model):
    """The `/v1/caching` resource: a prefix that its owner keeps computed until `expired_at`.

    `status` is what was last written; what a reader sees is `status_at(now)`. It is written by `lifecycle` alone.
    """

    STATUSES = [(PENDING, "pending"), (ACTIVE, "active"), (EXPIRED, "expired"), (ERROR, "error")]
    TTL_POLICIES = [(FIXED, "fixed"), (AUTO, "auto"), (SCHEDULED, "schedule")]
    BUDGET_PERIODS = [(MONTH, "month"), (TOTAL, "total")]

    id = models.CharField(primary_key=True, max_length=40, default=new_cache_id, editable=False)
    organization = models.ForeignKey(
        "access.Organization", on_delete=models.PROTECT, related_name="cache_objects"
    )
    project = models.ForeignKey("access.Project", on_delete=models.PROTECT, related_name="cache_objects")
    api_key_id = models.CharField(max_length=40)
    model = models.CharField(max_length=64, help_text="The model family.")
    name = models.CharField(max_length=256, blank=True, default="")
    description = models.CharField(max_length=512, blank=True, default="")
    metadata = models.JSONField(null=True, blank=True)
    messages = models.JSONField()
    tools = models.JSONField(null=True, blank=True)
    message_count = models.PositiveIntegerField()
    digest = models.CharField(max_length=64, help_text="SHA-256 of the canonical messages and tools.")
    tokens = models.PositiveIntegerField()
    created_at = models.DateTimeField()
    expired_at = models.DateTimeField()
    status = models.CharField(max_length=8, choices=STATUSES, default=PENDING)

    activated_at = models.DateTimeField(null=True, blank=True)
    activations = models.PositiveIntegerField(default=0)
    creation_fee_due = models.BooleanField(
        default=True, help_text="False while lost bytes are computed anew."
    )
    hold_reference = models.UUIDField(null=True, blank=True)
    segment = models.ForeignKey(
        "billing.StorageSegment", null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    kv_state = models.OneToOneField(
        "kv.KVState", null=True, blank=True, on_delete=models.PROTECT, related_name="cache_object"
    )

    attempts = models.PositiveIntegerField(default=0)
    fence = models.PositiveIntegerField(default=0)
    lease_owner = models.CharField(max_length=64, blank=True, default="")
    lease_until = models.DateTimeField(null=True, blank=True)
    retry_at = models.DateTimeField(null=True, blank=True)
    prefilled_tokens = models.PositiveIntegerField(default=0)
    error_type = models.CharField(max_length=64, blank=True, default="")
    error_message = models.CharField(max_length=1024, blank=True, default="")

    ttl_policy = models.CharField(
        max_length=8, choices=TTL_POLICIES, default=FIXED, db_default=FIXED, help_text="What decides its end."
    )
    wanted_until = models.DateTimeField(
        null=True, blank=True, help_text="The end that it would have, where its budget ends before that."
    )
    used_at = models.DateTimeField(
        null=True, blank=True, help_text="ttl auto: the use from which its end was reckoned last."
    )
    kept_minutes = models.PositiveIntegerField(
        null=True, blank=True, help_text="ttl auto: minutes beyond that of a use."
    )
    cap_seconds = models.PositiveBigIntegerField(null=True, blank=True)
    cap_at = models.DateTimeField(null=True, blank=True, help_text="ttl auto: no use moves the end beyond.")
    schedule = models.JSONField(null=True, blank=True)
    reopen_at = models.DateTimeField(
        null=True, blank=True, help_text="When it is computed again, ahead of its next opening."
    )
    precompute_seconds = models.PositiveIntegerField(
        null=True, blank=True, help_text="How long its last precompute took, where it has a schedule."
    )
    budget_amount = models.DecimalField(max_digits=24, decimal_places=9, null=True, blank=True)
    budget_per = models.CharField(max_length=5, choices=BUDGET_PERIODS, blank=True, default="", db_default="")

    objects = CacheObjectQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            # In a collation that the primary key has not, so that no page is read from the key instead, past the
            # objects of everybody else.
            models.Index(F("organization"), PAGE_ORDER.desc(), name="cache_pages"),
            GinIndex(fields=["metadata"], name="cache_by_metadata", opclasses=["jsonb_path_ops"]),
            models.Index(fields=["organization", "digest"], name="cache_by_digest"),
            models.Index(fields=["created_at"], condition=Q(status=PENDING), name="cache_pending"),
            models.Index(
                fields=["expired_at"], condition=Q(status__in=[PENDING, ACTIVE]), name="cache_expiring"
            ),
            models.Index(fields=["reopen_at"], condition=Q(reopen_at__isnull=False), name="cache_reopening"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=~Q(status=ACTIVE)
                | Q(kv_state__isnull=False, segment__isnull=False, activated_at__isnull=False),
                name="active_has_kv_and_segment",
            ),
            models.CheckConstraint(
                condition=Q(status=ACTIVE) | Q(kv_state__isnull=True), name="only_active_has_kv"
            ),
            models.CheckConstraint(
                condition=~Q(status__in=[EXPIRED, ERROR]) | Q(hold_reference__isnull=True),
                name="ended_has_no_hold",
            ),
            models.CheckConstraint(
                condition=~Q(ttl_policy=AUTO) | Q(cap_seconds__isnull=False, cap_at__isnull=False),
                name="auto_has_a_cap",
            ),
            models.CheckConstraint(
                condition=Q(ttl_policy=SCHEDULED, schedule__isnull=False, reopen_at__isnull=False)
                | (~Q(ttl_policy=SCHEDULED) & Q(schedule__isnull=True, reopen_at__isnull=True)),
                name="schedule_has_windows",
            ),
            models.CheckConstraint(
                condition=Q(budget_amount__isnull=True, budget_per="")
                | Q(budget_amount__gt=0, budget_per__in=[MONTH, TOTAL]),
                name="budget_has_amount_and_period",
            ),
        ]

    def __str__(self) -> str:
        return self.id

    def status_at(self, at: datetime) -> str:
        """The status that a reader sees at `at`: a late sweep never makes an ended object look alive."""
        if self.status == PENDING:
            return PENDING if at < self.expired_at else EXPIRED
        if self.status == ACTIVE:
            return ACTIVE if self.ends_at(at) > at else EXPIRED
        return self.status

    def ends_at(self, at: datetime) -> datetime:
        """The first instant at which an active object no longer is: its time, or its owner's money, is over."""
        assert self.segment is not None
        if self.segment.closed_at is not None:
            return min(self.segment.closed_at, at)
        exhaust_at = self.organization.billing_account.exhaust_at
        return self.expired_at if exhaust_at is None else min(self.expired_at, exhaust_at)

    @property
    def windows(self) -> Schedule:
        """Its schedule. Only for an object that has one."""
        assert self.schedule is not None
        return schedules.read(schedules.as_written(self.schedule))


class CacheObjectEvent(models.Model):
    """One thing that happened to a cache object. Kept when the object is gone; it holds no text of its messages."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    cache_id = models.CharField(max_length=40)
    organization = models.ForeignKey(
        "access.Organization", on_delete=models.PROTECT, related_name="cache_events"
    )
    kind = models.CharField(max_length=16)
    at = models.DateTimeField()
    actor = models.CharField(
        max_length=128, help_text="A key's id, an operator's name, or the part of the system."
    )
    detail = models.JSONField(default=dict)

    class Meta:
        ordering = ["at"]
        indexes = [models.Index(fields=["cache_id", "at"], name="events_of_object")]

    def __str__(self) -> str:
        return f"{self.cache_id} {self.kind}"


class OrganizationBudget(models.Model):
    """What all creations and all storage of an organization may cost. Set by an operator; see `changes`."""

    organization = models.OneToOneField(
        "access.Organization", primary_key=True, on_delete=models.PROTECT, related_name="cache_budget"
    )
    amount = models.DecimalField(max_digits=24, decimal_places=9)
    per = models.CharField(max_length=5, choices=CacheObject.BUDGET_PERIODS)
    set_at = models.DateTimeField()
    set_by = models.CharField(max_length=128)

    class Meta:
        ordering = ["organization"]
        constraints = [
            models.CheckConstraint(
                condition=Q(amount__gt=0, per__in=[MONTH, TOTAL]), name="organization_budget_is_one"
            )
        ]

    def __str__(self) -> str:
        return f"{self.amount} {self.per}"


class PrecomputeTurn(models.Model):
    """When a worker last took up an object of an organization: the one for which that is longest ago comes next."""

    organization = models.OneToOneField(
        "access.Organization", primary_key=True, on_delete=models.PROTECT, related_name="precompute_turn"
    )
    taken_at = models.DateTimeField()

    class Meta:
        ordering = ["-taken_at"]

    def __str__(self) -> str:
        return f"{self.organization_id} {self.taken_at:%Y-%m-%d %H:%M:%S}"


class CacheTagQuerySet(models.QuerySet["CacheTag"]):
    def of(self, organization_id: str) -> CacheTagQuerySet:
        """Where every look-up for a caller starts."""
        return self.filter(organization_id=organization_id)


class CacheTag(models.Model):
    """A name that an organization gives to one of its cache objects, and moves to another when it likes."""

    organization = models.ForeignKey(
        "access.Organization", on_delete=models.PROTECT, related_name="cache_tags"
    )
    # By bytes, so that pages are in one order whatever the database's language.
    tag = models.CharField(max_length=128, db_collation="C")
    cache_object = models.ForeignKey(CacheObject, on_delete=models.CASCADE, related_name="tags")
    version = models.PositiveBigIntegerField(
        help_text="How many times the name has been bound, this included."
    )
    created_at = models.DateTimeField(help_text="Since when it names this object.")

    objects = CacheTagQuerySet.as_manager()

    class Meta:
        ordering = ["tag"]
        constraints = [
            models.UniqueConstraint(fields=["organization", "tag"], name="one_tag_of_a_name"),
            models.CheckConstraint(condition=Q(tag__regex=f"^{TAG_NAME}$"), name="tag_is_well_formed"),
        ]

    def __str__(self) -> str:
        return f"{self.tag} → {self.cache_object_id}"


class CacheTagChange(models.Model):
    """A tag was bound to an object, or released from it. Appended; the database refuses to change or delete one.

    The versions of a tag count its bindings, without a gap, and go on when the name is deleted and given again.
    """

    BOUND, RELEASED = "bound", "released"
    KINDS = [(BOUND, "bound"), (RELEASED, "released")]

    organization = models.ForeignKey(
        "access.Organization", on_delete=models.PROTECT, related_name="cache_tag_changes"
    )
    tag = models.CharField(max_length=128, db_collation="C")
    version = models.PositiveBigIntegerField()
    kind = models.CharField(max_length=8, choices=KINDS)
    cache_id = models.CharField(max_length=40)
    at = models.DateTimeField()
    actor = models.CharField(
        max_length=128, help_text="A key's id, an operator's name, or the part of the system."
    )

    class Meta:
        ordering = ["organization", "tag", "version", "kind"]
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "tag", "version", "kind"], name="each_version_bound_and_released_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.tag} {self.version} {self.kind}"


class IdempotencyKey(models.Model):
    """Which object a creation with this key has made. It outlives the object, so that a late repetition, which may
    come after the deletion, creates nothing."""

    organization = models.ForeignKey(
        "access.Organization", on_delete=models.PROTECT, related_name="idempotency_keys"
    )
    key = models.CharField(max_length=255, db_collation="C")
    body_digest = models.CharField(max_length=64)
    cache_id = models.CharField(max_length=40)
    created_at = models.DateTimeField()

    class Meta:
        ordering = ["-created_at"]
        indexes = [models.Index(fields=["organization", "created_at"], name="keys_by_age")]
        constraints = [models.UniqueConstraint(fields=["organization", "key"], name="one_creation_per_key")]

    def __str__(self) -> str:
        return f"{self.key} → {self.cache_id}"
