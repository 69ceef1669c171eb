"""The tables of billing. Written by the rooms named in each docstring; the database repeats their rules."""

from __future__ import annotations

import uuid
from datetime import timedelta
from decimal import Decimal
from typing import ClassVar

from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Abs, Now

from billing import chain
from billing.chain import ChainedEntry

SYSTEM_NAMESPACE = uuid.UUID("5f0c0d3a-9d2b-5f0e-8f0a-1d1f6f1d6b10")
"""System accounts have ids made from their name, so that posting needs no look-up."""

CURRENCIES = [("CNY", "CNY"), ("USD", "USD")]


class Meter(models.TextChoices):
    CREATION = "creation", "Creation"
    STORAGE = "storage", "Storage"
    CALL = "call", "Call on a cache object"
    PROMPT = "prompt", "Prompt tokens"
    COMPLETION = "completion", "Completion tokens"


class AccountKind(models.TextChoices):
    CASH = "cash", "Cash purse"
    VOUCHER = "voucher", "Voucher purse"
    FUNDING_CASH = "funding_cash", "Cash received"
    FUNDING_VOUCHER = "funding_voucher", "Vouchers issued"
    REVENUE_CREATION = "revenue_creation", "Revenue: creation"
    REVENUE_STORAGE = "revenue_storage", "Revenue: storage"
    REVENUE_CALL = "revenue_call", "Revenue: calls"
    REVENUE_TOKENS = "revenue_tokens", "Revenue: tokens"
    WAIVED = "waived", "Waived"


PURSE_KINDS = (AccountKind.VOUCHER, AccountKind.CASH)
SYSTEM_KINDS = tuple(kind for kind in AccountKind if kind not in PURSE_KINDS)

REVENUE_OF_METER = {
    Meter.CREATION: AccountKind.REVENUE_CREATION,
    Meter.STORAGE: AccountKind.REVENUE_STORAGE,
    Meter.CALL: AccountKind.REVENUE_CALL,
    Meter.PROMPT: AccountKind.REVENUE_TOKENS,
    Meter.COMPLETION: AccountKind.REVENUE_TOKENS,
}


def system_account_id(kind: str, currency: str) -> uuid.UUID:
    return uuid.uuid5(SYSTEM_NAMESPACE, f"{kind}:{currency}")


def money_field(**options: object) -> models.DecimalField[Decimal, Decimal]:
    return models.DecimalField(max_digits=24, decimal_places=9, **options)  # type: ignore[arg-type]


class BillingAccount(models.Model):
    """One organization's money as a whole. This row is the lock that every change of its money takes first."""

    organization = models.OneToOneField(
        "access.Organization", primary_key=True, on_delete=models.PROTECT, related_name="billing_account"
    )
    currency = models.CharField(max_length=3, choices=CURRENCIES, default="CNY")
    storage_commitment = money_field(
        default=Decimal(0),
        help_text="What all unbilled minutes cost up to the planned ends of open segments.",
    )
    committed_until = models.DateTimeField(
        null=True, blank=True, help_text="No open segment is planned to end later."
    )
    exhaust_at = models.DateTimeField(
        null=True, blank=True, help_text="The first minute of storage that cannot be paid; empty: all can."
    )
    clock_offset = models.DurationField(
        default=timedelta(),
        help_text="How far its clock is ahead of the database's. Only a sandbox's ever is, and it only grows.",
    )
    created_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(storage_commitment__gte=0), name="commitment_not_negative"),
            models.CheckConstraint(condition=Q(clock_offset__gte=timedelta()), name="clock_never_behind"),
        ]

    def __str__(self) -> str:
        return f"{self.organization_id} ({self.currency})"


