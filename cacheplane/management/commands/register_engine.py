"""Ask and probe an engine, write down what it can do, and say which models it serves."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from billing import clock, price_book
from billing.models import Meter
from cacheplane.engines import registry
from cacheplane.errors import EngineError

AUTO = "auto"
CURRENCY = "CNY"


def named_window(text: str) -> tuple[str, int | None]:
    name, _equals, window = text.partition("=")
    if not name or not (window == AUTO or (window.isascii() and window.isdigit() and int(window) > 0)):
        raise ArgumentTypeError(f"takes NAME=TOKENS or NAME={AUTO}, got {text}")
    return name, None if window == AUTO else int(window)


class Command(BaseCommand):
    help = (
        "Register an engine: its slots, its window, whether it can keep KV states, and the models it serves."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--name", default=registry.DEFAULT_ENGINE, help="the engine's name, for operators"
        )
        parser.add_argument("--url", help="where it is; ENGINE_URL if it is not said")
        parser.add_argument(
            "--kv-dir",
            type=Path,
            help="its folder of saved KV states, as seen from here; ENGINE_KV_DIR if not said",
        )
        parser.add_argument("--family", help="the model family that it is to serve from now on")
        parser.add_argument(
            "--model",
            dest="models",
            type=named_window,
            action="append",
            default=[],
            metavar=f"NAME=TOKENS|NAME={AUTO}",
            help="a name of that family and its window; more than once for more",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["models"] and not options["family"]:
            raise CommandError("--model takes --family beside it.")
        if options["name"] != registry.DEFAULT_ENGINE and not (options["url"] and options["kv_dir"]):
            raise CommandError(f"The engine {options['name']} takes its --url and its --kv-dir.")
        try:
            engine = registry.register(options["name"], url=options["url"], kv_dir=options["kv_dir"])
        except EngineError as error:
            where = "at ENGINE_URL" if options["url"] is None else f"at {options['url']}"
            raise CommandError(f"The engine {where} did not answer the probe: {error.message}") from error
        keeps = (
            "keeps KV states" if engine.persist else "does NOT keep KV states: nothing can be cached on it"
        )
        self.stdout.write(
            f"{engine.url}: {engine.total_slots} slots of {engine.window_tokens} tokens, {keeps}."
        )
        if options["family"]:
            self._serve(engine, options["family"], dict(options["models"]))

    def _serve(self, engine: Any, family: str, models: dict[str, int | None]) -> None:
        for name, window_tokens in models.items():
            if window_tokens is not None and window_tokens > engine.window_tokens:
                raise CommandError(f"{name}: the engine's window is {engine.window_tokens} tokens.")
        registry.serve(family, on=engine, models=models, operator="register_engine")
        self.stdout.write(f"It serves {family}: {', '.join(models) or 'the names that the family has'}.")
        sized = [name for name, window_tokens in models.items() if window_tokens is not None]
        wanted = [(meter, family) for meter in (Meter.CREATION, Meter.STORAGE, Meter.CALL)]
        wanted += [(meter, name) for name in sized for meter in (Meter.PROMPT, Meter.COMPLETION)]
        for meter, model in wanted:
            if not price_book.is_priced(meter=meter, model=model, currency=CURRENCY, at=clock.now()):
                self.stdout.write(
                    f"No price yet for {meter} of {model}: announce one in the admin, under Prices."
                )
