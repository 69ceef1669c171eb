"""What organizations are told, where to, and what became of it."""

from __future__ import annotations

import secrets
from datetime import datetime
from decimal import Decimal

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q

from cacheplane.ids import new_id

CACHE_ACTIVE, CACHE_ERROR = "cache.active", "cache.error"
CACHE_EXPIRING, CACHE_EXPIRED, CACHE_DELETED = "cache.expiring", "cache.expired", "cache.deleted"
BALANCE_LOW = "balance.low"
EVENT_TYPES = (CACHE_ACTIVE, CACHE_ERROR, CACHE_EXPIRING, CACHE_EXPIRED, CACHE_DELETED, BALANCE_LOW)
TEST = "webhook.test"

URL_CHARS_MAX, DESCRIPTION_CHARS_MAX = 2048, 512
EXPIRING_LEAD_SECONDS_DEFAULT = 300
BALANCE_THRESHOLD_DEFAULT = Decimal(10)

PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"


def new_endpoint_id() -> str:
    return new_id("we")


def new_event_id() -> str:
    return new_id("evt")


def new_delivery_id() -> str:
    return new_id("whd")


def new_salt() -> str:
    return secrets.token_hex(16)


class WebhookEndpointQuerySet(models.QuerySet["WebhookEndpoint"]):
    def of(self, organization_id: str) -> WebhookEndpointQuerySet:
        """Where every look-up for a caller starts."""
        return self.filter(organization_id=organization_id)

    def listening_for(self, event_type: str) -> WebhookEndpointQuerySet:
        return self.filter(disabled_at__isnull=True, events__contains=[event_type])


class WebhookEndpoint(models.Model):
    """Where an organization wants to be told. Its signing secret is derived from the salt, and stored nowhere."""

    id = models.CharField(primary_key=True, max_length=32, default=new_endpoint_id, editable=False)
    organization = models.ForeignKey(
        "access.Organization", on_delete=models.PROTECT, related_name="webhook_endpoints"
    )
    url = models.CharField(max_length=URL_CHARS_MAX)
    description = models.CharField(max_length=DESCRIPTION_CHARS_MAX, blank=True, default="")
    events = ArrayField(models.CharField(max_length=32))
    expiring_lead_seconds = models.PositiveIntegerField(
        default=EXPIRING_LEAD_SECONDS_DEFAULT, help_text="How long before its end an object is told of."
    )
    balance_threshold = models.DecimalField(
        max_digits=24,
        decimal_places=9,
        default=BALANCE_THRESHOLD_DEFAULT,
        help_text="What is available below this is told of.",
    )
    created_at = models.DateTimeField()
    created_by = models.CharField(max_length=150, help_text="A key's id, or an operator's name.")
    disabled_at = models.DateTimeField(null=True, blank=True)
    disabled_reason = models.CharField(max_length=200, blank=True, default="")
    failing_since = models.DateTimeField(
        null=True, blank=True, help_text="The first failure since the last success."
    )
    balance_low_at = models.DateTimeField(
        null=True, blank=True, help_text="Told, and not above the threshold again since."
    )
    secret_salt = models.CharField(max_length=32, default=new_salt, editable=False)
    previous_secret_salt = models.CharField(max_length=32, blank=True, default="", editable=False)
    previous_secret_until = models.DateTimeField(null=True, blank=True, editable=False)

    objects = WebhookEndpointQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [models.Index(fields=["organization", "-id"], name="endpoints_by_organization")]
        constraints = [
            models.CheckConstraint(
                name="endpoint_threshold_not_negative", condition=Q(balance_threshold__gte=0)
            ),
        ]

    def __str__(self) -> str:
        return self.id

    def salts_at(self, at: datetime) -> list[str]:
        """Of all secrets that sign at `at`: after a rotation the old one goes on for a while."""
        until = self.previous_secret_until
        return [self.secret_salt] + ([self.previous_secret_salt] if until is not None and until > at else [])


class OutboxEvent(models.Model):
    """One thing to tell, written in the transaction of what it tells of. Its id is the `webhook-id`."""

    id = models.CharField(primary_key=True, max_length=32, default=new_event_id, editable=False)
    organization = models.ForeignKey(
        "access.Organization", on_delete=models.PROTECT, related_name="outbox_events"
    )
    type = models.CharField(max_length=32)
    subject = models.CharField(max_length=64, help_text="The id of what it is about.")
    at = models.DateTimeField(db_index=True)
    data = models.JSONField(default=dict)

    class Meta:
        ordering = ["-at", "-id"]

    def __str__(self) -> str:
        return f"{self.type} {self.id}"


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    def of(self, organization_id: str) -> DeliveryQuerySet:
        return self.filter(endpoint__organization_id=organization_id)


class Delivery(models.Model):
    """One event on its way to one endpoint. While it is being sent, `next_at` is the end of the sender's lease."""

    STATES = [(PENDING, "pending"), (DELIVERED, "delivered"), (FAILED, "failed")]

    id = models.CharField(primary_key=True, max_length=32, default=new_delivery_id, editable=False)
    event = models.ForeignKey(OutboxEvent, on_delete=models.CASCADE, related_name="deliveries")
    endpoint = models.ForeignKey(WebhookEndpoint, on_delete=models.CASCADE, related_name="deliveries")
    state = models.CharField(max_length=9, choices=STATES, default=PENDING)
    created_at = models.DateTimeField()
    next_at = models.DateTimeField(null=True, blank=True)
    tries = models.PositiveIntegerField(
        default=0, help_text="Since it was made, or sent again by an operator."
    )
    fence = models.PositiveIntegerField(default=0)
    delivered_at = models.DateTimeField(null=True, blank=True)

    objects = DeliveryQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        verbose_name_plural = "deliveries"
        indexes = [
            models.Index(fields=["endpoint", "next_at"], condition=Q(state=PENDING), name="deliveries_due"),
            models.Index(fields=["next_at"], condition=Q(state=PENDING), name="deliveries_by_time"),
            models.Index(fields=["endpoint", "-id"], name="deliveries_of_endpoint"),
        ]
        constraints = [
            models.UniqueConstraint(name="event_once_per_endpoint", fields=["event", "endpoint"]),
            models.CheckConstraint(
                name="pending_has_a_time", condition=~Q(state=PENDING) | Q(next_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return self.id


class DeliveryAttempt(models.Model):
    """One request to an endpoint. What the endpoint said beyond its status is not kept."""

    delivery = models.ForeignKey(Delivery, on_delete=models.CASCADE, related_name="attempts")
    at = models.DateTimeField()
    duration_ms = models.PositiveIntegerField()
    http_status = models.PositiveIntegerField(null=True, blank=True)
    error = models.CharField(max_length=64, blank=True, default="")

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.delivery_id} {self.http_status or self.error}"


class ExpiringNotice(models.Model):
    """An endpoint was told that an object ends soon. Gone once the object ends, or ends later than soon."""

    endpoint = models.ForeignKey(WebhookEndpoint, on_delete=models.CASCADE, related_name="expiring_notices")
    cache_id = models.CharField(max_length=40)
    at = models.DateTimeField()

    class Meta:
        ordering = ["-at"]
        constraints = [models.UniqueConstraint(name="expiring_told_once", fields=["endpoint", "cache_id"])]

    def __str__(self) -> str:
        return f"{self.endpoint_id} {self.cache_id}"
