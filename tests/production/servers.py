"""PostgreSQL, Redis and RabbitMQ from Debian's packages, as processes of our own: on free ports of 127.0.0.1, in
temporary folders, gone with the test. The system's own services are not touched."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from cacheplane.launcher import processes
from tests.conftest import free_port, wait_for

NOBODY = 65534
START_SECONDS = 120.0
STOP_SECONDS = 20.0
# Erlang listens for its kin on the port above this many; both must exist.
RABBITMQ_PORTS_APART, PORT_MAX = 20_000, 65_535


def program(name: str, *, package: str, folders: str = "") -> Path:
    """Where a server's program lies; the test is skipped, with a sentence, where it is not installed."""
    candidates = [Path(found) for found in [shutil.which(name)] if found]
    if folders:
        candidates += sorted(Path("/").glob(f"{folders.lstrip('/')}/{name}"), reverse=True)
    if not candidates:
        pytest.skip(f"{name} is not installed: run `apt-get install {package}` to try production's parts.")
    return candidates[0]


@contextmanager
def folder(owner: int | None = None) -> Iterator[Path]:
    """Not pytest's: a server that is not root must reach it."""
    path = Path(tempfile.mkdtemp(prefix="cacheplane-production-"))
    if owner is not None:
        os.chown(path, owner, owner)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@dataclass
class Server:
    """A running server. `stop` and `start` may follow each other."""

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    port: int
    identity: str = "same"
    stop_signal: signal.Signals = signal.SIGTERM
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = processes.spawn(
                self.command, environment=self.environment, output=output, identity=self.identity
            )
        wait_for(self.listens, seconds=START_SECONDS, what=f"{self.command[0]} listens; see {self.log}")

    def listens(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text()[-4000:]
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def stop(self) -> None:
        assert self.process is not None
        processes.stop(self.process, stop_signal=self.stop_signal, timeout_seconds=STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # what its shell has started


@contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        if server.process is not None:
            server.stop()


def environment(**more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"} | more


# --- PostgreSQL ------------------------------------------------------------------------------------------------


@contextmanager
def postgresql() -> Iterator[str]:
    """Debian's server over TCP, with a password; its URL, which ends without a database's name."""
    postgres = program("postgres", package="postgresql", folders="/usr/lib/postgresql/*/bin")
    is_root = os.geteuid() == 0
    owner = NOBODY if is_root else None
    with folder(owner) as home:
        password, port, data = secrets.token_hex(16), free_port(), home / "data"
        (home / "password").write_text(password)
        (home / "password").chmod(0o644)
        subprocess.run(
            [str(postgres.with_name("initdb")), "-D", str(data), "-U", "cacheplane", "--encoding=UTF8"]
            + ["--locale=C", "--auth=scram-sha-256", "--pwfile", str(home / "password")],
            env=environment(),
            cwd=home,
            user=owner,
            check=True,
            capture_output=True,
        )
        options = (
            "listen_addresses=127.0.0.1",
            f"port={port}",
            f"unix_socket_directories={home}",
            "fsync=off",
        )
        server = Server(
            command=[
                str(postgres),
                "-D",
                str(data),
                *(part for option in options for part in ("-c", option)),
            ],
            environment=environment(),
            log=home / "log",
            port=port,
            identity="nobody" if is_root else "same",
            stop_signal=signal.SIGINT,
        )
        with running(server):
            yield f"postgres://cacheplane:{password}@127.0.0.1:{port}"


def new_database(url: str, name: str) -> str:
    def is_made() -> bool:
        with suppress(psycopg.OperationalError):  # it listens a little before it serves
            with psycopg.connect(f"{url}/postgres", autocommit=True) as connection:
                connection.execute(f'CREATE DATABASE "{name}"')
                return True
        return False

    wait_for(is_made, seconds=START_SECONDS, what=f"the database {name} is made")
    return f"{url}/{name}"


# --- Brokers ---------------------------------------------------------------------------------------------------


@contextmanager
def redis() -> Iterator[tuple[str, Server]]:
    """Debian's Redis, which keeps nothing on the disk: started again, it is empty."""
    redis_server = program("redis-server", package="redis-server")
    with folder() as home:
        password, port = secrets.token_hex(16), free_port()
        options = {"port": str(port), "bind": "127.0.0.1", "dir": str(home), "save": "", "appendonly": "no"}
        options |= {"daemonize": "no", "requirepass": password}
        server = Server(
            command=[str(redis_server), *(part for name in options for part in (f"--{name}", options[name]))],
            environment=environment(),
            log=home / "log",
            port=port,
        )
        with running(server):
            yield f"redis://:{password}@127.0.0.1:{port}/0", server


@contextmanager
def rabbitmq() -> Iterator[str]:
    """Debian's RabbitMQ, with an Erlang port mapper of its own."""
    rabbitmq_server = program("rabbitmq-server", package="rabbitmq-server", folders="/usr/lib/rabbitmq/bin")
    inner = Path(
        "/usr/lib/rabbitmq/bin/rabbitmq-server"
    )  # the other one gives its rights away before it starts
    epmd = program("epmd", package="rabbitmq-server")
    with folder() as home:
        port = _rabbitmq_port()
        mapper = Server(
            command=[str(epmd)], environment=environment(), log=home / "epmd.log", port=free_port()
        )
        mapper.command = [str(epmd), "-address", "127.0.0.1", "-port", str(mapper.port)]
        (home / "plugins").write_text("[].\n")
        (home / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{port}\nloopback_users = none\nlog.console = true\n"
        )
        server = Server(
            command=[str(inner if inner.exists() else rabbitmq_server)],
            environment=environment(
                HOME=str(home),
                ERL_EPMD_PORT=str(mapper.port),
                ERL_EPMD_ADDRESS="127.0.0.1",
                RABBITMQ_NODENAME=f"cacheplane{port}@localhost",
                RABBITMQ_NODE_IP_ADDRESS="127.0.0.1",
                RABBITMQ_NODE_PORT=str(port),
                RABBITMQ_DIST_PORT=str(port + RABBITMQ_PORTS_APART),
                RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}",
                RABBITMQ_MNESIA_BASE=str(home / "mnesia"),
                RABBITMQ_LOG_BASE=str(home / "logs"),
                RABBITMQ_CONFIG_FILE=str(home / "rabbitmq.conf"),
                RABBITMQ_ENABLED_PLUGINS_FILE=str(home / "plugins"),
                RABBITMQ_PID_FILE=str(home / "pid"),
            ),
            log=home / "log",
            port=port,
        )
        with running(mapper), running(server):
            yield f"amqp://guest:guest@127.0.0.1:{port}//"


def _rabbitmq_port() -> int:
    while True:
        port = free_port()
        if port + RABBITMQ_PORTS_APART <= PORT_MAX:
            return port
