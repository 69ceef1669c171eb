"""Who calls, and how much they may."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Func, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone

from cacheplane.ids import new_id


def new_organization_id() -> str:
    return new_id("org")


def new_project_id() -> str:
    return new_id("proj")


def new_api_key_id() -> str:
    return new_id("ak")


class ClockTimestamp(Func):
    """The database's clock as it goes on within a transaction, which `Now` does not."""

    function = "clock_timestamp"
    output_field = models.DateTimeField()


class Tier(models.Model):
    """An access level. It is earned by cash recharged in total; vouchers do not count."""

    slug = models.SlugField(primary_key=True, max_length=32)
    rank = models.PositiveSmallIntegerField(unique=True, help_text="A higher rank may do more.")
    recharged_from = models.DecimalField(
        max_digits=24,
        decimal_places=9,
        help_text="¥ recharged in cash, in total, from which the tier is earned.",
    )
    recharged_from_usd = models.DecimalField(
        max_digits=24,
        decimal_places=9,
        null=True,
        blank=True,
        help_text="The same in $, for who pays in $. Empty: it is not earned in $.",
    )
    concurrency = models.PositiveIntegerField(help_text="Calls in flight at once.")
    requests_per_minute = models.PositiveIntegerField()
    tokens_per_minute = models.PositiveBigIntegerField()
    tokens_per_day = models.PositiveBigIntegerField(null=True, blank=True, help_text="Empty: unlimited.")
    object_tokens_max = models.PositiveBigIntegerField(
        default=131_072, help_text="Tokens in one cache object at most."
    )
    cached_tokens_max = models.PositiveBigIntegerField(
        default=1_000_000, help_text="Tokens in all cache objects of an organization at most."
    )
    ttl_seconds_max = models.PositiveBigIntegerField(
        default=30 * 86_400, help_text="Longest lifetime of a cache object, in seconds."
    )

    class Meta:
        ordering = ["rank"]
        constraints = [
            models.CheckConstraint(
                name="tier_limits_are_positive",
                condition=Q(concurrency__gt=0, requests_per_minute__gt=0, tokens_per_minute__gt=0),
            ),
            models.CheckConstraint(
                name="tier_recharged_from_not_negative", condition=Q(recharged_from__gte=0)
            ),
            models.CheckConstraint(
                name="tier_recharged_from_usd_not_negative",
                condition=Q(recharged_from_usd__isnull=True) | Q(recharged_from_usd__gte=0),
            ),
        ]

    def __str__(self) -> str:
        return self.slug


class OrganizationQuerySet(models.QuerySet["Organization"]):
    def with_tier_now(self) -> OrganizationQuerySet:
        """`tier_now`: the slug of the tier in force, by the database's clock. `api_keys` asks the same in SQL."""
        given = TierOverride.objects.filter(organization_id=OuterRef("id")).in_force().values("tier_id")[:1]
        return self.annotate(
            tier_now=Coalesce(Subquery(given), F("tier_id"), output_field=models.CharField())
        )


class Organization(models.Model):
    """The paying tenant. Limits, money and isolation hold per organization.

    `tier` is what its recharges have earned; while an override is in force, that one's tier holds instead.
    """

    class Kind(models.TextChoices):
        STANDARD = "standard"
        SANDBOX = "sandbox"

    class State(models.TextChoices):
        ACTIVE = "active"
        SUSPENDED = "suspended"

    id = models.CharField(primary_key=True, max_length=32, default=new_organization_id, editable=False)
    name = models.CharField(max_length=200)
    tier = models.ForeignKey(
        Tier, on_delete=models.PROTECT, related_name="organizations", help_text="Earned by recharges."
    )
    kind = models.CharField(max_length=16, choices=Kind.choices, default=Kind.STANDARD)
    state = models.CharField(max_length=16, choices=State.choices, default=State.ACTIVE)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = OrganizationQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.CheckConstraint(
                name="organization_kind_known", condition=Q(kind__in=["standard", "sandbox"])
            ),
            models.CheckConstraint(
                name="organization_state_known", condition=Q(state__in=["active", "suspended"])
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"


class TierOverrideQuerySet(models.QuerySet["TierOverride"]):
    def in_force(self) -> TierOverrideQuerySet:
        """By the database's clock, the latest word first."""
        return self.filter(Q(ends_at__isnull=True) | Q(ends_at__gt=ClockTimestamp())).order_by("-id")


class TierOverride(models.Model):
    """Another tier than the one earned, until `ends_at` (empty: until it is ended). Ended, never deleted."""

    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="tier_overrides")
    tier = models.ForeignKey(Tier, on_delete=models.PROTECT, related_name="overrides")
    ends_at = models.DateTimeField(null=True, blank=True)
    reason = models.CharField(max_length=500)
    created_by = models.CharField(max_length=150)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = TierOverrideQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(name="tier_override_has_a_reason", condition=~Q(reason="")),
        ]

    def __str__(self) -> str:
        until = f"until {self.ends_at:%Y-%m-%d %H:%M} UTC" if self.ends_at else "for good"
        return f"{self.tier_id} {until}"


class Project(models.Model):
    """A workspace in an organization: the scope of keys and cache objects."""

    id = models.CharField(primary_key=True, max_length=32, default=new_project_id, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="projects")
    name = models.CharField(max_length=200, default="default")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(name="project_name_once", fields=["organization", "name"]),
            # What an API key's (project, organization) pair points at: see migration 0002.
            models.UniqueConstraint(name="project_with_organization", fields=["id", "organization"]),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"


