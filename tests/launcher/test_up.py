"""`manage.py up` as a whole: what it tells, what it refuses, what comes back, what is left of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Instance, free_port, start_instance, wait_for

from .conftest import REPOSITORY

pytestmark = [pytest.mark.own_instance, pytest.mark.xdist_group("up")]

SERVICES = {"postgres", "engine", "web", "worker", "beat"}


def run_up(
    *arguments: str, prefix: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """`manage.py up` that is expected to end by itself."""
    return subprocess.run(
        [*prefix, sys.executable, "manage.py", "up", *arguments],
        cwd=REPOSITORY,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The one sentence with which it stopped."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("cacheplane: ")
    return result.stderr.removeprefix("cacheplane: ").strip()


class TestRefusals:
    def test_a_taken_port_is_named(self, tmp_path):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            told = refusal(run_up("--port", str(port), "--data-dir", str(tmp_path / "data")))
        assert told == (
            f"Port {port} on 127.0.0.1 is taken by another program: stop it, or choose another with --port."
        )

    def test_an_address_of_another_machine_is_refused(self, tmp_path):
        told = refusal(run_up("--host", "192.0.2.1", "--port", "0", "--data-dir", str(tmp_path / "data")))
        assert told.startswith("192.0.2.1 is no address of this machine")

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path):
        (tmp_path / "file").touch()
        told = refusal(run_up("--port", "0", "--data-dir", str(tmp_path / "file" / "data")))
        assert told.endswith("cannot be used (Not a directory): take another --data-dir.")

    def test_a_model_that_is_not_there_is_named(self, tmp_path, short_path):
        missing = str(tmp_path / "none.gguf")
        url = "postgres://nobody@127.0.0.1:1/none"
        result = run_up("--port", "0", "--data-dir", str(short_path), MODEL=missing, DATABASE_URL=url)
        assert f"MODEL names {missing}, which is not a file" in refusal(result)

    def test_a_database_that_does_not_answer_is_shown_with_the_log(self, short_path):
        url = "postgres://nobody@127.0.0.1:1/none"
        result = run_up("--port", "0", "--data-dir", str(short_path), DATABASE_URL=url)
        assert result.returncode == 1
        assert "migrate failed (exit status 1)" in result.stderr
        assert str(short_path / "logs" / "migrate.log") in result.stderr

    def test_a_full_disk_is_called_by_its_name(self, short_path):
        mount = f'mount -t tmpfs -o size=16m none {short_path} && exec "$@"'
        result = run_up("--port", "0", "--data-dir", str(short_path / "data"), prefix=in_namespace(mount))
        assert "is full: " in refusal(result)
        assert "Make room" in refusal(result)

    def test_a_disk_that_cannot_be_written_is_called_by_its_name(self, short_path):
        mount = f'mount -t tmpfs -o ro none {short_path} && exec "$@"'
        result = run_up("--port", "0", "--data-dir", str(short_path / "data"), prefix=in_namespace(mount))
        assert "cannot be written (Read-only file system): change its rights" in refusal(result)

    def test_missing_openmp_names_the_package(self, short_path):
        library = _openmp()
        hide = f'mount --bind /dev/null {library} && exec "$@"'
        result = run_up("--port", "0", "--data-dir", str(short_path), prefix=in_namespace(hide))
        assert refusal(result).endswith("libgomp1 is missing: run `apt install libgomp1` (as root).")

    def test_help_needs_nothing(self):
        result = run_up("--help")
        assert result.returncode == 0
        assert "--ready-file" in result.stdout


def in_namespace(command: str) -> tuple[str, ...]:
    """A prefix that runs `command` with mounts of its own, where the machine lets us."""
    prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    probe = "mount -t tmpfs none /mnt"
    if shutil.which("unshare") is None or subprocess.run([*prefix, probe], capture_output=True).returncode:
        pytest.skip("this machine lets nobody have mounts of his own")
    return (*prefix, command, "sh")


def _openmp() -> str:
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout
    found = [line.split(" => ")[1] for line in listed.splitlines() if "libgomp.so.1" in line]
    if not found:
        pytest.skip("where OpenMP lies is not known here")
    return str(Path(found[0]).resolve())


# --- A running instance ----------------------------------------------------------------------------------------


def processes_of(data_dir: Path) -> dict[int, str]:
    """All live processes that were started for this data folder, by what their environment or arguments say."""
    found = {}
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if str(data_dir) in line or process.environ().get("DATA_DIR") == str(data_dir):
                found[process.pid] = line
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def nothing_left_of(data_dir: Path) -> Callable[[], bool]:
    return lambda: not processes_of(data_dir)


class Life:
    """One data folder over several runs of `up`."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "data"
        self.port = free_port()
        self.instance: Instance | None = None

    def start(self, **variables: str) -> Instance:
        self.instance = start_instance(self.data_dir, port=self.port, environment=variables)
        return self.instance

    @property
    def running(self) -> Instance:
        return self.instance or self.start()

    def stop(self) -> int:
        assert self.instance is not None
        status = self.instance.stop()
        self.instance = None
        return status

    def kill(self) -> None:
        assert self.instance is not None
        self.instance.process.kill()
        self.instance.process.wait()
        self.instance = None

    @property
    def ready_file(self) -> Path:
        return self.data_dir.with_name("data.ready.json")

    def pids(self) -> dict[str, int]:
        return dict(json.loads(self.ready_file.read_text())["pids"])


