"""`manage.py up`: everything that a working instance needs, started in order, watched, stopped together."""

import argparse
import errno
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cacheplane.launcher import engine, postgres
from cacheplane.launcher.errors import LauncherError
from cacheplane.launcher.instance import DataDir, explain, write_private
from cacheplane.launcher.supervisor import Service, Stopped, Supervisor

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ("nano", "bench")
MODEL_SEED = 1234
ADMIN_USER = "admin"
DATABASE_NAME = "cacheplane"
STOP_ORDER = ("web", "beat", "worker", "engine", "postgres")
WORKER_THREADS = 4
WEB_DRAIN_SECONDS = 8  # calls in flight get this long to end
WEB_READY_TIMEOUT_SECONDS = 180.0  # on a machine that is busy with other things
WEB_STOP_TIMEOUT_SECONDS = 25.0
WORKER_STOP_TIMEOUT_SECONDS = 10.0  # a longer precompute is taken up again at the next start
# What the children get from us; everything else of the environment they inherit.
EXPORTED = (
    *(
        "DATA_DIR",
        "DATABASE_URL",
        "CELERY_BROKER_URL",
        "ENGINE_URL",
        "ENGINE_API_KEY",
        "ENGINE_KV_DIR",
        "MODEL",
    ),
    *("MODEL_PRESET", "BASE_URL", "ALLOWED_HOSTS", "SECRET_KEY", "API_KEY_PEPPER"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for on the command line."""

    host: str
    port: int
    data_dir: Path
    ready_file: Path | None
    preset: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRun:
    """What `first_run` tells: who may use the instance."""

    organization: str
    api_key: str
    admin_user: str
    admin_password: str


def main(argv: list[str]) -> int:
    """Run until a signal comes. Returns 0 after an orderly stop; raises LauncherError when it cannot work."""
    options = _parse(argv)
    up = Up(options, os.environ)
    try:
        up.run()
    except Stopped:
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise LauncherError(explain(error, options.data_dir)) from error
    return 0


def _parse(argv: list[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="manage.py up",
        description="Set everything up and run it: database, engine, web, worker and beat. Ctrl-C stops all of it.",
        epilog="DATABASE_URL, CELERY_BROKER_URL, ENGINE_URL and MODEL in the environment replace the embedded parts.",
    )
    preset = os.environ.get("MODEL_PRESET") or "nano"
    data_dir = os.environ.get("DATA_DIR") or str(ROOT / "var")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on, 0 for any (default: %(default)s)"
    )
    parser.add_argument(
        "--data-dir", type=Path, default=data_dir, help="holds everything (default: %(default)s)"
    )
    parser.add_argument("--ready-file", type=Path, help="JSON file that is written when all of it runs")
    parser.add_argument(
        "--preset", choices=PRESETS, default=preset, help="generated model (default: %(default)s)"
    )
    given = parser.parse_args(argv)
    if given.preset not in PRESETS:
        parser.error(f"MODEL_PRESET is {given.preset!r} and must be one of {', '.join(PRESETS)}")
    if not 0 <= given.port <= 65535:
        parser.error("--port takes a number from 0 to 65535")
    return Options(**vars(given))


class Up:
    """One run of an instance."""

    def __init__(self, options: Options, environment: Mapping[str, str]) -> None:
        self._options = options
        self._given = environment
        self._data = DataDir(options.data_dir)
        self._started_at = time.monotonic()
        self._supervisor = Supervisor(self._data.logs, say=self._say)

    def run(self) -> None:
        """Start everything, print the ready block, watch. Raises Stopped or LauncherError; stops all first."""
        os.umask(0o077)  # all that this and its children write is their owner's only
        self._data.open()
        port = _free_port(self._options.host, self._options.port)
        if not self._given.get("ENGINE_URL"):
            engine.need_openmp()
        secrets = self._data.secrets(self._given)
        self._supervisor.catch_signals()
        try:
            environment = self._environment(secrets, port)
            first_run = self._start(environment, secrets, port)
            self._announce(environment["BASE_URL"], first_run)
            self._supervisor.run()
        except Stopped:
            self._say("stopping")
            raise
        finally:
            if self._options.ready_file is not None:
                self._options.ready_file.unlink(missing_ok=True)
            self._supervisor.stop(STOP_ORDER)
            self._say("stopped; all data is kept in " + str(self._data.path))

    def _environment(self, secrets: Mapping[str, str], port: int) -> dict[str, str]:
        """The children's environment: what was given, and what this instance adds to it."""
        host = self._options.host
        reached_at = "127.0.0.1" if host in ("0.0.0.0", "") else "[::1]" if host == "::" else _bracketed(host)
        engine_url = self._given.get("ENGINE_URL") or f"http://{engine.HOST}:{engine.free_port()}"
        own = {
            "DATA_DIR": str(self._data.path),
            "BASE_URL": f"http://{reached_at}:{port}",
            "ALLOWED_HOSTS": ",".join(_names_of(host)),
            "ENGINE_KV_DIR": str(self._data.kv),
            "MODEL_PRESET": self._options.preset,
            "DJANGO_SETTINGS_MODULE": "cacheplane.settings",
        }
        own = {name: self._given.get(name) or value for name, value in own.items()}
        search_path = os.pathsep.join(filter(None, [str(ROOT), self._given.get("PYTHONPATH")]))
        return {
            **self._given,
            **own,
            **secrets,
            "DATA_DIR": str(self._data.path),
            "MODEL_PRESET": self._options.preset,
            "ENGINE_URL": engine_url,
            "ADMIN_USER": self._given.get("ADMIN_USER") or ADMIN_USER,
            "PYTHONPATH": search_path,
            "PYTHONUNBUFFERED": "1",
        }

    def _start(self, environment: dict[str, str], secrets: dict[str, str], port: int) -> FirstRun:
        if not self._given.get("ENGINE_URL"):
            environment["MODEL"] = str(self._model(environment))
        if not environment.get("DATABASE_URL"):
            self._say("starting PostgreSQL")
            environment["DATABASE_URL"] = self._start_postgres()
        self._data.write_environment({name: environment[name] for name in EXPORTED if name in environment})
        self._say("bringing the database's tables up to date")
        self._supervisor.run_step("migrate", _manage("migrate", "--no-input"), environment)
        self._supervisor.finish_step("make_model")
        if not self._given.get("ENGINE_URL"):
            self._say(f"starting the engine with {environment['MODEL']}")
            self._supervisor.start(self._engine(environment))
        self._say("registering the engine, the first organization and the operator")
        first_run = self._first_run(environment, secrets)
        self._say("starting web, worker and beat")
        self._supervisor.start(*_services(environment, host=self._options.host, port=port))
        return first_run

    def _start_postgres(self) -> str:
        cluster = postgres.prepare(self._data.postgres)
        self._supervisor.start(
            Service(
                name="postgres",
                command=cluster.command(),
                environment=self._given,
                is_ready=cluster.is_ready,
                ready_timeout_seconds=postgres.START_TIMEOUT_SECONDS,
                stop_signal=signal.SIGINT,
                stop_timeout_seconds=postgres.STOP_TIMEOUT_SECONDS,
                death_signal=signal.SIGINT,
                identity=cluster.identity,
            )
        )
        cluster.create_database(DATABASE_NAME)
        return cluster.url(DATABASE_NAME)

    def _model(self, environment: Mapping[str, str]) -> Path:
        """The model's file: the one that was given, else the preset's, whose generation may still go on."""
        if self._given.get("MODEL"):
            given = Path(self._given["MODEL"]).resolve()
            if not given.is_file() or not os.access(given, os.R_OK):
                raise LauncherError(
                    f"MODEL names {given}, which is not a file that can be read: name a GGUF file."
                )
            return given
        preset = self._options.preset
        generated = self._data.models / f"{preset}.gguf"
        if not generated.exists():
            self._say(f"generating the {preset} model, once")
            arguments = ("--preset", preset, "--out", str(generated), "--seed", str(MODEL_SEED))
            self._supervisor.begin_step("make_model", _manage("make_model", *arguments), environment)
        return generated

    def _engine(self, environment: Mapping[str, str]) -> Service:
        url = environment["ENGINE_URL"]
        kv_dir, port = Path(environment["ENGINE_KV_DIR"]), int(url.rpartition(":")[2])
        return Service(
            name="engine",
            command=engine.command(model=Path(environment["MODEL"]), kv_dir=kv_dir, port=port),
            environment=engine.environment(environment, api_key=environment["ENGINE_API_KEY"]),
            is_ready=lambda pid: engine.is_ready(url),
            ready_timeout_seconds=engine.START_TIMEOUT_SECONDS,
            stop_timeout_seconds=engine.STOP_TIMEOUT_SECONDS,
            after_restart=_manage("register_engine"),  # its slots have forgotten what they held
        )

    def _first_run(self, environment: Mapping[str, str], secrets: dict[str, str]) -> FirstRun:
        """Who may use the instance. A key is shown once, so the first one is kept with the other secrets."""
        told = self._ask_first_run(environment, *([] if secrets.get("API_KEY") else ["--new-key"]))
        is_other = told["organization"] != secrets.get("ORGANIZATION")
        if is_other and not told["api_key"]:
            told = self._ask_first_run(environment, "--new-key")
        if told["api_key"]:
            secrets |= {"API_KEY": told["api_key"], "ORGANIZATION": str(told["organization"])}
            self._data.keep_secrets(secrets)
        return FirstRun(
            organization=secrets["ORGANIZATION"],
            api_key=secrets["API_KEY"],
            admin_user=told["admin_user"],
            admin_password=secrets["ADMIN_PASSWORD"],
        )

    def _ask_first_run(self, environment: Mapping[str, str], *arguments: str) -> dict[str, str]:
        answer = self._supervisor.ask("first_run", _manage("first_run", "--json", *arguments), environment)
        try:
            found: dict[str, str] = json.loads(answer.strip().splitlines()[-1])
        except (IndexError, ValueError) as error:
            raise LauncherError("first_run did not end with a line of JSON: look into its log.") from error
        return found

    def _announce(self, base_url: str, first_run: FirstRun) -> None:
        def write_ready_file(pids: dict[str, int]) -> None:
            if self._options.ready_file is not None:
                ready = {
                    "base_url": base_url,
                    "admin_url": f"{base_url}/admin/",
                    "admin_user": first_run.admin_user,
                    "admin_password": first_run.admin_password,
                    "api_key": first_run.api_key,
                    "organization": first_run.organization,
                    "pids": {"up": os.getpid(), **pids},
                }
                write_private(self._options.ready_file, json.dumps(ready, indent=1) + "\n")

        write_ready_file(self._supervisor.pids())
        self._supervisor.on_change = write_ready_file
        self._say("ready")
        _print(_ready_block(base_url, first_run, logs=self._data.logs))

    def _say(self, line: str) -> None:
        _print(f"[{time.monotonic() - self._started_at:5.1f} s] {line}")


def _ready_block(base_url: str, first_run: FirstRun, *, logs: Path) -> str:
    return f"""
  base URL   {base_url}/v1
  API key    {first_run.api_key}
  admin      {base_url}/admin/   login {first_run.admin_user}   password {first_run.admin_password}
  API pages  {base_url}/v1/schema/page
  logs       {logs}

  curl {base_url}/v1/chat/completions -H 'Authorization: Bearer {first_run.api_key}' \\
    -H 'Content-Type: application/json' \\
    -d '{{"model":"moonshot-v1-8k","max_tokens":16,"messages":[{{"role":"user","content":"Hello"}}]}}'

  Ctrl-C stops everything.
"""


def _services(environment: Mapping[str, str], *, host: str, port: int) -> list[Service]:
    base_url = environment["BASE_URL"]
    celery = (sys.executable, "-m", "celery", "-A", "cacheplane.celery")
    return [
        Service(
            name="web",
            command=(
                *(sys.executable, "-m", "uvicorn", "cacheplane.asgi:application"),
                *("--host", host, "--port", str(port), "--loop", "uvloop", "--http", "httptools"),
                *("--no-access-log", "--no-server-header"),
                *("--timeout-graceful-shutdown", str(WEB_DRAIN_SECONDS)),
            ),
            environment=environment,
            is_ready=lambda pid: engine.answers(f"{base_url}/readyz"),
            ready_timeout_seconds=WEB_READY_TIMEOUT_SECONDS,
            stop_timeout_seconds=WEB_STOP_TIMEOUT_SECONDS,
        ),
        Service(
            name="worker",
            command=(*celery, "worker", "-P", "threads", "-c", str(WORKER_THREADS), "--loglevel", "INFO"),
            environment=environment,
            stop_timeout_seconds=WORKER_STOP_TIMEOUT_SECONDS,
        ),
        Service(
            name="beat",
            # No pid file: one that a killed beat leaves would keep the next from starting.
            command=(*celery, "beat", "--pidfile=", "--loglevel", "INFO"),
            environment=environment,
        ),
    ]


def _manage(command: str, *arguments: str) -> list[str]:
    """A Django command in this same interpreter."""
    return [sys.executable, "-m", "django", command, *arguments]


def _free_port(host: str, port: int) -> int:
    """The port, seen to be free; 0 gives any. Raises LauncherError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
            return int(probe.getsockname()[1])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise LauncherError(
                f"Port {port} on {host} is taken by another program: stop it, or choose another with --port."
            ) from error
        if error.errno == errno.EACCES:
            raise LauncherError(
                f"Port {port} needs root's rights: choose one above 1023 with --port."
            ) from error
        raise LauncherError(
            f"{host} is no address of this machine ({error.strerror}): change --host."
        ) from error


def _names_of(host: str) -> list[str]:
    """The host names under which the web process may be addressed."""
    names = ["127.0.0.1", "localhost", "[::1]"]
    if host in ("0.0.0.0", "::", ""):
        names += [socket.gethostname(), socket.getfqdn(), *_own_addresses()]
    else:
        names.append(_bracketed(host))
    return list(dict.fromkeys(names))


def _own_addresses() -> list[str]:
    try:
        return sorted(
            {_bracketed(str(found[4][0])) for found in socket.getaddrinfo(socket.gethostname(), None)}
        )
    except socket.gaierror:
        return []


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Whoever read along has gone; the instance goes on.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
