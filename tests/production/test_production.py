"""Production is configuration: the main job on PostgreSQL over TCP, Redis, RabbitMQ, and an engine of its own.

Nothing of the embedded kind is left but the bundled engine's program, started as an operator would start it.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cacheplane.launcher import engine as engines
from cacheplane.launcher import testing
from tests.conftest import Client, free_port, start_instance, using_database_of, wait_for
from tests.faults import harm
from tests.production import servers, units

pytestmark = [pytest.mark.own_instance, pytest.mark.xdist_group("production")]

POST_SECONDS_MAX = 1.5
SECONDS = 120.0


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    with servers.postgresql() as url:
        yield url


@dataclass(frozen=True)
class ExternalEngine:
    url: str
    api_key: str
    kv_dir: Path

    @property
    def settings(self) -> dict[str, str]:
        return {"ENGINE_URL": self.url, "ENGINE_API_KEY": self.api_key, "ENGINE_KV_DIR": str(self.kv_dir)}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[ExternalEngine]:
    model = Path(os.environ.get("MODEL") or testing.nano_model())
    key, kv_dir = secrets.token_urlsafe(24), tmp_path / "engine-kv"
    with (tmp_path / "engine.log").open("wb") as log:
        running = engines.start(model=model, kv_dir=kv_dir, api_key=key, output=log)
    yield ExternalEngine(url=running.url, api_key=key, kv_dir=kv_dir)
    running.stop()


def main_job(client: Client, kv_dir: Path) -> None:
    """Create, wait, hit, and miss; delete, and the bytes are gone."""
    made = client.active("The keeper of the light answers shortly.")
    assert [path.name.split(".")[0] for path in kv_dir.iterdir()] == [made["id"]]
    hit = client.ask(made["id"])
    assert hit.status == 200, hit.body
    assert hit.json["usage"]["cached_tokens"] >= made["tokens"] - 1 > 0
    assert hit.headers["msh-context-cache-id"] == made["id"]
    plain = client.chat({"role": "user", "content": "And without?"})
    assert plain.status == 200, plain.body
    assert plain.json["usage"]["cached_tokens"] == 0
    assert client.request("DELETE", f"/v1/caching/{made['id']}").status == 200
    assert client.get(made["id"]).status == 404
    wait_for(lambda: not list(kv_dir.iterdir()), seconds=SECONDS, what="the bytes are destroyed")


def test_up_with_redis(
    postgresql: str, engine: ExternalEngine, tmp_path: Path, django_db_blocker: object
) -> None:
    with servers.redis() as (broker_url, broker):
        instance = start_instance(
            tmp_path / "data",
            environment={
                "DATABASE_URL": servers.new_database(postgresql, "with_redis"),
                "CELERY_BROKER_URL": broker_url,
                **engine.settings,
            },
        )
        try:
            assert set(instance.pids) == {"up", "web", "worker", "beat"}, "nothing embedded is started"
            client = instance.client()
            main_job(client, engine.kv_dir)

            broker.stop()
            began = time.monotonic()
            made = client.create("There was no broker when this came.")
            took = time.monotonic() - began
            assert made.status == 200, made.body
            assert took < POST_SECONDS_MAX
            hit_meanwhile = client.chat({"role": "user", "content": "Are calls served?"})
            assert hit_meanwhile.status == 200
            broker.start()  # and it is empty
            client.wait_until(made.json["id"], "active", seconds=SECONDS)
            with using_database_of(instance, django_db_blocker):
                from billing import audit, clock

                assert len(harm.instants(made.json["id"], "active")) == 1
                assert audit.violations(clock.now()) == []
        finally:
            assert harm.stopped(instance) == 0, instance.log.read_text()[-4000:]


def test_services_with_rabbitmq(postgresql: str, engine: ExternalEngine, tmp_path: Path) -> None:
    """The commands of the units for systemd, prefork pool and all; a pool's child is killed in mid-precompute."""
    port = free_port()
    with servers.rabbitmq() as broker_url:
        settings = {
            "CACHEPLANE_PYTHON_ENV": "current",
            "DATA_DIR": str(tmp_path / "state"),
            "DATABASE_URL": servers.new_database(postgresql, "with_rabbitmq"),
            "CELERY_BROKER_URL": broker_url,
            "SECRET_KEY": secrets.token_urlsafe(48),
            "API_KEY_PEPPER": secrets.token_urlsafe(48),
            "BASE_URL": f"http://127.0.0.1:{port}",
            "PRECOMPUTE_LEASE_SECONDS": "5",
            **engine.settings,
        }
        (tmp_path / "state").mkdir()
        manage = [sys.executable, "manage.py"]
        units.run_to_end(units.command("migrate", settings=settings), settings)
        units.run_to_end(units.command("engine", name="ExecStartPost", settings=settings), settings)
        new = units.run_to_end(
            [*manage, "create_organization", "Acme", "--tier", "tier5", "--recharge", "20000", "--json"],
            settings,
        )
        client = Client(settings["BASE_URL"], json.loads(new.splitlines()[-1])["api_key"])
        changes = {"web": {"port": str(port)}, "worker": {"concurrency": "2"}}
        with units.running("web", "worker", "beat", settings=settings, logs=tmp_path, **changes) as pids:
            wait_for(lambda: is_ready(client.base_url), seconds=SECONDS, what="web is ready")
            main_job(client, engine.kv_dir)

            made = client.create(harm.long_text("Struck"))
            assert made.status == 200, made.body
            wait_for(
                lambda: progress(client, made.json["id"]), seconds=SECONDS, what="a prefill runs", every=0.02
            )
            assert client.get(made.json["id"]).json["status"] == "pending"
            children = children_of(pids["worker"])
            assert len(children) >= 2, "a pool of processes"
            for child in children:
                os.kill(child, signal.SIGKILL)
            client.wait_until(made.json["id"], "active", seconds=2 * SECONDS)
            hit = client.ask(made.json["id"], model=harm.LONG_MODEL)
            assert hit.json["usage"]["cached_tokens"] >= made.json["tokens"] - 1
        units.run_to_end([*manage, "audit_ledger"], settings)
        units.run_to_end([*manage, "check", "--deploy"], settings)


def is_ready(base_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base_url}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def progress(client: Client, cache_id: str) -> int:
    """Tokens of a pending object that are evaluated so far."""
    return int(client.get(cache_id).headers["msh-context-cache-progress"].split("/")[0])


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
