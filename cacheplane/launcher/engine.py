"""The embedded engine as a process: how it is started, when it is ready, for `up` and for tests."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cacheplane.launcher import processes
from cacheplane.launcher.errors import LauncherError

HOST = "127.0.0.1"
SLOTS = 4
API_KEY_VARIABLE = "ENGINE_API_KEY"
START_TIMEOUT_SECONDS = 300.0  # a large model is read, and its digest taken, before the first answer
STOP_TIMEOUT_SECONDS = 5.0
PROBE_TIMEOUT_SECONDS = 2.0
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A started engine. `url` has no trailing slash."""

    url: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        processes.stop(self.process, stop_signal=signal.SIGTERM, timeout_seconds=STOP_TIMEOUT_SECONDS)


def command(*, model: Path, kv_dir: Path, port: int, slots: int = SLOTS) -> list[str]:
    """The engine's command line; its key is read from the environment, never from there."""
    return [
        *(sys.executable, "-m", "cacheplane.engines.embedded"),
        *("--model", str(model), "--host", HOST, "--port", str(port)),
        *("--kv-dir", str(kv_dir), "--slots", str(slots), "--api-key-env", API_KEY_VARIABLE),
    ]


def environment(base: Mapping[str, str], *, api_key: str) -> dict[str, str]:
    """What the engine's libraries read when they load. PASSIVE: waiting threads sleep, they do not spin."""
    return {**base, API_KEY_VARIABLE: api_key, "OMP_WAIT_POLICY": "PASSIVE", "GGML_NO_BACKTRACE": "1"}


def start(
    *,
    model: Path,
    kv_dir: Path,
    api_key: str,
    slots: int = SLOTS,
    port: int | None = None,
    output: IO[bytes] | int | None = None,
) -> Running:
    """Start an engine and wait until it answers; it ends with this process. Raises LauncherError."""
    need_openmp()
    kv_dir.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    process = processes.spawn(
        command(model=model, kv_dir=kv_dir, port=port, slots=slots),
        environment={**environment(os.environ, api_key=api_key), "PYTHONPATH": str(ROOT)},
        output=output,
    )
    running = Running(url=f"http://{HOST}:{port}", process=process)
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not is_ready(running.url):
        if process.poll() is not None or time.monotonic() > deadline:
            running.stop()
            raise LauncherError(f"The engine did not start with {model} (exit status {process.returncode}).")
        time.sleep(0.05)
    return running


def is_ready(url: str) -> bool:
    """Whether the engine at `url` has loaded its model."""
    return answers(f"{url}/health")


def answers(url: str) -> bool:
    """Whether GET `url` gives 200, without a proxy in between."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=PROBE_TIMEOUT_SECONDS) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def free_port(host: str = HOST) -> int:
    """A port that is free now; the kernel gives another one each time, so a race for it is unlikely."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def need_openmp() -> None:
    """The engine's library needs the system's OpenMP. Raises LauncherError with the package's name."""
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError as error:
        raise LauncherError(
            "The system library libgomp1 is missing: run `apt install libgomp1` (as root)."
        ) from error
