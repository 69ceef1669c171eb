"""The operators' view of money. Facts and entries are read; what moves money is an action with a reason."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Case, F, Model, OuterRef, QuerySet, Subquery, Sum, Value, When
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import TabularInline
from unfold.decorators import action, display

from billing import accounts, charging, clock, money
from billing.admin import prices  # noqa: F401  (registers its pages)
from billing.admin.forms import CorrectionForm, RechargeForm
from billing.admin.pages import ROWS_PER_PAGE, OfOrganizationAdmin, ReadOnlyAdmin, link
from billing.charging import Recharged
from billing.models import (
    BillingAccount,
    Hold,
    Invoice,
    LedgerAccount,
    LedgerEntry,
    MeterEvent,
    StorageLine,
    StorageSegment,
)


@admin.register(BillingAccount)
class BillingAccountAdmin(ReadOnlyAdmin):
    list_display = ["organization", "currency", "posted", "held", "storage_commitment", "exhaust_at", "rows"]
    list_filter = ["currency"]
    list_select_related = ["organization"]
    search_fields = ["organization__id", "organization__name"]
    date_hierarchy = "created_at"
    ordering = ["-created_at"]
    fields = [
        "organization",
        "currency",
        "cash_now",
        "voucher_now",
        "held_now",
        "owed_now",
        "available_now",
        "storage_commitment",
        "exhaust_at",
        "clock_offset",
        "created_at",
        "rows",
    ]
    readonly_fields = fields
    actions_detail = ["recharge"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        purses = LedgerAccount.objects.filter(organization_id=OuterRef("organization_id")).order_by()
        sums = purses.values("organization_id").annotate(posted=Sum("posted"), held=Sum("held"))
        return (
            super()
            .get_queryset(request)
            .annotate(posted=Subquery(sums.values("posted")), held=Subquery(sums.values("held")))
        )

    @display(description="posted")
    def posted(self, obj: Any) -> str:
        return money.text(obj.posted or money.ZERO)

    @display(description="held")
    def held(self, obj: Any) -> str:
        return money.text(obj.held or money.ZERO)

    def _now(self, obj: BillingAccount) -> accounts.Balance:
        return accounts.balance(obj.organization_id, clock.now_of(obj.organization_id))

    @display(description="cash")
    def cash_now(self, obj: BillingAccount) -> str:
        return money.text(self._now(obj).cash)

    @display(description="vouchers")
    def voucher_now(self, obj: BillingAccount) -> str:
        return money.text(self._now(obj).voucher)

    @display(description="held")
    def held_now(self, obj: BillingAccount) -> str:
        return money.text(self._now(obj).held)

    @display(description="owed for storage")
    def owed_now(self, obj: BillingAccount) -> str:
        return money.text(self._now(obj).owed)

    @display(description="available")
    def available_now(self, obj: BillingAccount) -> str:
        return money.text(self._now(obj).available)

    @display(description="rows")
    def rows(self, obj: BillingAccount) -> SafeString:
        of = f"organization_id={obj.organization_id}"
        return format_html(
            "{} · {} · {} · {} · {}",
            link("ledgerentry", of, "entries"),
            link("ledgeraccount", of, "purses"),
            link("hold", of, "holds"),
            link("storagesegment", of, "segments"),
            link("invoice", of, "invoices"),
        )

    @action(description="Recharge", url_path="recharge", permissions=["operate"], icon="payments")
    def recharge(self, request: HttpRequest, object_id: str) -> HttpResponse:
        account = self.required(object_id)

        def perform(given: dict[str, Any]) -> str:
            recharged = self.put_in(request, account, given)
            return f"{money.text(recharged.entry.amount)} {account.currency} were put in."

        return self.act_on_form(
            request,
            form=RechargeForm(request.POST or None, at=clock.now_of(account.organization_id)),
            title="Recharge",
            explanation=f"Money for {account.organization} in {account.currency}.",
            perform=perform,
            back_to=account.pk,
        )

    def put_in(self, request: HttpRequest, account: BillingAccount, given: dict[str, Any]) -> Recharged:
        """What a recharge brings beside the money, who knows of it adds in a class of its own."""
        return charging.recharge(
            organization_id=account.organization_id,
            amount=given["amount"],
            purse=given["purse"],
            reason=given["reason"],
            operator=request.user.get_username(),
            idempotency_key=f"admin:{given['key']}",
            at=clock.now_of(account.organization_id),
            expires_at=given["expires_at"],
        )


@admin.register(LedgerAccount)
class LedgerAccountAdmin(OfOrganizationAdmin):
    list_display = ["kind", "organization", "currency", "balance", "held", "entry_count", "expires_at"]
    list_filter = ["kind", "currency"]
    search_fields = ["=id", "organization__id", "organization__name"]
    date_hierarchy = "created_at"
    ordering = ["organization", "kind", "expires_at"]

    @display(description="balance")
    def balance(self, obj: LedgerAccount) -> str:
        """A purse's is stored; a system account's is summed up when it is looked at."""
        if obj.organization_id is not None:
            return money.text(obj.posted)
        entries = LedgerEntry.objects.filter(debit=obj) | LedgerEntry.objects.filter(credit=obj)
        into_it = Case(When(credit=obj, then=F("amount")), default=Value(0) - F("amount"))
        return money.text(entries.aggregate(total=Coalesce(Sum(into_it), money.ZERO))["total"])


@admin.register(LedgerEntry)
class LedgerEntryAdmin(OfOrganizationAdmin):
    list_display = [
        "created_at",
        "organization",
        "kind",
        "moved",
        "currency",
        "balance_after",
        "subject",
        "reason",
    ]
    list_filter = ["kind", "currency"]
    list_select_related = ["organization", "meter_event", "debit", "credit"]
    search_fields = [
        "organization__id",
        "organization__name",
        "=idempotency_key",
        "=request_id",
        "=meter_event__subject",
    ]
    date_hierarchy = "created_at"
    ordering = ["-id"]
    readonly_fields = ["chain_in_hex"]
    actions_detail = ["correct"]

    @display(description="amount", ordering="amount")
    def moved(self, obj: LedgerEntry) -> str:
        """As the organization sees it: spending is negative; a waiver is not its money."""
        if obj.purse_id is None:
            return f"({money.text(obj.amount)})"
        return money.text(obj.amount if obj.credit_id == obj.purse_id else -obj.amount)

    @display(description="subject")
    def subject(self, obj: LedgerEntry) -> str:
        return obj.meter_event.subject if obj.meter_event else ""

    @display(description="chain")
    def chain_in_hex(self, obj: LedgerEntry) -> str:
        return bytes(obj.chain).hex() if obj.chain else ""

    @action(description="Reverse", url_path="reverse", permissions=["operate"], icon="undo")
    def correct(self, request: HttpRequest, object_id: str) -> HttpResponse:
        entry = self.required(object_id)

        def perform(given: dict[str, Any]) -> str:
            reversal = self.undo(request, entry, given)
            return f"Entry {entry.pk} is undone by entry {reversal.pk}."

        return self.act_on_form(
            request,
            form=CorrectionForm(request.POST or None),
            title="Reverse",
            explanation=f"A new entry undoes this one: {entry.kind}, {money.text(entry.amount)} {entry.currency}.",
            perform=perform,
            back_to=entry.pk,
        )

    def undo(self, request: HttpRequest, entry: LedgerEntry, given: dict[str, Any]) -> LedgerEntry:
        """As `put_in`: who knows what follows adds it."""
        return charging.correct(
            organization_id=entry.organization_id,
            entry_id=entry.pk,
            reason=given["reason"],
            operator=request.user.get_username(),
            at=clock.now_of(entry.organization_id),
        )


@admin.register(Invoice)
class InvoiceAdmin(OfOrganizationAdmin):
    list_display = ["month", "organization", "number", "amount", "currency", "spent", "made_at"]
    list_filter = ["currency"]
    search_fields = ["organization__id", "organization__name"]
    date_hierarchy = "month"
    ordering = ["-month", "organization"]


@admin.register(MeterEvent)
class MeterEventAdmin(OfOrganizationAdmin):
    list_display = [
        "occurred_at",
        "organization",
        "meter",
        "model",
        "quantity",
        "unit",
        "cached_tokens",
        "called_model",
        "subject",
        "api_key_id",
    ]
    list_filter = ["meter", "source", "model"]
    search_fields = ["=id", "organization__id", "=subject", "=source_key", "=request_id", "=api_key_id"]
    date_hierarchy = "occurred_at"
    ordering = ["-occurred_at"]


@admin.register(Hold)
class HoldAdmin(OfOrganizationAdmin):
    list_display = ["created_at", "organization", "kind", "amount", "state", "purse", "subject", "closed_at"]
    list_filter = ["state", "kind"]
    list_select_related = ["organization", "purse"]
    search_fields = ["=reference", "organization__id", "organization__name", "=subject"]
    date_hierarchy = "created_at"
    ordering = ["-id"]


class StorageLineInline(TabularInline):
    model = StorageLine
    fields = ["first_minute", "end_minute", "unit_price", "amount"]
    readonly_fields = fields
    ordering = ["first_minute"]
    extra = 0
    per_page = ROWS_PER_PAGE
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(StorageSegment)
class StorageSegmentAdmin(OfOrganizationAdmin):
    list_display = [
        "started_at",
        "organization",
        "subject",
        "model",
        "tokens",
        "ends_at",
        "closed_at",
        "billed_minutes",
    ]
    list_filter = [("closed_at", admin.EmptyFieldListFilter), "model"]
    search_fields = ["=subject", "organization__id", "organization__name"]
    date_hierarchy = "started_at"
    ordering = ["-id"]
    inlines = [StorageLineInline]


@admin.register(StorageLine)
class StorageLineAdmin(ReadOnlyAdmin):
    list_display = ["segment", "first_minute", "end_minute", "unit_price", "amount"]
    list_select_related = ["segment"]
    search_fields = ["=segment__subject", "segment__organization__id"]
    date_hierarchy = "meter_event__occurred_at"
    ordering = ["-id"]


# Below, because they are of the same furniture.
from billing.admin import exports as exports  # noqa: E402