@pytest.fixture(scope="module")
def life() -> Iterator[Life]:
    with tempfile.TemporaryDirectory(prefix="cp-up-") as folder:
        made = Life(Path(folder))
        yield made
        if made.instance is not None:
            made.stop()


def comes_back(life: Life, name: str) -> dict[str, int]:
    """Kill one service and wait until another process has taken its place and calls are served."""
    before = life.pids()
    os.kill(before[name], signal.SIGKILL)
    wait_for(lambda: life.pids().get(name, before[name]) != before[name], seconds=60, what=f"{name} is back")
    client = life.running.client()
    wait_for(lambda: _status(client, "/readyz") == 200, seconds=90, what="calls are served again")
    return before


def _status(client: Any, path: str) -> int:
    try:
        return int(client.request("GET", path).status)
    except OSError:
        return 0


class TestRunning:
    def test_the_ready_file_tells_how_to_use_it_and_to_its_owner_only(self, life):
        ready = life.running.ready
        assert set(ready) == {
            *("base_url", "admin_url", "admin_user", "admin_password", "api_key", "organization", "pids")
        }
        assert set(ready["pids"]) == {"up", *SERVICES}
        assert ready["pids"]["up"] == life.running.process.pid
        assert all(psutil.pid_exists(pid) for pid in ready["pids"].values())
        assert life.ready_file.stat().st_mode & 0o777 == 0o600

    def test_what_it_keeps_is_its_owners_only(self, life):
        life.running  # noqa: B018  (starts it)
        assert life.data_dir.stat().st_mode & 0o077 == 0
        for name in ("instance.env", "secrets.json"):
            assert (life.data_dir / name).stat().st_mode & 0o777 == 0o600

    def test_no_secret_is_in_a_log_or_on_a_command_line(self, life):
        secrets = json.loads((life.running.data_dir / "secrets.json").read_text())
        written = {log.name: log.read_text() for log in (life.data_dir / "logs").glob("*.log")}
        assert {"web.log", "worker.log", "first_run.log"} <= set(written)
        shown = written | {str(pid): line for pid, line in processes_of(life.data_dir).items()}
        for name in ("SECRET_KEY", "API_KEY_PEPPER", "ENGINE_API_KEY", "ADMIN_PASSWORD", "API_KEY"):
            assert [place for place, text in shown.items() if secrets[name] in text] == [], name

    def test_its_key_and_its_login_work(self, life):
        client = life.running.client()
        assert client.request("GET", "/v1/users/me/balance").status == 200
        assert client.request("GET", "/readyz").status == 200
        import requests

        session = requests.Session()
        page = session.get(life.running.ready["admin_url"] + "login/", timeout=30)
        form = {
            "username": life.running.ready["admin_user"],
            "password": life.running.ready["admin_password"],
            "csrfmiddlewaretoken": session.cookies["csrftoken"],
        }
        entered = session.post(
            page.url, data=form, headers={"Referer": page.url}, timeout=60, allow_redirects=False
        )
        assert entered.status_code == 302, entered.text[:500]

    def test_other_commands_reach_it_by_its_folder(self, life):
        made = life.running.manage(
            "create_organization", "Second", "--tier", "tier5", "--recharge", "20", "--json"
        )
        assert made.returncode == 0, made.stderr
        key = json.loads(made.stdout.splitlines()[-1])["api_key"]
        assert life.running.client(key).request("GET", "/v1/users/me/balance").status == 200

    def test_a_second_one_on_its_folder_is_refused_and_named(self, life):
        told = refusal(run_up("--port", "0", "--data-dir", str(life.running.data_dir)))
        assert f"Another `manage.py up` (pid {life.running.process.pid}) runs on" in told

    @pytest.mark.parametrize("name", ["web", "engine", "postgres"])
    def test_a_killed_service_comes_back_and_calls_are_answered(self, life, name):
        client = life.running.client()
        comes_back(life, name)
        answer = client.chat({"role": "user", "content": "Are you there?"})
        assert answer.status == 200, answer.body
        others = {other: pid for other, pid in life.pids().items() if other not in (name, "worker", "beat")}
        assert all(psutil.pid_exists(pid) for pid in others.values())