class LedgerAccount(models.Model):
    """Where value sits: an organization's purse, or one of the system's accounts (their sums are computed, never
    stored, so that no row is written by every call)."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    organization = models.ForeignKey(
        "access.Organization",
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="ledger_accounts",
        db_index=False,
    )
    kind = models.CharField(max_length=20, choices=AccountKind)
    currency = models.CharField(max_length=3, choices=CURRENCIES)
    posted = money_field(default=Decimal(0))
    held = money_field(default=Decimal(0))
    entry_count = models.BigIntegerField(default=0)
    expires_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(posted__gte=F("held"), held__gte=0), name="posted_covers_held_covers_zero"
            ),
            models.CheckConstraint(
                condition=Q(organization__isnull=False, kind__in=["cash", "voucher"])
                | Q(organization__isnull=True, posted=0, held=0, entry_count=0)
                & ~Q(kind__in=["cash", "voucher"]),
                name="purses_belong_to_somebody",
            ),
            models.CheckConstraint(
                condition=Q(expires_at__isnull=True) | Q(kind="voucher"), name="only_vouchers_expire"
            ),
            models.UniqueConstraint(
                fields=["organization", "currency", "kind", "expires_at"],
                nulls_distinct=False,
                name="one_purse_of_a_kind",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.organization_id or 'system'} {self.kind} {self.currency}"


class MeterEvent(models.Model):
    """One immutable fact of use, without a price. Written by `metering` alone; repeating it is harmless."""

    id = models.UUIDField(primary_key=True, editable=False)
    organization = models.ForeignKey(
        "access.Organization",
        on_delete=models.PROTECT,
        related_name="meter_events",
        db_index=False,
        db_constraint=False,
    )
    meter = models.CharField(max_length=12, choices=Meter)
    source = models.CharField(max_length=32)
    source_key = models.CharField(max_length=128)
    subject = models.CharField(
        max_length=64, blank=True, help_text="The id of what was used, for example a cache object."
    )
    model = models.CharField(max_length=128)
    quantity = models.BigIntegerField()
    unit = models.CharField(max_length=16)
    occurred_at = models.DateTimeField()
    first_minute = models.IntegerField(
        null=True, blank=True, help_text="Storage: first minute of the segment."
    )
    end_minute = models.IntegerField(
        null=True, blank=True, help_text="Storage: the minute after the last one."
    )
    api_key_id = models.CharField(max_length=64, blank=True)
    request_id = models.CharField(max_length=64, blank=True)
    cached_tokens = models.BigIntegerField(
        null=True, blank=True, help_text="Call on a cache object: prompt tokens that were taken from it."
    )
    called_model = models.CharField(
        max_length=128,
        blank=True,
        default="",
        db_default="",
        help_text="Call on a cache object: the model that answered.",
    )
    recorded_at = models.DateTimeField(db_default=Now())
    recorded_xid = models.BigIntegerField(
        db_default=models.Func(
            template="(pg_current_xact_id()::text::bigint)", output_field=models.BigIntegerField()
        ),
        editable=False,
        help_text="The transaction that wrote it, so that exports know what can no longer come before it.",
    )

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["organization", "occurred_at"], name="events_of_organization"),
            models.Index(
                fields=["organization", "occurred_at"],
                condition=Q(meter="creation"),
                name="creations_of_organization",
            ),
            models.Index(fields=["recorded_xid", "id"], name="events_as_exported"),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["source", "source_key"], name="one_event_per_source_key"),
            models.CheckConstraint(condition=Q(quantity__gt=0), name="event_counts_something"),
            models.CheckConstraint(
                condition=Q(meter="storage", first_minute__gte=0, end_minute__gt=F("first_minute"))
                | (~Q(meter="storage") & Q(first_minute__isnull=True, end_minute__isnull=True)),
                name="storage_events_have_minutes",
            ),
            models.CheckConstraint(
                condition=Q(cached_tokens__isnull=True) | Q(meter="call", cached_tokens__gte=0),
                name="calls_tell_cached_tokens",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.source}:{self.source_key}"


class EntryKind(models.TextChoices):
    CREATION = "creation", "Creation"
    STORAGE = "storage", "Storage"
    CALL = "call", "Call on a cache object"
    PROMPT = "prompt", "Prompt tokens"
    COMPLETION = "completion", "Completion tokens"
    RECHARGE = "recharge", "Recharge"
    REVERSAL = "reversal", "Reversal"
    LAPSE = "lapse", "Voucher lapsed"
    WAIVER = "waiver", "Waived: used, but not covered"


ENTRY_ORDER = Abs("id")
"""What pages of entries are ordered by: the id, which is never negative."""


class LedgerEntry(models.Model):
    """One amount moved from `debit` to `credit`. Written by `ledger` alone; never changed, only reversed.

    Money leaves the debited account and reaches the credited one. A charge split over purses repeats its event's
    quantity on each row: the rows of one event together are quantity × unit price. A waiver has no purse: it
    books what a call used beyond what could be paid, so that revenue and use still agree line by line.
    """

    debit = models.ForeignKey(
        LedgerAccount, on_delete=models.PROTECT, related_name="+", db_index=False, db_constraint=False
    )
    credit = models.ForeignKey(
        LedgerAccount, on_delete=models.PROTECT, related_name="+", db_index=False, db_constraint=False
    )
    amount = money_field()
    organization = models.ForeignKey(
        "access.Organization",
        on_delete=models.PROTECT,
        related_name="ledger_entries",
        db_index=False,
        db_constraint=False,
    )
    currency = models.CharField(max_length=3, choices=CURRENCIES)
    purse = models.ForeignKey(
        LedgerAccount, null=True, blank=True, on_delete=models.PROTECT, related_name="entries", db_index=False
    )
    purse_sequence = models.BigIntegerField(null=True, blank=True)
    balance_after = money_field(null=True, blank=True)
    idempotency_key = models.CharField(max_length=220)
    kind = models.CharField(max_length=12, choices=EntryKind)
    meter_event = models.ForeignKey(
        MeterEvent, null=True, blank=True, on_delete=models.PROTECT, related_name="entries"
    )
    price = models.ForeignKey(
        "billing.Price",
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        db_index=False,
        db_constraint=False,
    )
    quantity = models.BigIntegerField(null=True, blank=True)
    unit_price = money_field(null=True, blank=True)
    reverses = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.PROTECT, related_name="reversals", db_index=False
    )
    reason = models.CharField(max_length=500, blank=True)
    operator = models.CharField(max_length=150, blank=True)
    request_id = models.CharField(max_length=64, blank=True)
    created_at = models.DateTimeField()
    chain = models.BinaryField(null=True, max_length=32)
    """The head of the purse's hash chain after this entry; made by the database as the row comes in."""

    class Meta:
        verbose_name_plural = "ledger entries"
        indexes: ClassVar = [
            # In an expression that the primary key has not, so that no page is read from the key instead, past the
            # entries of everybody else.
            models.Index(F("organization"), ENTRY_ORDER.desc(), name="entries_of_organization"),
            models.Index(
                fields=["organization", "created_at"],
                condition=Q(purse__isnull=True),
                name="waivers_of_organization",
            ),
            models.Index(
                fields=["organization"], condition=Q(kind="recharge"), name="recharges_of_organization"
            ),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(amount__gt=0), name="entry_moves_something"),
            models.CheckConstraint(condition=~Q(debit=F("credit")), name="entry_has_two_sides"),
            models.CheckConstraint(
                condition=Q(
                    kind="waiver", purse__isnull=True, purse_sequence__isnull=True, balance_after__isnull=True
                )
                | (
                    ~Q(kind="waiver")
                    & (Q(purse=F("debit")) | Q(purse=F("credit")))
                    & Q(purse__isnull=False, purse_sequence__gt=0, balance_after__gte=0)
                ),
                name="entry_touches_its_purse",
            ),
            models.CheckConstraint(
                condition=Q(kind__in=["recharge", "reversal", "lapse"], meter_event__isnull=True)
                | (
                    ~Q(kind__in=["recharge", "reversal", "lapse"])
                    & Q(meter_event__isnull=False, price__isnull=False, unit_price__gte=0, quantity__gt=0)
                ),
                name="charges_name_event_and_price",
            ),
            models.CheckConstraint(
                condition=Q(kind="reversal", reverses__isnull=False) & ~Q(reason="") & ~Q(operator="")
                | (~Q(kind="reversal") & Q(reverses__isnull=True)),
                name="reversal_says_what_and_why",
            ),
            models.CheckConstraint(
                condition=~Q(kind="recharge") | (~Q(reason="") & ~Q(operator="")),
                name="recharge_says_who_and_why",
            ),
            models.CheckConstraint(
                condition=Q(purse__isnull=True, chain__isnull=True)
                | Q(purse__isnull=False, chain__isnull=False),
                name="entry_of_a_purse_is_chained",
            ),
            models.UniqueConstraint(fields=["idempotency_key"], name="one_entry_per_idempotency_key"),
            models.UniqueConstraint(fields=["purse", "purse_sequence"], name="one_entry_per_sequence"),
            models.UniqueConstraint(
                fields=["reverses"], condition=Q(reverses__isnull=False), name="one_reversal_per_entry"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.amount} {self.currency}"

    @property
    def chained(self) -> ChainedEntry:
        """What of an entry of a purse is in the purse's chain."""
        assert self.purse_sequence is not None and self.balance_after is not None
        return ChainedEntry(
            id=self.pk,
            organization=self.organization_id,
            currency=self.currency,
            purse=str(self.purse_id),
            sequence=self.purse_sequence,
            kind=self.kind,
            change=self.amount if self.credit_id == self.purse_id else -self.amount,
            balance_after=self.balance_after,
            event=None if self.meter_event_id is None else str(self.meter_event_id),
            quantity=self.quantity,
            unit_price=self.unit_price,
            reverses=self.reverses_id,
            reason=self.reason,
            request_id=self.request_id,
            created_at=self.created_at,
            sealed=chain.sealed(
                debit=str(self.debit_id),
                credit=str(self.credit_id),
                idempotency_key=self.idempotency_key,
                price=self.price_id,
                operator=self.operator,
            ),
        )


