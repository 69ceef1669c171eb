"""`manage.py preview_prices FILE [--month YYYY-MM] [--organization ID]`: what a month would cost by another list."""

from __future__ import annotations

import json
from argparse import FileType
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from billing import clock, money, previews
from billing.errors import DraftRefused
from billing.models import BillingAccount
from billing.previews import Compared, Preview


class Command(BaseCommand):
    help = "Rate a month by the price book and by a draft of new prices, and show the difference. Writes nothing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "draft",
            metavar="FILE",
            type=FileType(encoding="utf-8"),
            help="CSV with a header, or a JSON list: meter, model, per_million, and currency and tier if wanted",
        )
        parser.add_argument(
            "--month", metavar="YYYY-MM", help="of UTC+8 (default: the last one that is over)"
        )
        parser.add_argument("--organization", metavar="ID", help="only what this one used")
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")

    def handle(self, *args: Any, **options: Any) -> None:
        organization_id = options["organization"]
        if organization_id and not BillingAccount.objects.filter(pk=organization_id).exists():
            raise CommandError(f"No organization has the id {organization_id}.")
        month = options["month"] or previews.last_month(clock.now())
        try:
            draft = previews.parse(options["draft"].read())
            first, end = previews.month(month)
        except DraftRefused as error:
            raise CommandError(error.message) from error
        except UnicodeDecodeError as error:
            raise CommandError(f"The file is no text in UTF-8: {error}") from error
        found = previews.preview(draft, first=first, end=end, organization_id=organization_id)
        if options["json"]:
            self.stdout.write(json.dumps(_as_json(found, month)))
        else:
            self._print(found, month)

    def _print(self, found: Preview, month: str) -> None:
        self.stdout.write(f"{found.facts} meter events of {month}")
        for item in found.new_items:
            self.stdout.write(f"Nothing has a price as {item.meter} of {item.model} in {item.currency} yet.")
        self._table("in all", found.totals)
        self._table("meter", found.meters)
        self._table("model", found.models)
        self._table("organization", found.organizations)

    def _table(self, title: str, rows: Sequence[Compared]) -> None:
        self.stdout.write(f"\n{title:<40} {'':<4} {'old':>24} {'new':>24} {'difference':>24}")
        for row in rows:
            amounts = " ".join(f"{money.text(amount):>24}" for amount in (row.old, row.new, row.difference))
            self.stdout.write(f"{row.name:<40} {row.currency:<4} {amounts}")


def _as_json(found: Preview, month: str) -> dict[str, Any]:
    def rows(of: Sequence[Compared]) -> list[dict[str, str]]:
        return [
            {
                "name": row.name,
                "currency": row.currency,
                "old": money.text(row.old),
                "new": money.text(row.new),
                "difference": money.text(row.difference),
            }
            for row in of
        ]

    return {
        "month": month,
        "meter_events": found.facts,
        "totals": rows(found.totals),
        "meters": rows(found.meters),
        "models": rows(found.models),
        "organizations": rows(found.organizations),
        "new_items": [f"{item.meter} {item.model} {item.currency}" for item in found.new_items],
    }
