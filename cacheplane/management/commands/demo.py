"""`manage.py demo`: a cache object from a long text, three questions with it and without, timed and paid."""

from __future__ import annotations

import signal
from argparse import ArgumentParser
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console

from cacheplane.engines.make_gguf import PRESETS
from cacheplane.management.demo import costs, journey, report, target
from cacheplane.management.demo.client import Api
from cacheplane.management.demo.errors import DemoError
from cacheplane.management.demo.target import Target


class Command(BaseCommand):
    help = "Show what a cache object saves, on the running server or on one that is started for the purpose."
    requires_system_checks: list[str] = []  # it may have no database of its own to check

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--base-url", default="", help="a server anywhere; needs --api-key")
        parser.add_argument("--api-key", default="", help="a key of that server")
        parser.add_argument(
            "--data-dir", type=Path, default=settings.DATA_DIR, help="the folder of the running instance"
        )
        parser.add_argument(
            "--preset",
            choices=sorted(PRESETS),
            default="bench",
            help="the model of a server of its own; the figures of nano are small (default: bench)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        console = Console()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it, it tidies up
        try:
            with _target(console, **_chosen(options)) as found:
                _demonstrate(console, found)
        except DemoError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            raise CommandError("Stopped; what it had made is deleted.", returncode=130) from None


def _chosen(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("base_url", "api_key", "data_dir", "preset")}


def _target(
    console: Console, *, base_url: str, api_key: str, data_dir: Path, preset: str
) -> AbstractContextManager[Target]:
    if base_url:
        if not api_key:
            raise DemoError("--base-url needs --api-key: a key of that server.")
        local = target.instance_values(data_dir).get("BASE_URL", "").rstrip("/") == base_url.rstrip("/")
        return nullcontext(
            Target(base_url=base_url, api_key=api_key, data_dir=data_dir if local else None, pids={})
        )
    if found := target.running(data_dir.resolve(), api_key=api_key):
        console.print(f"demo: using the server at {found.base_url}", highlight=False)
        return nullcontext(found)
    console.print(f"demo: no server runs in {data_dir}", highlight=False)
    return target.own(preset=preset, say=lambda line: console.print(f"demo: {line}", highlight=False))


def _demonstrate(console: Console, found: Target) -> None:
    api = Api(found.base_url, found.api_key)
    paid = costs.of_instance(found.data_dir, api)
    watcher = report.TerminalWatcher(console)
    try:
        result = journey.run(api, paid, watcher)
    finally:
        watcher.stop()
        api.close()
    report.show(console, result, costs_from=paid.source)
    console.print(
        "The bundled model's answers are noise and not shown; times, tokens and money are real.\n"
        "Left behind: nothing. The cache object is deleted; only its lines stay in the ledger.",
        highlight=False,
    )
