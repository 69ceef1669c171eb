"""`manage.py make_invoices`: the invoices of all months that are over. Repeating it makes nothing."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from billing import clock, invoicing
from billing.errors import InvoiceRefused


class Command(BaseCommand):
    help = "Make the invoices of all months (of UTC+8) that are over. What is made already stays as it is."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--month",
            metavar="YYYY-MM",
            help="The last month to invoice; without it the last one that is over.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            month = invoicing.parse_month(options["month"]) if options["month"] else None
        except ValueError as error:
            raise CommandError(f"--month is written like 2024-07, not like {options['month']}.") from error
        made, refusals = 0, []
        organizations = invoicing.organizations()
        for organization_id in organizations:
            try:
                invoices = invoicing.make(organization_id, at=clock.now_of(organization_id), month=month)
            except InvoiceRefused as error:  # by its own clock, which a sandbox's may be ahead of
                refusals.append(error)
                continue
            for invoice in invoices:
                self.stdout.write(
                    f"{invoice.organization_id} {invoice.month:%Y-%m}"
                    f" number {invoice.number}: {invoice.amount} {invoice.currency}"
                )
            made += len(invoices)
        if refusals and len(refusals) == len(organizations):
            raise CommandError(refusals[0].message)
        self.stdout.write(f"{made} invoices made")