class Hold(models.Model):
    """Money of one purse set aside for work in flight. A reference has one row per purse that it touches."""

    class State(models.TextChoices):
        OPEN = "open", "Open"
        SETTLED = "settled", "Settled"
        VOIDED = "voided", "Voided"

    class Kind(models.TextChoices):
        CREATION = "creation", "Creation"
        CALL = "call", "Call"

    reference = models.UUIDField()
    organization = models.ForeignKey(
        "access.Organization",
        on_delete=models.PROTECT,
        related_name="holds",
        db_index=False,
        db_constraint=False,
    )
    purse = models.ForeignKey(LedgerAccount, on_delete=models.PROTECT, related_name="holds", db_index=False)
    amount = money_field()
    kind = models.CharField(max_length=12, choices=Kind)
    subject = models.CharField(max_length=64, blank=True)
    state = models.CharField(max_length=8, choices=State, default=State.OPEN)
    created_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["kind", "created_at"], condition=Q(state="open"), name="open_holds_by_age"),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(amount__gte=0), name="hold_not_negative"),
            models.CheckConstraint(
                condition=Q(state="open", closed_at__isnull=True)
                | (~Q(state="open") & Q(closed_at__isnull=False)),
                name="closed_holds_say_when",
            ),
            models.UniqueConstraint(fields=["reference", "purse"], name="one_hold_per_purse"),
        ]

    def __str__(self) -> str:
        return f"{self.reference} {self.amount} {self.state}"


