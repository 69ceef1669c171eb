"""`manage.py audit_ledger`: every promise of billing, checked now. Exit status 1 when one is broken."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from billing import audit, clock
from billing.audit import Violation
from billing.models import LedgerEntry, MeterEvent


class Command(BaseCommand):
    help = "Check every promise of billing against all rows. Exit status 1 when one is broken."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print one JSON object instead of a table.")

    def handle(self, *args: Any, **options: Any) -> None:
        found = audit.violations(clock.now())
        counts = {"events": MeterEvent.objects.count(), "entries": LedgerEntry.objects.count()}
        if options["json"]:
            self.stdout.write(
                json.dumps({**counts, "violations": [asdict(violation) for violation in found]})
            )
        else:
            self._print_table(found, counts)
        if found:
            sys.exit(1)

    def _print_table(self, found: list[Violation], counts: dict[str, int]) -> None:
        self.stdout.write(f"{counts['events']} meter events, {counts['entries']} ledger entries")
        for name in audit.names():
            broken = [violation for violation in found if violation.invariant == name]
            self.stdout.write(f"  {name:<52} {f'{len(broken)} BROKEN' if broken else 'kept'}")
        for violation in found:
            self.stdout.write(f"{violation.invariant}: {violation.subject}: {violation.detail}")
