"""The running instance that the black-box tests share: `manage.py up` in a folder of its own, real from HTTP to bytes.

Tests that use it are marked `instance`. Their files are dealt out to two groups; a group's tests run one after another
on one instance, each with an organization of its own, and after each of them the ledger's invariants are run.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
START_SECONDS = 180.0
STOP_SECONDS = 30.0
FAMILY, MODEL_8K = "moonshot-v1", "moonshot-v1-8k"
OWN_BY_UP = ("DATABASE_URL", "CELERY_BROKER_URL", "ENGINE_URL", "ENGINE_API_KEY", "ENGINE_KV_DIR", "DATA_DIR")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "instance: uses the shared running instance")
    config.addinivalue_line("markers", "own_instance: starts and harms a running instance of its own")


@pytest.hookimpl(tryfirst=True)  # xdist's own hook reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    sharing = [
        item
        for item in items
        if "instance" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("own_instance")
    ]
    # Workers must agree on the groups, so they follow from the files' names alone.
    files = sorted({item.path for item in sharing})
    for item in sharing:
        item.add_marker(pytest.mark.instance)
        item.add_marker(pytest.mark.xdist_group(f"instance-{files.index(item.path) % 2 + 1}"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(condition: Callable[[], Any], *, seconds: float, what: str, every: float = 0.1) -> Any:
    """Poll until `condition` gives something true; fail with `what` when it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(every)


# --- An instance -----------------------------------------------------------------------------------------------


@dataclass
class Instance:
    """A running `manage.py up`."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    ready: dict[str, Any]
    log: Path
    _connection: Any = None

    @property
    def base_url(self) -> str:
        return str(self.ready["base_url"])

    @property
    def pids(self) -> dict[str, int]:
        return dict(self.ready["pids"])

    def client(self, key: str | None = None) -> Client:
        return Client(self.base_url, key if key is not None else str(self.ready["api_key"]))

    def environment(self) -> dict[str, str]:
        """For commands that are to reach this instance."""
        kept = {name: value for name, value in os.environ.items() if name not in OWN_BY_UP}
        return kept | {"DATA_DIR": str(self.data_dir)}

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=REPOSITORY,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )

    @property
    def settings(self) -> dict[str, str]:
        """What `up` wrote for other commands: names and values of `instance.env`."""
        lines = (self.data_dir / "instance.env").read_text().splitlines()
        pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
        return {name: value.strip("'\"") for name, value in pairs}

    def database_settings(self) -> dict[str, Any]:
        import environ

        return environ.Env.db_url_config(self.settings["DATABASE_URL"])

    @property
    def kv_dir(self) -> Path:
        return Path(self.settings["ENGINE_KV_DIR"])

    def engine_slots(self) -> list[dict[str, Any]]:
        """What the engine itself says of its slots, asked past the control plane."""
        values = self.settings
        request = urllib.request.Request(
            f"{values['ENGINE_URL']}/slots", headers={"Authorization": f"Bearer {values['ENGINE_API_KEY']}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return list(json.load(answer))

    def logs(self) -> str:
        """All that its processes have written."""
        written = sorted((self.data_dir / "logs").rglob("*"))
        return "\n".join(path.read_text(errors="replace") for path in [self.log, *written] if path.is_file())

    def connection(self) -> Any:
        """Django's, to its database. One for all tests: each new one costs PostgreSQL a process that knows no table."""
        from django.db import connections
        from django.db.backends.postgresql.base import DatabaseWrapper

        if self._connection is None:
            settings = {**connections["default"].settings_dict, **self.database_settings()}
            self._connection = DatabaseWrapper(settings, "default")
        elif self._connection.connection is not None and not self._connection.is_usable():
            self._connection.close()
        return self._connection

    def stop(self) -> int:
        if self._connection is not None:
            self._connection.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


def start_instance(
    data_dir: Path,
    *,
    port: int | None = None,
    environment: dict[str, str] | None = None,
    copy_of: Path | None = None,
) -> Instance:
    """Run `manage.py up` until it is ready; its output is the failure's text when it is not.

    `copy_of`: a folder that another has left, to begin with.
    """
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    if copy_of is not None:
        subprocess.run(["cp", "-a", str(copy_of), str(data_dir)], check=True)
    data_dir.mkdir(exist_ok=True)
    ready_file, log = (
        data_dir.parent / f"{data_dir.name}.ready.json",
        data_dir.parent / f"{data_dir.name}.log",
    )
    ready_file.unlink(missing_ok=True)
    kept = {name: value for name, value in os.environ.items() if name not in OWN_BY_UP}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "up", "--port", str(port or free_port())]
            + ["--data-dir", str(data_dir), "--ready-file", str(ready_file)],
            cwd=REPOSITORY,
            env=kept | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + START_SECONDS
    while not ready_file.exists():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.1)
    return Instance(process=process, data_dir=data_dir, ready=json.loads(ready_file.read_text()), log=log)


