"""`manage.py make_model --preset nano|bench --out FILE --seed N`: the model of the first run."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from cacheplane.engines.make_gguf import PRESETS, write_model


def _seed(text: str) -> int:
    seed = int(text)
    if not 0 <= seed < 2**63:
        raise argparse.ArgumentTypeError("a seed is a number from 0 to 2^63 - 1")
    return seed


class Command(BaseCommand):
    help = (
        "Generate a small language model (GGUF) with random weights: real speed and bytes, noise for answers."
    )
    requires_system_checks: list[str] = []  # runs before there is a database

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--preset", choices=sorted(PRESETS), default="nano")
        parser.add_argument("--out", type=Path, required=True, metavar="FILE")
        parser.add_argument("--seed", type=_seed, default=1234)

    def handle(self, *, preset: str, out: Path, seed: int, **options: Any) -> None:
        started = time.monotonic()

        def say(sentence: str) -> None:
            self.stdout.write(f"make_model: {time.monotonic() - started:5.1f} s  {sentence}")
            self.stdout.flush()

        try:
            made = write_model(out, preset=preset, seed=seed, say=say)
        except OSError as error:
            reason = error.strerror or "the disk is full"
            raise CommandError(f"The model could not be written to {out}: {reason}.") from error
        say(f"{made.path}: {made.size_bytes / 1e6:.1f} MB, sha256 {made.sha256}")
