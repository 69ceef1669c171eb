"""`manage.py verify_statement FILE…`: recompute downloaded statements, without a database or a running instance."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from billing import verification
from billing.verification import StatementWrong


class Command(BaseCommand):
    help = "Recompute statements from their JSON alone. Exit status 1 at the first line that is off."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "files",
            nargs="+",
            metavar="FILE",
            type=Path,
            help="A statement's JSON; several, oldest first, are also checked to follow each other.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            proofs = verification.verify_all([path.read_bytes() for path in options["files"]])
        except (StatementWrong, OSError) as error:
            self.stderr.write(f"not proved: {error}")
            sys.exit(1)
        for proof in proofs:
            self.stdout.write(str(proof))