class TestEnd:
    """In this order: each starts from what the one before it left."""

    def test_sigterm_stops_all_of_it_and_another_start_keeps_everything(self, life):
        first = life.running.ready
        assert life.stop() == 0
        assert not life.ready_file.exists()
        assert processes_of(life.data_dir) == {}
        again = life.start().ready
        for name in ("api_key", "organization", "admin_user", "admin_password"):
            assert again[name] == first[name]
        assert life.running.client().request("GET", "/v1/users/me/balance").status == 200

    def test_a_kill_leaves_nothing_and_another_start_keeps_everything(self, life):
        first = life.running.ready
        life.kill()
        wait_for(nothing_left_of(life.data_dir), seconds=20, what="all processes ended with their parent")
        assert life.start().ready["api_key"] == first["api_key"]
        assert life.running.client().request("GET", "/v1/users/me/balance").status == 200

    def test_two_run_side_by_side_and_a_kill_of_one_leaves_the_other(self, life, short_path):
        life.running  # noqa: B018  (starts it)
        other = Life(short_path)
        # Without the kernel's help: as on macOS.
        other.start(CACHEPLANE_PARENT_DEATH="watchdog")
        assert other.running.client().request("GET", "/v1/users/me/balance").status == 200
        assert (
            life.running.client(other.running.ready["api_key"]).request("GET", "/v1/users/me/balance").status
            == 401
        )
        other.kill()
        wait_for(nothing_left_of(other.data_dir), seconds=30, what="all processes ended with their parent")
        assert life.running.client().request("GET", "/readyz").status == 200

    def test_ctrl_c_while_it_starts_leaves_nothing(self, short_path):
        data_dir = short_path / "data"
        starting = subprocess.Popen(
            [sys.executable, "manage.py", "up", "--port", "0", "--data-dir", str(data_dir)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
            # Whoever runs the tests in the background may ignore it, and what is ignored is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert starting.stdout is not None
        for line in starting.stdout:
            if "tables" in line:
                break
        time.sleep(0.5)
        starting.send_signal(signal.SIGINT)
        starting.stdout.read()
        assert starting.wait(60) == 0
        assert processes_of(data_dir) == {}
