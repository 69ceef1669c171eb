"""The instance that a bench runs against, its engine reached directly, and its database."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
from rich.console import Console

from cacheplane.engines import make_gguf
from cacheplane.management.demo import target
from cacheplane.management.demo.client import Api

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "var" / "bench-model"
MODEL_SEED = 1234
console = Console(highlight=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """`api` goes through us; `engine` is the same calls to the engine behind us, and its own."""

    api: Api
    engine: Api
    database: psycopg.Connection[tuple[Any, ...]]
    kv_dir: Path
    pids: dict[str, int]
    preset: str
    data_dir: Path
    api_key: str

    def forget_slots(self) -> None:
        """The next call on a cache object restores its file, as if its prefix had never been in a slot."""
        self.database.execute("UPDATE engines_engineslot SET resident = NULL")

    @contextmanager
    def without_worker(self) -> Iterator[None]:
        """What is created within it stays pending: no prefill takes the cores from what is measured."""
        worker = psutil.Process(self.pids["worker"])
        worker.suspend()
        try:
            yield
        finally:
            worker.resume()

    def last_slot(self) -> int:
        """The precompute lane, which calls take last: what a bench does there itself disturbs none of ours."""
        row = self.database.execute("SELECT max(index) FROM engines_engineslot").fetchone()
        assert row is not None
        return int(row[0])


def parser(description: str) -> ArgumentParser:
    made = ArgumentParser(description=description)
    made.add_argument("--preset", choices=sorted(make_gguf.PRESETS), default="bench")
    made.add_argument("--ready-file", type=Path, help="of a running instance that nobody else uses")
    return made


@contextmanager
def instance(*, preset: str, ready_file: Path | None) -> Iterator[Instance]:
    """A running instance, or one of our own that ends with the block."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cacheplane.settings")
    if ready_file is not None:
        yield from _attached(json.loads(ready_file.read_text()))
        return
    os.environ["MODEL"] = str(_model(preset))
    with target.own(preset=preset, say=lambda line: console.print(f"bench: {line}")) as found:
        ready = {"base_url": found.base_url, "api_key": found.api_key, "pids": found.pids}
        yield from _attached(ready)


def _attached(ready: dict[str, Any]) -> Iterator[Instance]:
    data_dir = Path(psutil.Process(ready["pids"]["web"]).environ()["DATA_DIR"])
    values = target.instance_values(data_dir)
    with psycopg.connect(values["DATABASE_URL"], autocommit=True) as database:
        found = Instance(
            api=Api(ready["base_url"], ready["api_key"]),
            engine=Api(values["ENGINE_URL"], values["ENGINE_API_KEY"]),
            database=database,
            kv_dir=Path(values["ENGINE_KV_DIR"]),
            pids=ready["pids"],
            preset=values["MODEL_PRESET"],
            data_dir=data_dir,
            api_key=ready["api_key"],
        )
        console.print(f"bench: {machine()}; preset {found.preset}")
        try:
            yield found
        finally:
            found.api.close()
            found.engine.close()


def _model(preset: str) -> Path:
    """The preset's model, generated once for each version of what it is generated from."""
    sources = [make_gguf.CORPUS.parent / "make_gguf.py", make_gguf.CORPUS.parent / "tokenizer.py"]
    sources += sorted(make_gguf.CORPUS.iterdir())
    version = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    path = MODELS / f"{preset}-{version}.gguf"
    if not path.exists():
        console.print(f"bench: generating the {preset} model, once")
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "manage.py"), "make_model", "--preset", preset]
        command += ["--out", str(path), "--seed", str(MODEL_SEED)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def machine() -> str:
    """What the figures were measured on, and how busy it was with other things."""
    load = os.getloadavg()[0]
    cores = len(psutil.Process().cpu_affinity() or [])
    return f"{_processor()}, {cores} cores, load {load:.1f}, Python {platform.python_version()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
