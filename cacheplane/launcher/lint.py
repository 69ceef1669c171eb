"""`manage.py lint`: everything that is checked without running the system. All steps run, even when one fails."""

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One check: what is run, and what it means when it fails."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def main(argv: Sequence[str]) -> int:
    """Run all checks, print a summary; returns 1 when any has failed."""
    parser = argparse.ArgumentParser(prog="manage.py lint", description=__doc__)
    parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="cacheplane-lint-") as data_dir:
        outcomes = [(step, *_run(step, data_dir)) for step in _steps()]
    print()
    for step, passed, seconds in outcomes:
        print(f"  {'ok    ' if passed else 'FAILED'}  {seconds:6.1f} s  {step.name}")
    return 0 if all(passed for _, passed, _ in outcomes) else 1


def _steps() -> list[Step]:
    python = sys.executable
    django = (python, "-W", "ignore::RuntimeWarning", "-m", "django")
    return [
        Step(name="format", command=(python, "-m", "ruff", "format", "--check", ".")),
        Step(
            name="lint", command=(python, "-m", "ruff", "check", "--quiet", "--output-format", "concise", ".")
        ),
        Step(name="types", command=(python, "-m", "mypy")),
        Step(
            name="import floors",
            command=(python, "-c", "from importlinter.cli import lint_imports_command as run; run()"),
        ),
        # It looks for a database to compare with and, without one, only warns.
        Step(name="migrations complete", command=(*django, "makemigrations", "--check", "--dry-run")),
        Step(
            name="deployment check",
            command=(*django, "check", "--deploy", "--fail-level", "WARNING"),
            environment=_as_in_production(),
        ),
    ]


def _as_in_production() -> dict[str, str]:
    return {
        "SECRET_KEY": secrets.token_urlsafe(48),
        "API_KEY_PEPPER": secrets.token_urlsafe(48),
        "BASE_URL": "https://cache.example.com",
        "ALLOWED_HOSTS": "cache.example.com",
        "DEBUG": "false",
    }


def _run(step: Step, data_dir: str) -> tuple[bool, float]:
    """Run one step and show what it said when it failed; returns whether it passed, and its seconds."""
    own = {"DATA_DIR": data_dir, "DJANGO_SETTINGS_MODULE": "cacheplane.settings", "PYTHONPATH": str(ROOT)}
    print(f"{step.name} …", flush=True)
    started = time.monotonic()
    result = subprocess.run(
        step.command,
        cwd=ROOT,
        env={**os.environ, **own, **step.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode != 0:
        print(result.stdout.rstrip())
    return result.returncode == 0, time.monotonic() - started
