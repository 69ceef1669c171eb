"""Billing's pages, with what else follows when money moves: the tier that is earned, and an audit entry."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from billing.admin import BillingAccountAdmin, LedgerEntryAdmin
from billing.charging import Recharged
from billing.models import BillingAccount, LedgerEntry
from cacheplane.access import organizations
from cacheplane.access.admin_actions import operator_of

admin.site.unregister(BillingAccount)
admin.site.unregister(LedgerEntry)


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