class PricedItem(models.Model):
    """What has a price: a meter, for a model or a family of models, in one currency, for one tier or for all.

    A price for the account's tier wins over the one for all.
    """

    meter = models.CharField(max_length=12, choices=Meter)
    model = models.CharField(max_length=128, help_text="A model's name, or a family's.")
    currency = models.CharField(max_length=3, choices=CURRENCIES, default="CNY")
    tier = models.CharField(
        max_length=32, blank=True, default="", help_text="A tier's name. Empty: for all tiers."
    )

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["meter", "model", "currency", "tier"], name="one_item_per_meter_model_and_tier"
            ),
        ]

    def __str__(self) -> str:
        return " ".join(filter(None, [self.meter, self.model, self.currency, self.tier]))


class Price(models.Model):
    """A price from one instant to the next. Written by `price_book` alone; two never overlap, a closed one stays."""

    priced_item = models.ForeignKey(PricedItem, on_delete=models.PROTECT, related_name="prices")
    per_million = models.DecimalField(
        max_digits=15,
        decimal_places=3,
        validators=[MinValueValidator(Decimal(0))],
        help_text="Per 1,000,000 units: tokens, token-minutes, or calls.",
    )
    valid_from = models.DateTimeField()
    valid_to = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(per_million__gte=0), name="price_not_negative"),
            models.CheckConstraint(
                condition=Q(valid_to__isnull=True) | Q(valid_to__gt=F("valid_from")),
                name="price_ends_after_start",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.priced_item} {self.per_million}"


