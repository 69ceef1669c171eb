"""The bundled engine as a process: how it starts, refuses to start, and ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import REPOSITORY, StartBundled, free_port


def refused(*arguments: str, **environment: str) -> str:
    """The one sentence that a start that must fail says, among the library's own lines."""
    command = [sys.executable, "-m", "cacheplane.engines.embedded", *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("engine: ")]
    assert len(sentences) == 1
    assert sentences[0].endswith(".")
    return sentences[0]


def test_a_missing_model_is_one_sentence(tmp_path: Path) -> None:
    said = refused("--model", str(tmp_path / "none.gguf"), "--port", "1", "--kv-dir", str(tmp_path))
    assert "none.gguf" in said
    assert "No such file" in said


def test_a_file_that_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("this is not a model")
    said = refused("--model", str(tmp_path / "text.gguf"), "--port", "1", "--kv-dir", str(tmp_path))
    assert "is not a GGUF model" in said


def test_a_broken_model_is_one_sentence(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "half.gguf").write_bytes(model_file.read_bytes()[:2_000_000])
    said = refused(
        "--model", str(tmp_path / "half.gguf"), "--port", str(free_port()), "--kv-dir", str(tmp_path)
    )
    assert "half.gguf" in said


def test_a_port_that_is_taken_is_one_sentence(model_file: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = refused("--model", str(model_file), "--port", port, "--kv-dir", str(tmp_path))
    assert port in said
    assert "another" in said


def test_a_key_that_is_not_set_is_one_sentence(model_file: Path, tmp_path: Path) -> None:
    said = refused(
        "--model",
        str(model_file),
        "--port",
        "1",
        "--kv-dir",
        str(tmp_path),
        "--api-key-env",
        "NOT_SET_ANYWHERE",
    )
    assert "NOT_SET_ANYWHERE" in said


@pytest.mark.parametrize(
    ("complaint", "expected"),
    [("libgomp.so.1: cannot open shared object file", "apt install libgomp1"), ("no reason", "no reason")],
)
def test_a_library_that_cannot_load_is_one_sentence(
    model_file: Path, tmp_path: Path, complaint: str, expected: str
) -> None:
    # A package that fails to load the way the real one does where the system's library is missing.
    package = tmp_path / "packages" / "xllamacpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"raise ImportError({complaint!r})")
    arguments = ["--model", str(model_file), "--port", str(free_port()), "--kv-dir", str(tmp_path)]
    said = refused(*arguments, PYTHONPATH=str(package.parent))
    assert expected in said


def test_it_ends_at_once_when_asked_even_in_the_middle_of_a_call(start_bundled: StartBundled) -> None:
    server = start_bundled(slots=1)
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as line:
        body = b'{"prompt":"fog","n_predict":10000,"stream":true}'
        head = f"POST /completion HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.api_key}\r\n"
        line.sendall(
            f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        assert line.recv(100)
        begun = time.monotonic()
        assert server.stop(signal.SIGTERM) == 0
        assert time.monotonic() - begun < 2.0


def test_it_ends_with_its_parent(model_file: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "cacheplane.engines.embedded", "--model", str(model_file)]
    command += ["--port", str(port), "--kv-dir", str(tmp_path), "--slots", "1", "--window-tokens", "1024"]
    program = (
        "import subprocess, sys, time; child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, *command], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    child_pid = int(parent.stdout.readline())
    assert _within(30.0, lambda: _is_listening(port))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert _within(5.0, lambda: not _is_running(child_pid))


def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _is_listening(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) == 0


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except FileNotFoundError:
        return False
    return state != "Z"
