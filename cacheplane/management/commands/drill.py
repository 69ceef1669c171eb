"""`manage.py drill money`: the promises about money as figures, with seed and count. Status 1 when one is missed."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError

from cacheplane.launcher import postgres
from cacheplane.launcher.engine import ROOT
from cacheplane.launcher.errors import LauncherError
from cacheplane.launcher.testing import FOREIGN
from cacheplane.management.drill.money import NAMES, SEED, Sizes

CONNECTIONS_MAX = 300
"""Two hundred callers at once, and some to watch them."""
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
            status = _on_a_server_of_its_own(msgspec.json.encode(order).decode())
        except LauncherError as error:
            raise CommandError(str(error)) from error
        if status:
            sys.exit(status)


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError(text)
    return count


def _on_a_server_of_its_own(order: str) -> int:
    folder = Path(tempfile.mkdtemp(prefix="cacheplane-drill-"))
    try:
        (folder / "data").mkdir()
        server = postgres.start(
            folder / "postgres",
            log=folder / "postgres.log",
            durable=False,
            connections_max=CONNECTIONS_MAX,
        )
        try:
            return _drill(order, _environment(folder, database_url=server.url))
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def _environment(folder: Path, *, database_url: str) -> dict[str, str]:
    """Ours, without what leads to the operator's instance."""
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return kept | {
        "DATA_DIR": str(folder / "data"),
        "DATABASE_URL": database_url,
        "CACHEPLANE_DRILL_DATABASE": database_url,
        "SECRET_KEY": secrets.token_urlsafe(48),
        "API_KEY_PEPPER": secrets.token_urlsafe(48),
        "DJANGO_SETTINGS_MODULE": "cacheplane.settings",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