class ApiKey(models.Model):
    """A caller's credential. The secret itself is shown once and stored nowhere: `digest` proves it."""

    id = models.CharField(primary_key=True, max_length=32, default=new_api_key_id, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="api_keys")
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="api_keys")
    name = models.CharField(max_length=200, default="default")
    digest = models.CharField(max_length=64, unique=True, editable=False)
    hint = models.CharField(max_length=4, editable=False, help_text="The secret's last four characters.")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_used_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="To the minute: not written on every call."
    )

    class Meta:
        ordering = ["-created_at"]
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"


class FeatureGate(models.Model):
    """A feature that is not open to all. Without an opening or an entry it is closed."""

    slug = models.SlugField(primary_key=True, max_length=64)
    description = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.slug


class FeatureOpening(models.Model):
    """From `opens_at` on, every organization of at least this tier may use the feature."""

    gate = models.ForeignKey(FeatureGate, on_delete=models.CASCADE, related_name="openings")
    minimum_tier = models.ForeignKey(Tier, on_delete=models.PROTECT, related_name="feature_openings")
    opens_at = models.DateTimeField()

    class Meta:
        ordering = ["gate", "opens_at"]
        constraints = [models.UniqueConstraint(name="one_opening_per_tier", fields=["gate", "minimum_tier"])]

    def __str__(self) -> str:
        return f"{self.gate_id} from {self.minimum_tier_id} on {self.opens_at:%Y-%m-%d %H:%M %Z}"


class FeatureGateEntry(models.Model):
    """One organization let in, or kept out, until `ends_at` (empty: for good). Ended, never deleted."""

    gate = models.ForeignKey(FeatureGate, on_delete=models.PROTECT, related_name="entries")
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="gate_entries")
    admits = models.BooleanField(help_text="Let in; otherwise kept out. Kept out beats let in.")
    ends_at = models.DateTimeField(null=True, blank=True)
    reason = models.CharField(max_length=500)
    created_by = models.CharField(max_length=150)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["-created_at"]
        verbose_name_plural = "feature gate entries"
        indexes = [models.Index(name="gate_entry_lookup", fields=["organization", "gate"])]
        constraints = [
            models.CheckConstraint(name="gate_entry_has_a_reason", condition=~Q(reason="")),
        ]

    def __str__(self) -> str:
        return f"{self.gate_id}: {self.organization_id} {'let in' if self.admits else 'kept out'}"


class RateState(models.Model):
    """What an organization has used of its limits. One row decides admission for all processes at once.

    The two levels are leaky buckets: they fill by what is admitted and leak by the tier's limit per minute.
    `day` is a calendar day of UTC+8 (Beijing time): the contract does not say; its callers live there.
    """

    organization = models.OneToOneField(
        Organization, on_delete=models.CASCADE, primary_key=True, related_name="rate_state"
    )
    in_flight = models.IntegerField(default=0, db_default=0)
    requests_level = models.FloatField(default=0, db_default=0)
    tokens_level = models.FloatField(default=0, db_default=0)
    levels_at = models.DateTimeField(default=timezone.now)
    day = models.DateField()
    day_tokens = models.BigIntegerField(default=0, db_default=0)

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="rate_state_never_negative",
                condition=Q(in_flight__gte=0, requests_level__gte=0, tokens_level__gte=0, day_tokens__gte=0),
            ),
        ]

    def __str__(self) -> str:
        return f"rate state of {self.organization_id}"


class Gateway(models.Model):
    """One web process that serves calls. When its heartbeat stops, its calls in flight are reaped."""

    id = models.UUIDField(primary_key=True)
    host = models.CharField(max_length=255)
    pid = models.IntegerField()
    started_at = models.DateTimeField(default=timezone.now)
    heartbeat_at = models.DateTimeField()

    class Meta:
        ordering = ["-heartbeat_at"]

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


class CallInFlight(models.Model):
    """A call that was admitted and has not ended. The id is the call's own."""

    id = models.UUIDField(primary_key=True)
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="calls_in_flight")
    # No foreign key: a gateway's first call may come before its first heartbeat.
    gateway_id = models.UUIDField(db_index=True)
    tokens_reserved = models.PositiveBigIntegerField()
    started_at = models.DateTimeField()

    class Meta:
        ordering = ["started_at"]
        verbose_name_plural = "calls in flight"

    def __str__(self) -> str:
        return str(self.id)


class AuditEntry(models.Model):
    """What an operator did, and why. Appended; the database refuses to change or delete one."""

    at = models.DateTimeField(default=timezone.now, db_index=True)
    operator = models.CharField(max_length=150)
    action = models.CharField(max_length=64, db_index=True, help_text="Noun and verb: api_key.revoke")
    subject = models.CharField(max_length=128, db_index=True, help_text="The id of what was acted on.")
    organization = models.ForeignKey(
        Organization, null=True, blank=True, on_delete=models.PROTECT, related_name="audit_entries"
    )
    reason = models.CharField(max_length=500, blank=True)
    detail = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering = ["-at", "-id"]
        verbose_name_plural = "audit entries"
        constraints = [models.CheckConstraint(name="audit_entry_has_an_operator", condition=~Q(operator=""))]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S} {self.operator} {self.action} {self.subject}"