class AccountPriceTier(models.Model):
    """The tier whose prices an account pays, from one instant to the next. Written by `price_tiers` alone.

    Two never overlap. What has begun is only ended; what is planned may be taken back. Where there is no row, the
    prices for all tiers hold.
    """

    organization = models.ForeignKey(
        "access.Organization", on_delete=models.PROTECT, related_name="price_tiers", db_index=False
    )
    tier = models.CharField(max_length=32)
    valid_from = models.DateTimeField()
    valid_to = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["organization", "valid_from"], name="price_tiers_of_organization"),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(condition=~Q(tier=""), name="price_tier_is_named"),
            models.CheckConstraint(
                condition=Q(valid_to__isnull=True) | Q(valid_to__gt=F("valid_from")),
                name="price_tier_ends_after_start",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.organization_id} {self.tier} from {self.valid_from}"


class StorageSegment(models.Model):
    """A span in which a subject is stored and billed, minute by minute from `started_at`. Written by `storage`."""

    organization = models.ForeignKey(
        "access.Organization", on_delete=models.PROTECT, related_name="storage_segments", db_index=False
    )
    subject = models.CharField(max_length=64)
    model = models.CharField(max_length=128, help_text="The model family whose storage price holds.")
    tokens = models.BigIntegerField()
    started_at = models.DateTimeField()
    ends_at = models.DateTimeField(help_text="The planned end.")
    closed_at = models.DateTimeField(null=True, blank=True, help_text="The real end.")
    billed_minutes = models.IntegerField(default=0)

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["organization"], condition=Q(closed_at__isnull=True), name="open_segments"),
            models.Index(fields=["subject"], name="segments_of_subject"),
            models.Index(fields=["organization", "closed_at"], name="segments_of_organization"),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["subject"], condition=Q(closed_at__isnull=True), name="one_open_segment_per_subject"
            ),
            models.CheckConstraint(
                condition=Q(tokens__gt=0, billed_minutes__gte=0), name="segment_counts_up"
            ),
            models.CheckConstraint(condition=Q(ends_at__gt=F("started_at")), name="segment_ends_after_start"),
            models.CheckConstraint(
                condition=Q(closed_at__isnull=True) | Q(closed_at__gte=F("started_at"), billed_minutes__gt=0),
                name="closed_segment_is_billed",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.subject} from {self.started_at}"


