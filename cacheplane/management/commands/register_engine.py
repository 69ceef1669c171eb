"""Ask and probe the engine that ENGINE_URL names, and write down what it can do."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from cacheplane.engines import registry
from cacheplane.errors import EngineError


class Command(BaseCommand):
    help = "Register the engine at ENGINE_URL: its slots, its window, and whether it can keep KV states."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            engine = registry.register()
        except EngineError as error:
            raise CommandError(
                f"The engine at ENGINE_URL did not answer the probe: {error.message}"
            ) from error
        keeps = (
            "keeps KV states" if engine.persist else "does NOT keep KV states: nothing can be cached on it"
        )
        self.stdout.write(
            f"{engine.url}: {engine.total_slots} slots of {engine.window_tokens} tokens, {keeps}."
        )
