"""Real engines for the contract suite: the bundled one, and one started as an operator would start his own.

`CONTRACT_ENGINE_URL`, with `CONTRACT_ENGINE_API_KEY` and `CONTRACT_ENGINE_KV_DIR`, puts any running llama.cpp
server in the place of the second.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cacheplane.engines import http
from cacheplane.engines.llamacpp import LlamaCppEngine
from cacheplane.engines.make_gguf import write_model

START_SECONDS = 60.0
WINDOW_TOKENS = 16_384
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(kw_only=True)
class Server:
    """A running engine and how to reach it. `process` is None when somebody else runs it."""

    url: str
    api_key: str
    kv_dir: Path
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None

    def adapter(self) -> LlamaCppEngine:
        return LlamaCppEngine(self.url, self.api_key, self.kv_dir)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Straight to the engine, past the adapter. Raises urllib's HTTPError unless it answers 200."""
        data = None if body is None else msgspec.json.encode(body)
        headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return msgspec.json.decode(answer.read())

    def tokenize(self, text: str) -> list[int]:
        return self.ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def is_busy(self) -> bool:
        return any(slot["is_processing"] for slot in self.ask("/slots"))

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(10)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def started(command: list[str], *, port: int, key: str, kv_dir: Path, log: Path, **popen: Any) -> Server:
    kv_dir.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"ENGINE_API_KEY": key, "OMP_WAIT_POLICY": "PASSIVE", "GGML_NO_BACKTRACE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT, **popen
        )
    server = Server(url=f"http://127.0.0.1:{port}", api_key=key, kv_dir=kv_dir, process=process, log=log)
    deadline = time.monotonic() + START_SECONDS
    while not _is_up(server):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return server


def _is_up(server: Server) -> bool:
    try:
        return bool(server.ask("/health")["status"] == "ok")
    except (urllib.error.URLError, ConnectionError):
        return False


StartBundled = Callable[..., Server]


@pytest.fixture(scope="session")
def start_bundled(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartBundled]:
    """Start `cacheplane.engines.embedded`; whatever is still running at the end of the session is stopped."""
    running: list[Server] = []

    def start(
        *, slots: int = 4, model: Path = model_file, kv_dir: Path | None = None, **popen: Any
    ) -> Server:
        folder, port = tmp_path_factory.mktemp("bundled"), free_port()
        kv_dir = kv_dir or folder / "kv"
        command = [sys.executable, "-m", "cacheplane.engines.embedded", "--model", str(model)]
        command += ["--port", str(port), "--kv-dir", str(kv_dir), "--slots", str(slots)]
        command += ["--api-key-env", "ENGINE_API_KEY", "--window-tokens", str(WINDOW_TOKENS)]
        server = started(command, port=port, key="bundled-key", kv_dir=kv_dir, log=folder / "log", **popen)
        running.append(server)
        return server

    yield start
    _stop_all(running)


@pytest.fixture(scope="session")
def start_operators(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartBundled]:
    """Start llama.cpp's server with other settings than ours: two slots, another chat template if given."""
    running: list[Server] = []

    def start(**settings: str) -> Server:
        folder, port = tmp_path_factory.mktemp("operators"), free_port()
        script = Path(__file__).parent / "operators_server.py"
        options = [f"{name}={value}" for name, value in settings.items()]
        command = [sys.executable, str(script), str(model_file), str(port), str(folder / "kv"), *options]
        server = started(command, port=port, key="operators-key", kv_dir=folder / "kv", log=folder / "log")
        running.append(server)
        return server

    yield start
    _stop_all(running)


def _stop_all(running: list[Server]) -> None:
    for server in running:
        if server.process is not None and server.process.poll() is None:
            server.process.kill()
            server.process.wait(10)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "nano.gguf", preset="nano", seed=1234).path


@pytest.fixture(scope="session")
def bundled(start_bundled: StartBundled) -> Server:
    return start_bundled()


@pytest.fixture(scope="session")
def operators(request: pytest.FixtureRequest) -> Server:
    url = os.environ.get("CONTRACT_ENGINE_URL")
    if not url:
        start = request.getfixturevalue("start_operators")
        return start()
    key = os.environ.get("CONTRACT_ENGINE_API_KEY", "")
    return Server(url=url, api_key=key, kv_dir=Path(os.environ["CONTRACT_ENGINE_KV_DIR"]))


@pytest.fixture(params=["bundled", "operators"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each test that asks for it runs against both engines."""
    return request.getfixturevalue(request.param)


@pytest.fixture
async def engine(server: Server, anyio_backend: str) -> AsyncIterator[LlamaCppEngine]:
    yield server.adapter()
    await http.aclose()


@pytest.fixture
async def pool(anyio_backend: str) -> AsyncIterator[None]:
    """For tests that make their own adapter."""
    yield
    await http.aclose()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
