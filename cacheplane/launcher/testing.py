"""`manage.py test`: pytest with a PostgreSQL and a model of its own, taken down again after it."""

import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cacheplane.launcher import engine, postgres
from cacheplane.launcher.errors import LauncherError

ROOT = Path(__file__).resolve().parents[2]
# One worker more than the smallest machine has cores: the longest tests mostly wait.
DEFAULT_ARGUMENTS = ("-n", "3", "--dist", "loadgroup")
MODEL_SEED = 1234
# What a developer's shell may hold and a test must not reach.
FOREIGN = (
    "CELERY_BROKER_URL",
    "ENGINE_URL",
    "ENGINE_API_KEY",
    "ENGINE_KV_DIR",
    "BASE_URL",
    "ALLOWED_HOSTS",
    "DEBUG",
)


def main(argv: Sequence[str]) -> int:
    """Run pytest with these arguments after the default ones; returns its exit status."""
    if list(argv) == ["--help"]:
        print("usage: manage.py test [arguments of pytest]\n")
        print(f"Runs `pytest {' '.join(DEFAULT_ARGUMENTS)}` on an embedded PostgreSQL and a generated model.")
        return 0
    engine.need_openmp()
    # A short path, for the sockets in it; not the folder that pytest puts its own into.
    folder = Path(tempfile.mkdtemp(prefix="cacheplane-test-"))
    (folder / "data" / "static").mkdir(parents=True)
    try:
        server = postgres.start(folder / "postgres", log=folder / "postgres.log", durable=False)
        try:
            return _pytest(argv, _environment(folder, database_url=server.url))
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path, *, database_url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return kept | {
        "DATA_DIR": str(folder / "data"),
        "DATABASE_URL": database_url,
        "SECRET_KEY": secrets.token_urlsafe(48),
        "API_KEY_PEPPER": secrets.token_urlsafe(48),
        "MODEL": str(nano_model()),
        "DJANGO_SETTINGS_MODULE": "cacheplane.settings",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }


def _pytest(argv: Sequence[str], environment: dict[str, str]) -> int:
    """In our process group and on our terminal, so that Ctrl-C and a debugger work as with plain pytest."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *DEFAULT_ARGUMENTS, *argv], cwd=ROOT, env=environment
    )
    signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGINT))
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # pytest got it as well and takes its fixtures down


def nano_model() -> Path:
    """The smallest generated model, made once for each version of what generates it. Raises LauncherError."""
    folder = ROOT / "var" / "test-model"
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / f"nano-{_generator_digest()}.gguf"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if model.exists():
            return model
        print("cacheplane: generating the model of the tests, once", file=sys.stderr, flush=True)
        for older in folder.glob("nano-*.gguf"):
            older.unlink()
        made = subprocess.run(
            [sys.executable, "-m", "django", "make_model", "--preset", "nano"]
            + ["--out", str(model), "--seed", str(MODEL_SEED)],
            cwd=ROOT,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "cacheplane.settings"},
            capture_output=True,
            text=True,
        )
    if made.returncode != 0:
        raise LauncherError(f"The model of the tests could not be generated:\n{made.stderr[-2000:]}")
    return model


def _generator_digest() -> str:
    """Names the version of the generator: its source and the text that it learns its tokens from."""
    engines = ROOT / "cacheplane" / "engines"
    sources = [engines / "make_gguf.py", engines / "tokenizer.py", *sorted((engines / "corpus").rglob("*.*"))]
    digest = hashlib.sha256()
    for source in sources:
        if "__pycache__" not in source.parts:
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
