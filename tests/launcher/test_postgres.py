"""The embedded PostgreSQL: it starts anywhere, keeps what it acknowledged, and never outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import environ
import psycopg
import pytest

from cacheplane.launcher import postgres
from cacheplane.launcher.errors import LauncherError

from .conftest import RunScript, assert_nothing_left, processes_with

# Starts a server as `up` does, tells its pid, and stays.
HOLD_A_SERVER = """
import sys, time
from pathlib import Path
from cacheplane.launcher import postgres
folder = Path(sys.argv[1])
running = postgres.start(folder / "postgres", log=folder / "log")
print(running.process.pid, flush=True)
time.sleep(600)
"""


@contextmanager
def server(folder: Path, *, durable: bool = True) -> Iterator[postgres.Running]:
    running = postgres.start(folder / "postgres", log=folder / "log", durable=durable)
    try:
        yield running
    finally:
        running.stop()


def put(url: str, value: int) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (value int)")
        connection.execute("INSERT INTO kept VALUES (%s)", [value])


def kept(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT value FROM kept ORDER BY value")]


class TestStart:
    def test_the_first_start_makes_the_database_and_the_second_keeps_it(self, short_path):
        with server(short_path) as first:
            put(first.url, 1)
        assert first.process.returncode == 0
        with server(short_path) as second:
            put(second.url, 2)
            assert kept(second.url) == [1, 2]
        assert_nothing_left(str(short_path))

    def test_it_is_durable_unless_a_test_asks_otherwise(self, short_path):
        for durable, expected in ((True, "on"), (False, "off")):
            with server(short_path, durable=durable) as running, psycopg.connect(running.url) as connection:
                assert connection.execute("SHOW fsync").fetchone() == (expected,)

    def test_django_reads_the_url_as_psycopg_does(self, short_path):
        with server(short_path) as running:
            read = environ.Env.db_url_config(running.url)
            options = {"user": read["USER"], "dbname": read["NAME"], **read["OPTIONS"]}
            with psycopg.connect(**options) as connection:
                assert connection.execute("SELECT current_database()").fetchone() == ("cacheplane",)

    def test_only_a_socket_in_a_private_folder_leads_to_it(self, short_path):
        with server(short_path) as running, psycopg.connect(running.url) as connection:
            assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
            assert running.cluster.socket_dir.stat().st_mode & 0o777 == 0o700
            assert running.cluster.data_dir.stat().st_mode & 0o777 == 0o700

    def test_a_path_too_long_for_a_socket_gets_a_private_folder_elsewhere(self, long_path):
        with server(long_path) as running:
            put(running.url, 1)
            assert long_path not in running.cluster.socket_dir.parents
            assert running.cluster.socket_dir.stat().st_mode & 0o777 == 0o700
        assert postgres.prepare(long_path / "postgres").socket_dir == running.cluster.socket_dir

    def test_a_path_with_blanks_and_commas_is_no_obstacle(self, short_path):
        folder = short_path / "a b, c's"
        folder.mkdir()
        with server(folder) as running:
            put(running.url, 1)
            assert kept(running.url) == [1]

    def test_an_interrupted_first_start_is_made_up(self, short_path):
        unfinished = short_path / "postgres.unfinished"
        unfinished.mkdir()
        (unfinished / "PG_VERSION").write_text("half")
        with server(short_path) as running:
            put(running.url, 1)
        assert not unfinished.exists()

    def test_data_of_another_major_version_is_told_from_ours(self, short_path):
        with server(short_path):
            pass
        (short_path / "postgres" / "PG_VERSION").write_text("9\n")
        with pytest.raises(LauncherError, match="was made by PostgreSQL 9 and this is"):
            postgres.prepare(short_path / "postgres")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root has another identity to give it")
    def test_root_gives_it_to_nobody_where_no_namespace_is_allowed(self, short_path, monkeypatch):
        monkeypatch.setattr(postgres, "IDENTITIES_OF_ROOT", ("nobody",))
        postgres._identity.cache_clear()
        short_path.chmod(0o700)
        try:
            with server(short_path) as running:
                owner = (short_path / "postgres").stat().st_uid
                seen = subprocess.run(
                    ["ps", "-o", "uid=", "-p", str(running.process.pid)], capture_output=True, text=True
                )
                put(running.url, 1)
        finally:
            postgres._identity.cache_clear()
        assert (owner, int(seen.stdout)) == (65534, 65534)
        monkeypatch.undo()
        with server(short_path) as running:  # and back, where a namespace is allowed again
            assert kept(running.url) == [1]


class TestOthers:
    def test_a_live_server_on_the_same_data_is_named(self, short_path, monkeypatch):
        monkeypatch.setattr(postgres, "OTHER_SERVER_TIMEOUT_SECONDS", 0.3)
        with (
            server(short_path) as running,
            pytest.raises(LauncherError, match="Another PostgreSQL") as refusal,
        ):
            postgres.prepare(short_path / "postgres")
        assert str(running.process.pid) in str(refusal.value)

    def test_a_server_that_is_going_down_is_waited_for(self, short_path, run_script: RunScript):
        script = run_script(HOLD_A_SERVER, str(short_path))
        script.line()
        script.end(signal.SIGKILL)
        with server(short_path) as second:
            put(second.url, 1)
            assert kept(second.url) == [1]

    def test_what_a_killed_server_left_is_no_obstacle(self, short_path):
        running = postgres.start(short_path / "postgres", log=short_path / "log")
        put(running.url, 1)
        running.process.kill()
        running.process.wait()
        assert (short_path / "postgres" / "postmaster.pid").exists()
        with server(short_path) as second:
            assert kept(second.url) == [1]

    def test_nor_is_its_number_when_another_program_has_it_by_now(self, short_path):
        running = postgres.start(short_path / "postgres", log=short_path / "log")
        put(running.url, 1)
        running.process.kill()
        running.process.wait()
        assert_nothing_left(f"postgres: {short_path}")
        pid_file = short_path / "postgres" / "postmaster.pid"
        other = subprocess.Popen(["sleep", "60"])
        try:
            pid_file.write_text(pid_file.read_text().replace(str(running.process.pid), str(other.pid), 1))
            with server(short_path) as second:
                assert kept(second.url) == [1]
        finally:
            other.kill()
            other.wait()


@pytest.mark.parametrize("way", ["kernel", "watchdog"])
def test_nothing_is_left_when_the_parent_is_killed(way, short_path, run_script: RunScript):
    if way == "kernel" and sys.platform != "linux":
        pytest.skip("only Linux's kernel tells a child of its parent's death")
    script = run_script(HOLD_A_SERVER, str(short_path), CACHEPLANE_PARENT_DEATH=way)
    script.line()
    assert processes_with(str(short_path / "postgres"))
    script.end(signal.SIGKILL)
    assert_nothing_left(str(short_path))
    with server(short_path) as again:
        put(again.url, 1)
