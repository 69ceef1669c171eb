"""Billing's pages, with what else follows when money moves: the tier that is earned, and an audit entry."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from billing.admin import BillingAccountAdmin, LedgerEntryAdmin
from billing.admin.prices import PriceAdmin
from billing.charging import Recharged
from billing.errors import PriceRefused
from billing.models import BillingAccount, LedgerEntry, Price
from cacheplane.access import audit, organizations
from cacheplane.access.admin_actions import operator_of
from cacheplane.access.models import Tier

admin.site.unregister(BillingAccount)
admin.site.unregister(LedgerEntry)
admin.site.unregister(Price)


@admin.register(BillingAccount)
class AuditedBillingAccountAdmin(BillingAccountAdmin):
    def put_in(self, request: HttpRequest, account: BillingAccount, given: dict[str, Any]) -> Recharged:
        return organizations.recharge(
            organization_id=account.organization_id,
            amount=given["amount"],
            purse=given["purse"],
            reason=given["reason"],
            operator=operator_of(request),
            idempotency_key=f"admin:{given['key']}",
            expires_at=given["expires_at"],
        )


@admin.register(LedgerEntry)
class AuditedLedgerEntryAdmin(LedgerEntryAdmin):
    def undo(self, request: HttpRequest, entry: LedgerEntry, given: dict[str, Any]) -> LedgerEntry:
        return organizations.correct(
            organization_id=entry.organization_id,
            entry_id=entry.pk,
            reason=given["reason"],
            operator=operator_of(request),
        )


@admin.register(Price)
class AuditedPriceAdmin(PriceAdmin):
    def save_model(self, request: HttpRequest, obj: Price, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        audit.record(
            operator=operator_of(request),
            action="price.announce",
            subject=str(obj.priced_item),
            reason=audit.required_reason(form.cleaned_data["reason"]),
            detail={"valid_from": obj.valid_from.isoformat(), "per_million": str(obj.per_million)},
        )

    def let_end(self, request: HttpRequest, price: Price, given: dict[str, Any]) -> None:
        super().let_end(request, price, given)
        audit.record(
            operator=operator_of(request),
            action="price.end",
            subject=str(price.priced_item),
            reason=audit.required_reason(given["reason"]),
            detail={"ends_at": given["ends_at"].isoformat(), "per_million": str(price.per_million)},
        )

    def announce(self, request: HttpRequest, given: dict[str, Any]) -> None:
        for item in given["draft"]:
            if item.tier and not Tier.objects.filter(slug=item.tier).exists():
                raise PriceRefused(f"No tier is called {item.tier}.")
        super().announce(request, given)
        audit.record(
            operator=operator_of(request),
            action="price.announce",
            subject=f"{len(given['draft'])} prices",
            reason=audit.required_reason(given["reason"]),
            detail={
                "valid_from": given["valid_from"].isoformat(),
                "prices": [asdict(item) | {"per_million": str(item.per_million)} for item in given["draft"]],
            },
        )
