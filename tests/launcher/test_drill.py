"""`manage.py drill money`: a server of its own, figures as a table and as JSON, and nothing left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

from tests.conftest import wait_for
from tests.launcher.conftest import REPOSITORY, assert_nothing_left


def drill(*arguments: str, temporary: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", "drill", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"TMPDIR": str(temporary), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_it_prints_its_figures_and_leaves_nothing(short_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    sizes = ["--operations", "200", "--intervals", "300", "--events", "300"]
    parts = ["--part", "intervals", "operations", "--part", "rerating"]
    done = drill("money", "--seed", "5", *sizes, *parts, "--json", str(file), temporary=short_path)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(file.read_text())
    assert [(one["part"], one["count"], one["seed"], one["is_reached"]) for one in figures] == [
        ("intervals", 300, 5, True),
        ("rerating", 300, 5, True),
        ("operations", 200, 5, True),
    ]
    assert "0 violations" in done.stdout
    assert list(short_path.iterdir()) == []
    assert_nothing_left(str(short_path))


def test_stopped_in_the_middle_it_leaves_nothing(short_path: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "manage.py", "drill", "money", "--part", "operations"],
        cwd=REPOSITORY,
        env=os.environ | {"TMPDIR": str(short_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    family = psutil.Process(running.pid)

    def plays(process: psutil.Process) -> bool:
        try:
            return "multiprocessing.spawn" in " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            return False  # one of the short-lived ones has ended since it was listed

    def players() -> int:
        return sum(plays(child) for child in family.children(recursive=True))

    try:
        wait_for(lambda: players() == 2, seconds=120, what="two processes play")
    finally:
        running.terminate()
    _, errors = running.communicate(timeout=60)
    assert (running.returncode, errors.decode()) == (130, "")
    assert list(short_path.iterdir()) == []
    assert_nothing_left(str(short_path))


def test_an_unknown_part_or_size_is_refused_in_a_sentence(short_path: Path) -> None:
    for arguments in (["--part", "luck"], ["--operations", "0"]):
        done = drill("money", *arguments, temporary=short_path)
        assert done.returncode == 2
        assert arguments[0] in done.stderr and "Traceback" not in done.stderr


def test_it_never_begins_on_a_database_that_was_not_made_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cacheplane.management.drill", "{}"],
        cwd=REPOSITORY,
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "cacheplane.settings", "SECRET_KEY": "x" * 50},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "a database of its own" in done.stderr