@pytest.fixture(scope="session")
def first_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a first start has left: tables, operator, first organization. Made once for all workers."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    folder, done = place / "first-start", place / "first-start.done"
    with (place / "first-start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            running = start_instance(folder)
            assert running.stop() == 0, running.log.read_text()[-4000:]
            done.touch()
    return folder


@pytest.fixture(scope="session")
def instance(tmp_path_factory: pytest.TempPathFactory, first_start: Path) -> Iterator[Instance]:
    running = start_instance(tmp_path_factory.mktemp("instance") / "data", copy_of=first_start)
    yield running
    assert running.stop() == 0, running.log.read_text()[-4000:]


@contextmanager
def using_database_of(instance: Instance, blocker: Any) -> Iterator[None]:
    """Within it, Django's default connection of this thread is the instance's database, and keys get its pepper."""
    from django.db import connections
    from django.test import override_settings

    before = connections["default"]
    connections["default"] = instance.connection()
    try:
        with blocker.unblock(), override_settings(API_KEY_PEPPER=instance.settings["API_KEY_PEPPER"]):
            yield
    finally:
        connections["default"] = before


@pytest.fixture
def instance_database(instance: Instance, django_db_blocker: Any) -> Iterator[None]:
    with using_database_of(instance, django_db_blocker):
        yield


# --- Callers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    """Lower-case names."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, str]:
        return dict(self.json["error"])


@dataclass
class Client:
    """Plain HTTP with a key. It never raises for a status."""

    base_url: str
    key: str
    organization: str = ""

    def request(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None
    ) -> Answer:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} | (headers or {})
        if self.key:
            sent["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.base_url + path, data=data, method=method, headers=sent)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                status, raw, got = answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as refused:
            status, raw, got = refused.code, refused.headers, refused.read()
        return Answer(status=status, headers={name.lower(): value for name, value in raw.items()}, body=got)

    def create(self, text: str = "You answer shortly.", **fields: Any) -> Answer:
        body = {"model": FAMILY, "messages": [{"role": "system", "content": text}], "ttl": 600} | fields
        return self.request("POST", "/v1/caching", body)

    def get(self, cache_id: str) -> Answer:
        return self.request("GET", f"/v1/caching/{cache_id}")

    def wait_until(self, cache_id: str, status: str, *, seconds: float = 60) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            found: dict[str, Any] = self.get(cache_id).json
            return found if found.get("status") == status else None

        return wait_for(reached, seconds=seconds, what=f"{cache_id} is {status}")

    def active(self, text: str = "You answer shortly.", **fields: Any) -> dict[str, Any]:
        """A new cache object, active."""
        made = self.create(text, **fields)
        assert made.status == 200, made.body
        return self.wait_until(made.json["id"], "active")

    def expired(self, text: str = "You answer shortly.", **fields: Any) -> dict[str, Any]:
        """A cache object that was active and has come to its end."""
        made = self.active(text, **fields)
        assert self.request("PUT", f"/v1/caching/{made['id']}", {"ttl": 1}).status == 200
        return self.wait_until(made["id"], "expired")

    def chat(self, *messages: dict[str, Any], headers: dict[str, str] | None = None, **fields: Any) -> Answer:
        body = {"model": MODEL_8K, "messages": list(messages), "max_tokens": 4} | fields
        return self.request("POST", "/v1/chat/completions", body, headers=headers)

    def ask(self, cache_id: str, question: str = "And now?", *, options: str = "", **fields: Any) -> Answer:
        """A call in message mode."""
        cache = {"role": "cache", "content": f"cache_id={cache_id}{options}"}
        return self.chat(cache, {"role": "user", "content": question}, **fields)

    def balance(self) -> dict[str, Decimal]:
        answer = self.request("GET", "/v1/users/me/balance")
        return dict(json.loads(answer.body, parse_float=Decimal, parse_int=Decimal)["data"])


def organization_of(
    instance: Instance,
    *,
    tier: str = "tier5",
    money: str = "1000",
    purse: str = "cash",
    kind: str = "standard",
) -> Client:
    """A client of a new organization; the instance's database must be the default connection."""
    from django.db import transaction

    from billing import charging, clock
    from cacheplane.access import organizations

    with transaction.atomic():
        new = organizations.create(name="Test", tier_slug=tier, kind=kind, operator="test")
        if Decimal(money):
            charging.recharge(
                organization_id=new.organization.id,
                amount=Decimal(money),
                purse=purse,
                reason="test",
                operator="test",
                idempotency_key=f"test:{new.organization.id}",
                at=clock.now(),
            )
    client = instance.client(new.issued_key.secret)
    client.organization = new.organization.id
    return client


@pytest.fixture
def new_caller(instance: Instance, instance_database: None) -> Callable[..., Client]:
    """A client of a new organization: tier5 with ¥1,000 in cash unless it is said otherwise."""

    def make(
        *, tier: str = "tier5", money: str = "1000", purse: str = "cash", kind: str = "standard"
    ) -> Client:
        return organization_of(instance, tier=tier, money=money, purse=purse, kind=kind)

    return make


@pytest.fixture
def caller(new_caller: Callable[..., Client]) -> Client:
    return new_caller()


@pytest.fixture
def ledger(instance_database: None) -> Iterator[None]:
    """After the test the invariants of the instance's whole ledger hold, as one snapshot of it shows them."""
    yield
    from django.db import connection, transaction

    from billing import audit, clock

    with transaction.atomic():
        with connection.cursor() as cursor:
            # Workers go on while it is read: without a snapshot two queries would see two ledgers.
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert audit.violations(clock.now()) == []
