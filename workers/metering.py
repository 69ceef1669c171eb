"""Shells around billing's periodic work."""

from __future__ import annotations

import structlog
from django.db import transaction
from django.db.models import DateTimeField, ExpressionWrapper, F, Q
from django.db.models.functions import Now

from billing import accounts, audit, clock, invoicing, storage
from billing.models import BillingAccount
from cacheplane import dispatch
from cacheplane.celery import app
from workers.ticks import alone

log = structlog.get_logger(__name__)


@app.task(name=dispatch.SETTLE_STORAGE)
def settle_storage() -> None:
    with alone("settle_storage") as is_alone:
        if is_alone:
            for organization_id in _with_something_to_settle():
                with transaction.atomic():
                    account = accounts.lock(organization_id)
                    storage.settle(account, at=account.locked_at)


def _with_something_to_settle() -> list[str]:
    """Organizations that store something, or that have money in a voucher that is over."""
    own_now = ExpressionWrapper(Now() + F("clock_offset"), output_field=DateTimeField())
    lapsed = Q(
        organization__ledger_accounts__expires_at__lte=own_now,
        organization__ledger_accounts__posted__gt=F("organization__ledger_accounts__held"),
    )
    found = BillingAccount.objects.filter(Q(committed_until__isnull=False) | lapsed)
    return list(found.order_by("organization_id").values_list("organization_id", flat=True).distinct())


@app.task(name=dispatch.AUDIT_LEDGER)
def audit_ledger() -> None:
    with alone("audit_ledger") as is_alone:
        if is_alone:
            for violation in audit.violations(clock.now()):
                log.error("ledger_violation", invariant=violation.invariant, subject=violation.subject)


@app.task(name=dispatch.MAKE_INVOICES)
def make_invoices() -> None:
    with alone("make_invoices") as is_alone:
        if is_alone:
            for organization_id in invoicing.organizations():
                for invoice in invoicing.make(organization_id, at=clock.now_of(organization_id)):
                    log.info("invoice_made", organization_id=organization_id, number=invoice.number)
