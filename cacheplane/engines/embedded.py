"""The bundled engine: llama.cpp's own HTTP server, from the xllamacpp wheel, in a process of its own.

    python -m cacheplane.engines.embedded --model FILE --port P --kv-dir DIR --slots 4 --api-key-env NAME

Nothing else of the project runs in this process: a damaged file can end it, and then its supervisor starts it
again. It ends with its parent.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from blake3 import blake3

# The engine's library reads these when it loads, and some of it loads before Python could set them.
# PASSIVE: waiting threads sleep instead of spinning, which halves the time of a prefill on shared cores.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GGML_NO_BACKTRACE": "1"}

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    _need_environment()
    _die_with_parent(options.parent_pid)
    _check_files(options)
    _check_port(options)
    xllamacpp = _library()
    server = _start(xllamacpp, _parameters(xllamacpp, options), options)
    stop = threading.Event()
    # Set after the server has started, which sets its own.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    print(f"engine: listening on {server.listening_address}", flush=True)
    while not stop.wait(0.5):
        pass
    # The server's own shutdown waits for open connections; the process ending is all that is needed.
    sys.stdout.flush()
    os._exit(0)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cacheplane.engines.embedded", description="Run the bundled engine."
    )
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_number(0, 65_535), required=True)
    parser.add_argument("--kv-dir", type=Path, required=True, help="where saved slots are kept")
    parser.add_argument("--slots", type=_number(1, 256), default=4)
    parser.add_argument("--window-tokens", type=_number(256, 16_777_216), default=131_072, help="per slot")
    parser.add_argument("--threads", type=_number(1, 1024), default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="environment variable that holds the engine's key"
    )
    parser.add_argument("--parent-pid", type=int, default=os.getppid(), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _number(low: int, high: int) -> Any:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"takes a number from {low} to {high}")
        return value

    parse.__name__ = "number"
    return parse


def _need_environment() -> None:
    missing = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    if not missing:
        return
    command = [sys.executable, "-m", "cacheplane.engines.embedded", *sys.argv[1:]]
    if "--parent-pid" not in sys.argv:
        command += ["--parent-pid", str(os.getppid())]
    os.execve(sys.executable, command, os.environ | missing)


def _die_with_parent(parent_pid: int) -> None:
    """Linux only: elsewhere the supervisor alone sees to it."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:  # it died before we could ask
        sys.exit(0)


def _check_files(options: argparse.Namespace) -> None:
    try:
        with options.model.open("rb") as file:
            magic = file.read(4)
        options.kv_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _refuse(f"{error.filename} cannot be used: {error.strerror}")
    if magic != b"GGUF":
        _refuse(f"{options.model} is not a GGUF model")
    if options.api_key_env and not os.environ.get(options.api_key_env):
        _refuse(f"the environment variable {options.api_key_env} is not set")


def _check_port(options: argparse.Namespace) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just been given up will do
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            _refuse(f"port {options.port} on {options.host} cannot be used ({error.strerror}); give another")


def _library() -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        if "libgomp" in str(error):
            _refuse("the system library libgomp1 is missing; install it, on Debian: apt install libgomp1")
        _refuse(f"the engine's library cannot be loaded: {error}")
    return xllamacpp


def _parameters(xllamacpp: Any, options: argparse.Namespace) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.hostnames = [options.host]
    params.port = options.port
    params.n_parallel = options.slots
    params.n_ctx = options.slots * options.window_tokens  # the engine divides it among its slots
    params.kv_unified = False
    params.cache_ram_mib = 0  # else prompts are kept where the control plane cannot destroy them
    params.slot_save_path = f"{options.kv_dir.resolve()}/"
    params.api_keys = [os.environ[options.api_key_env]] if options.api_key_env else []
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.ui = False
    params.prefill_assistant = False  # an answer goes on from a message only where that is said
    params.fit_params = False
    params.warmup = False
    params.n_gpu_layers = 0
    # A call that is given up ends, and progress is told, after so many tokens.
    params.n_batch = params.n_ubatch
    params.n_threads_http = 8 * options.slots + 32  # a kept-alive connection holds a thread of the server
    params.verbosity = 1  # errors; a warning quotes what a caller has sent, and a log must not
    params.model_alias = {options.model.name}
    params.model_tags = _tags(xllamacpp, options.model)
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    return params


def _tags(xllamacpp: Any, model: Path) -> set[str]:
    """What a saved KV state depends on and the server does not tell: the adapter's fingerprint reads it."""
    digest = blake3(max_threads=blake3.AUTO).update_mmap(model).hexdigest()
    return {
        f"model-blake3={digest}",
        f"library=xllamacpp-{xllamacpp.__version__}",
        "kv=f16",
        "flash-attention=auto",
    }


def _start(xllamacpp: Any, params: Any, options: argparse.Namespace) -> Any:
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        time.sleep(0.3)  # the library's own lines come from a thread of its own: let them end first
        _refuse(f"the engine cannot run {options.model}, see the lines above ({str(error).rstrip('.')})")


def _refuse(sentence: str) -> NoReturn:
    sys.stderr.write(f"engine: {sentence}.\n")
    sys.exit(1)


if __name__ == "__main__":
    main()
