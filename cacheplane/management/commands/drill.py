"""`manage.py drill money`: the promises about money as figures, with seed and count. Status 1 when one is missed."""

from __future__ import annotations

import signal
import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError

from cacheplane.launcher.engine import ROOT
from cacheplane.launcher.errors import LauncherError
from cacheplane.management.drill.money import NAMES, SEED, Sizes
from cacheplane.management.drill.server import own_server

SIZES = {field.name: field.default for field in fields(Sizes)}


class Command(BaseCommand):
    help = "Try the promises about money on a database of its own, and print what was reached."
    requires_system_checks: list[str] = []  # of the operator's instance it needs nothing

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("subject", choices=["money"])
        parser.add_argument("--seed", type=int, default=SEED, help=f"of all that is drawn (default: {SEED})")
        parser.add_argument(
            "--part", action="extend", nargs="+", choices=NAMES, dest="parts", help="only these parts"
        )
        for name, size in SIZES.items():
            parser.add_argument(
                f"--{name}", type=_count, default=size, metavar="N", help=f"how many (default: {size})"
            )
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, too")

    def handle(self, *args: Any, **options: Any) -> None:
        order = {
            "seed": options["seed"],
            "parts": options["parts"] or NAMES,
            "sizes": {name: options[name] for name in SIZES},
            "json_path": str(options["json"].resolve()) if options["json"] else None,
        }
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it, it tidies up
        try:
            with own_server() as environment:
                status = _drill(msgspec.json.encode(order).decode(), environment)
        except LauncherError as error:
            raise CommandError(str(error)) from error
        if status:
            sys.exit(status)


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError(text)
    return count


def _drill(order: str, environment: dict[str, str]) -> int:
    """In our process group and on our terminal; when we are stopped, it is stopped first."""
    command = [sys.executable, "-m", "cacheplane.management.drill", order]
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return 130
