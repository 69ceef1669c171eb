"""Which command `manage.py` hands to whom, and what is told when there is no instance to reach."""

from __future__ import annotations

import os
import subprocess
import sys

from .conftest import REPOSITORY


def manage(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=REPOSITORY,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_tells_the_launchers_commands_and_djangos():
    told = manage("help").stdout
    assert "up      set everything up and run it" in told
    assert "create_organization" in told


def test_a_database_that_is_away_is_told_in_a_sentence(short_path):
    away = {"DATABASE_URL": f"postgres://postgres@/none?host={short_path}", "DATA_DIR": str(short_path)}
    result = manage("create_organization", "Somebody", **away)
    assert result.returncode == 1
    assert result.stderr.startswith("cacheplane: The database did not serve this (")
    assert "start the instance with `manage.py up`" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in manage("create_organization", "Somebody", "--traceback", **away).stderr


def test_a_command_of_django_returns_its_status():
    assert manage("check").returncode == 0
    assert manage("no_such_command").returncode == 1
