"""The commands of `deploy/systemd`, run as systemd would run them: nothing here is written twice."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cacheplane.launcher import processes
from tests.conftest import REPOSITORY

UNITS = REPOSITORY / "deploy" / "systemd"
INSTALLED_IN = "/opt/cacheplane"
STEP_SECONDS = 120
STOP_SECONDS = 30.0


def values(unit: str, name: str) -> list[str]:
    """What a unit says under a name, each time it does."""
    lines = (UNITS / f"cacheplane-{unit}.service").read_text().splitlines()
    return [line.split("=", 1)[1] for line in lines if line.startswith(f"{name}=")]


def command(unit: str, *, name: str = "ExecStart", settings: Mapping[str, str], **changes: str) -> list[str]:
    """A unit's command in this folder and this interpreter; `changes` are options that it names otherwise."""
    [line] = values(unit, name)
    words = [_expanded(word, settings) for word in shlex.split(line)]
    words = [
        word.replace(f"{INSTALLED_IN}/.venv/bin/python", sys.executable).replace(
            INSTALLED_IN, str(REPOSITORY)
        )
        for word in words
    ]
    for option, value in changes.items():
        words[words.index(f"--{option}") + 1] = value
    return words


def _expanded(word: str, settings: Mapping[str, str]) -> str:
    for name, value in settings.items():
        word = word.replace(f"${{{name}}}", value)
    return word


def environment(unit: str, settings: Mapping[str, str]) -> dict[str, str]:
    """What systemd would give it: its own lines, the environment file, and little else."""
    own = dict(word.split("=", 1) for line in values(unit, "Environment") for word in shlex.split(line))
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"} | own | dict(settings)


def run_to_end(words: list[str], settings: Mapping[str, str]) -> str:
    """A command of an operator; what it said."""
    done = subprocess.run(
        words,
        cwd=REPOSITORY,
        env=environment("migrate", settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=STEP_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@contextmanager
def running(
    *units: str, settings: Mapping[str, str], logs: Path, **changes: dict[str, str]
) -> Iterator[dict[str, int]]:
    """These services, started together; their pids. They must end in order when they are told to."""
    with ExitStack() as stack:
        pids = {}
        for unit in units:
            pids[unit] = stack.enter_context(
                _service(unit, settings=settings, log=logs / f"{unit}.log", changes=changes.get(unit, {}))
            )
        yield pids


@contextmanager
def _service(unit: str, *, settings: Mapping[str, str], log: Path, changes: dict[str, str]) -> Iterator[int]:
    with log.open("ab") as output:
        process = processes.spawn(
            command(unit, settings=settings, **changes),
            environment=environment(unit, settings),
            output=output,
        )
    try:
        yield process.pid
        assert process.poll() is None, f"{unit} ended by itself: " + log.read_text()[-4000:]
    finally:
        ended = processes.stop(process, stop_signal=signal.SIGTERM, timeout_seconds=STOP_SECONDS)
    assert ended, f"{unit} did not end when it was told to: " + log.read_text()[-4000:]
