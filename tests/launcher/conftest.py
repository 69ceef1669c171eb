"""Real processes: servers, scripts that are killed, and a look at what is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for a socket in it, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="cp-") as folder:
        yield Path(folder)


@pytest.fixture
def long_path(tmp_path: Path) -> Path:
    folder = tmp_path / ("a-folder-with-a-long-name-" * 4)
    folder.mkdir()
    return folder


RunScript = Callable[..., "Script"]


class Script:
    """A Python process that runs `source`; its output is read line by line."""

    def __init__(self, source: str, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", source, *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        found = self.process.stdout.readline().strip()
        if not found:
            self.process.kill()
            pytest.fail(self.process.communicate()[1])
        return found

    def end(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait(60)


@pytest.fixture
def run_script() -> Iterator[RunScript]:
    running: list[Script] = []

    def run(source: str, *arguments: str, **environment: str) -> Script:
        running.append(Script(source, *arguments, **environment))
        return running[-1]

    yield run
    for script in running:
        if script.process.poll() is None:
            script.end(signal.SIGKILL)


def processes_with(text: str) -> list[str]:
    """The command lines of all live processes that hold `text`, our own excepted."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if (
            text in line
            and process.info["pid"] != os.getpid()
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ):
            found.append(f"{process.info['pid']}: {line}")
    return found


def assert_nothing_left(text: str, *, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while left := processes_with(text):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