class StorageLine(models.Model):
    """Minutes [first_minute, end_minute) of a segment, charged at one price. A minute cannot be charged twice."""

    segment = models.ForeignKey(StorageSegment, on_delete=models.PROTECT, related_name="lines")
    first_minute = models.IntegerField()
    end_minute = models.IntegerField()
    price = models.ForeignKey(
        Price, on_delete=models.PROTECT, related_name="+", db_index=False, db_constraint=False
    )
    unit_price = money_field()
    amount = money_field()
    meter_event = models.OneToOneField(MeterEvent, on_delete=models.PROTECT, related_name="storage_line")

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(first_minute__gte=0, end_minute__gt=F("first_minute")), name="line_has_minutes"
            ),
            models.CheckConstraint(condition=Q(amount__gte=0, unit_price__gte=0), name="line_not_negative"),
        ]

    def __str__(self) -> str:
        return f"{self.segment_id} [{self.first_minute}, {self.end_minute})"


class Invoice(models.Model):
    """What an organization spent in one month, to fen. Written by `invoicing`, once; never changed.

    `amount` is the rounded sum of all spending up to the month's end, less that of the invoice before: so all invoices
    together are what the ledger says, rounded once. `heads` are the purses' hash chains at the month's end.
    """

    organization = models.ForeignKey(
        "access.Organization", on_delete=models.PROTECT, related_name="invoices", db_index=False
    )
    month = models.DateField(help_text="Its first day.")
    number = models.IntegerField(help_text="Counts the organization's invoices from 1, without a gap.")
    currency = models.CharField(max_length=3, choices=CURRENCIES)
    spent = money_field(help_text="Exact, since the invoice before.")
    spent_to_date = money_field(help_text="Exact, since the first entry.")
    amount = models.DecimalField(max_digits=17, decimal_places=2)
    heads = models.JSONField()
    made_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["organization", "month"], name="one_invoice_per_month"),
            models.UniqueConstraint(fields=["organization", "number"], name="one_invoice_per_number"),
            models.CheckConstraint(condition=Q(month__day=1), name="invoice_is_of_a_month"),
            models.CheckConstraint(
                condition=Q(number__gt=0, spent_to_date__gte=0), name="invoice_counts_from_one"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.organization_id} {self.month:%Y-%m}"


class ExportPosition(models.Model):
    """How far a sink has got with the meter events, and with its file. Written by `exports` alone."""

    sink = models.CharField(primary_key=True, max_length=500, help_text="Where the events go: a URL.")
    recorded_xid = models.BigIntegerField(default=0)
    event_id = models.UUIDField(default=uuid.UUID(int=0), help_text="The last event that went there.")
    not_before = models.DateTimeField(
        null=True, blank=True, help_text="What was recorded before has gone there under other numbers."
    )
    exported = models.BigIntegerField(default=0)
    moved_at = models.DateTimeField(null=True, blank=True)
    file_name = models.CharField(max_length=64, blank=True)
    file_bytes = models.BigIntegerField(
        default=0, help_text="What lies behind was written and never committed."
    )
    failures = models.PositiveIntegerField(default=0, help_text="Since the last success.")
    failure = models.CharField(max_length=200, blank=True)
    retry_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.sink


class ExportTally(models.Model):
    """What has gone to a sink, by meter and hour of use. Written with the position, in one transaction."""

    position = models.ForeignKey(ExportPosition, on_delete=models.CASCADE, related_name="tallies")
    meter = models.CharField(max_length=12, choices=Meter)
    hour = models.DateTimeField()
    currency = models.CharField(max_length=3, choices=CURRENCIES)
    events = models.BigIntegerField()
    quantity = models.DecimalField(max_digits=38, decimal_places=0)
    amount = models.DecimalField(max_digits=38, decimal_places=9)

    class Meta:
        verbose_name_plural = "export tallies"
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["position", "meter", "hour", "currency"], name="one_tally_per_meter_and_hour"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.meter} {self.hour}"
