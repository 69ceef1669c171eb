"""`manage.py export_usage [--once | --restored]`: what a worker does every few seconds, by hand."""

from __future__ import annotations

import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from billing.errors import ExportError
from cacheplane.events import usage_export
from cacheplane.events.usage_sinks import SinkFailed

PAUSE_SECONDS = 5.0
ROUND_SECONDS = 60.0


class Command(BaseCommand):
    help = "Export meter events as CloudEvents to BILLING_EXPORT_URL, and go on until Ctrl-C."

    def add_arguments(self, parser: CommandParser) -> None:
        how = parser.add_mutually_exclusive_group()
        how.add_argument(
            "--once", action="store_true", help="what is due, then end; exit status 1 on a failure"
        )
        how.add_argument(
            "--restored",
            action="store_true",
            help="once, after the database was restored from a dump and before the service starts",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        sink = usage_export.configured()
        if sink is None:
            raise CommandError("BILLING_EXPORT_URL is not set: say where to, for example file:///srv/usage")
        try:
            if options["once"] or options["restored"]:
                run = usage_export.export_after_restore if options["restored"] else usage_export.export_now
                self.stdout.write(f"{run()} events to {sink.name}")
                return
        except (SinkFailed, ExportError) as error:
            raise CommandError(f"{sink.name}: {error.message}") from error
        self._go_on(sink.name)

    def _go_on(self, name: str) -> None:
        while True:
            if sent := usage_export.export_due(seconds=ROUND_SECONDS):
                self.stdout.write(f"{sent} events to {name}")
            time.sleep(PAUSE_SECONDS)
