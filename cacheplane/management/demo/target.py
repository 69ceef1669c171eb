"""The server that the demonstration runs against: one that runs already, or one of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import environ
from django.conf import settings

from cacheplane.launcher import engine, processes
from cacheplane.launcher.engine import ROOT
from cacheplane.management.demo.client import Api
from cacheplane.management.demo.errors import DemoError, ServerAway

START_TIMEOUT_SECONDS = 600.0
"""For a machine that must first make its environment and its model."""
STOP_TIMEOUT_SECONDS = 45.0
LOOK_EVERY_SECONDS = 0.1

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server that answers. `data_dir`: its folder, if it is here; `pids`: its processes, if it is ours."""

    base_url: str
    api_key: str
    data_dir: Path | None
    pids: dict[str, int]


def running(data_dir: Path, *, api_key: str = "") -> Target | None:
    """The instance whose folder this is; None when none runs. Raises DemoError when its key is not known."""
    written = instance_values(data_dir)
    base_url = written.get("BASE_URL", "")
    if not base_url or not answers(base_url):
        return None
    key = api_key or _key_of(data_dir)
    if not key:
        raise DemoError(
            f"A server runs at {base_url}, but no API key of it lies in {data_dir}: give one with --api-key."
        )
    return Target(base_url=base_url, api_key=key, data_dir=data_dir, pids={})


def instance_values(data_dir: Path) -> dict[str, str]:
    """What `manage.py up` wrote for the other commands; empty where it never ran."""

    class Written(environ.Env):  # type: ignore[misc]  # it has no types
        ENVIRON: ClassVar[dict[str, str]] = {}  # not the process's: what it was given is another instance's

    if (data_dir / "instance.env").exists():
        Written.read_env(str(data_dir / "instance.env"))
    return Written.ENVIRON


def answers(base_url: str) -> bool:
    try:
        Api(base_url).call("GET", "/livez")
    except DemoError:
        return False
    return True


def _key_of(data_dir: Path) -> str:
    """The first organization's key, which `up` keeps to show it again; empty when there is none."""
    try:
        return str(json.loads((data_dir / "secrets.json").read_text())["API_KEY"])
    except (OSError, ValueError, KeyError):
        return ""


@contextmanager
def own(*, preset: str, say: Say) -> Iterator[Target]:
    """Start a server in a temporary folder; when the block is left it is stopped and the folder removed.

    It ends with this process, however that ends. Raises DemoError when it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="cacheplane-demo-", ignore_cleanup_errors=True) as folder:
        data_dir, ready_file, log = Path(folder, "data"), Path(folder, "ready.json"), Path(folder, "up.log")
        command = [sys.executable, str(ROOT / "manage.py"), "up", "--port", str(engine.free_port())]
        command += ["--data-dir", str(data_dir), "--ready-file", str(ready_file), "--preset", preset]
        say("starting a server of its own, which takes up to a minute and a half")
        with log.open("wb") as output:
            process = processes.spawn(
                command, environment=_environment(), output=output, death_signal=signal.SIGTERM
            )
        try:
            ready = _wait(ready_file, has_ended=lambda: process.poll() is not None, log=log)
            yield Target(
                base_url=ready["base_url"],
                api_key=ready["api_key"],
                data_dir=data_dir,
                pids=ready.get("pids", {}),
            )
        finally:
            say("stopping its server")
            processes.stop(process, stop_signal=signal.SIGTERM, timeout_seconds=STOP_TIMEOUT_SECONDS)


def _environment() -> dict[str, str]:
    """Ours, without what would lead the new instance to the database, engine or folder of another."""
    not_ours = ("DATA_DIR", "DATABASE_URL", "CELERY_BROKER_URL", "ENGINE_URL", "ENGINE_KV_DIR", "BASE_URL")
    # Reading the settings put what they found in a folder into the environment.
    read = instance_values(settings.DATA_DIR)
    return {
        name: value for name, value in os.environ.items() if name not in not_ours and read.get(name) != value
    }


def _wait(ready_file: Path, *, has_ended: Callable[[], bool], log: Path) -> dict[str, Any]:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if ready_file.exists():
            ready: dict[str, Any] = json.loads(ready_file.read_text())
            return ready
        if has_ended():
            raise ServerAway(f"The server did not start. It said:\n{processes.tail(log)}")
        time.sleep(LOOK_EVERY_SECONDS)
    waited = f"{START_TIMEOUT_SECONDS:.0f} s"
    raise ServerAway(f"The server was not ready within {waited}. It said:\n{processes.tail(log)}")
