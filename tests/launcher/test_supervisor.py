"""The supervisor: what dies comes back, what keeps dying is given up, nothing outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cacheplane.launcher import processes, supervisor
from cacheplane.launcher.supervisor import Service, ServiceFailed, Stopped, Supervisor
from tests.conftest import wait_for

from .conftest import RunScript, assert_nothing_left, processes_with

SLEEP = "import time; time.sleep(600)"


class Watched:
    """A supervisor that is stepped by hand until something holds."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self.folder = folder
        self.supervisor = Supervisor(folder, say=self.said.append)

    def service(self, name: str, source: str, *arguments: str, **fields: object) -> Service:
        command = (sys.executable, "-c", source, *arguments, str(self.folder))
        return Service(name=name, command=command, environment=dict(os.environ), **fields)  # type: ignore[arg-type]

    def run_until(self, condition: Callable[[], object], *, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.said
            self.supervisor._tick()
            time.sleep(0.02)

    def pid(self, name: str) -> int:
        return self.supervisor.pids()[name]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    yield made
    made.supervisor.stop(list(made.supervisor.pids()))


class TestStart:
    def test_it_returns_when_each_service_is_ready(self, watched, tmp_path):
        source = (
            "import pathlib, sys, time; time.sleep(0.3); pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
        )
        flags = [tmp_path / "a.ready", tmp_path / "b.ready"]
        services = [
            watched.service(flag.name, source, str(flag), is_ready=lambda pid, flag=flag: flag.exists())
            for flag in flags
        ]
        watched.supervisor.start(*services)
        assert all(flag.exists() for flag in flags)
        assert set(watched.supervisor.pids()) == {"a.ready", "b.ready"}

    def test_a_service_that_ends_while_it_starts_is_shown_with_the_end_of_its_log(self, watched):
        broken = watched.service(
            "web", "import sys; sys.exit('the port is on fire')", is_ready=lambda pid: False
        )
        with pytest.raises(ServiceFailed, match=r"(?s)web ended while it started\..*the port is on fire"):
            watched.supervisor.start(broken)

    def test_one_that_is_never_ready_is_told_after_its_time(self, watched):
        slow = watched.service("web", SLEEP, is_ready=lambda pid: False, ready_timeout_seconds=0.5)
        with pytest.raises(ServiceFailed, match="web was not ready within"):
            watched.supervisor.start(slow)

    def test_a_full_disk_is_called_by_its_name(self, watched):
        broken = watched.service(
            "web", "raise OSError(28, 'No space left on device')", is_ready=lambda pid: False
        )
        with pytest.raises(ServiceFailed, match="the disk is full, make room"):
            watched.supervisor.start(broken)


class TestSteps:
    def test_a_step_that_fails_is_shown_with_the_end_of_its_log(self, watched):
        command = (sys.executable, "-c", "import sys; print('no such table'); sys.exit(3)")
        with pytest.raises(ServiceFailed, match=r"(?s)migrate failed \(exit status 3\)\..*no such table"):
            watched.supervisor.run_step("migrate", command, os.environ)

    def test_an_answer_stays_out_of_the_log(self, watched, tmp_path):
        command = (
            sys.executable,
            "-c",
            "import sys; print('sk-secret'); print('a warning', file=sys.stderr)",
        )
        assert watched.supervisor.ask("first_run", command, os.environ) == "sk-secret\n"
        assert (tmp_path / "first_run.log").read_text() == "a warning\n"

    def test_a_signal_ends_a_step(self, watched, tmp_path, run_script: RunScript):
        script = run_script(
            f"""
import sys
from pathlib import Path
from cacheplane.launcher.supervisor import Stopped, Supervisor
watched = Supervisor(Path({str(tmp_path)!r}), say=print)
watched.catch_signals()
print("waiting", flush=True)
try:
    watched.run_step("slow", (sys.executable, "-c", {SLEEP!r}, "{tmp_path}"), {{}})
except Stopped:
    print("stopped", flush=True)
"""
        )
        assert script.line() == "waiting"
        watched.run_until(lambda: processes_with(SLEEP))
        script.process.send_signal(signal.SIGTERM)
        assert script.line() == "stopped"
        assert_nothing_left(str(tmp_path))


class TestRestart:
    def test_a_killed_service_comes_back_and_its_new_number_is_told(self, watched):
        told: list[dict[str, int]] = []
        watched.supervisor.on_change = told.append
        watched.supervisor.start(watched.service("worker", SLEEP))
        before = watched.pid("worker")
        os.kill(before, signal.SIGKILL)
        watched.run_until(lambda: any("is back" in line for line in watched.said))
        after = watched.pid("worker")
        assert after != before
        assert told[-1] == {"worker": after}
        assert any("worker died (status -9)" in line for line in watched.said)

    def test_what_must_follow_a_restart_runs_once_the_service_is_ready(self, watched, tmp_path):
        ready, hook = tmp_path / "ready", tmp_path / "hook"
        source = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
        registered = f"from pathlib import Path; Path({str(ready)!r}).rename({str(hook)!r})"
        engine = watched.service(
            "engine",
            source,
            str(ready),
            is_ready=lambda pid: ready.exists(),
            after_restart=(sys.executable, "-c", registered),
        )
        watched.supervisor.start(engine)
        watched.run_until(lambda: True)
        assert not hook.exists(), "the first start is registered by `up` itself"
        ready.unlink()
        os.kill(watched.pid("engine"), signal.SIGKILL)
        watched.run_until(lambda: any("engine is back" in line for line in watched.said))
        assert hook.exists()

    def test_a_failed_hook_is_run_again(self, watched, tmp_path):
        tried = tmp_path / "tried"
        # Fails the first time, for there is nothing to remove yet.
        hook = f"from pathlib import Path; p = Path({str(tried)!r}); p.unlink() if p.exists() else (p.touch(), 1 / 0)"
        watched.supervisor.start(watched.service("engine", SLEEP, after_restart=(sys.executable, "-c", hook)))
        os.kill(watched.pid("engine"), signal.SIGKILL)
        watched.run_until(
            lambda: any("engine is back" in line and "trying" not in line for line in watched.said)
        )
        assert any("could not be registered; trying again" in line for line in watched.said)

    def test_a_crash_loop_is_given_up_with_the_end_of_the_log(self, watched, tmp_path, monkeypatch):
        monkeypatch.setattr(supervisor, "BACKOFF_SECONDS_FIRST", 0.01)
        first = tmp_path / "first"
        source = (
            "import pathlib, sys, time; p = pathlib.Path(sys.argv[1])\n"
            "if p.exists(): sys.exit('the model is damaged')\n"
            "p.touch(); time.sleep(600)"
        )
        watched.supervisor.start(
            watched.service("engine", source, str(first), is_ready=lambda pid: first.exists())
        )
        os.kill(watched.pid("engine"), signal.SIGKILL)
        with pytest.raises(
            ServiceFailed, match=r"(?s)engine died 6 times .* given up\..*the model is damaged"
        ):
            watched.run_until(lambda: False)

    def test_the_others_are_watched_while_one_comes_back(self, watched):
        never_ready_again = iter([True])
        engine = watched.service("engine", SLEEP, is_ready=lambda pid: next(never_ready_again, False))
        watched.supervisor.start(engine, watched.service("worker", SLEEP))
        os.kill(watched.pid("engine"), signal.SIGKILL)
        watched.run_until(lambda: any("engine died" in line for line in watched.said))
        os.kill(watched.pid("worker"), signal.SIGKILL)
        watched.run_until(lambda: any("worker is back" in line for line in watched.said))


class TestStop:
    def test_services_end_in_the_order_that_is_asked_for(self, watched, tmp_path):
        order = tmp_path / "order"
        source = (
            "import signal, sys, time\n"
            "def end(*_):\n"
            "    open(sys.argv[1], 'a').write(sys.argv[2] + ' '); sys.exit()\n"
            "signal.signal(signal.SIGTERM, end); open(sys.argv[3] + '/' + sys.argv[2], 'w').close(); time.sleep(600)"
        )
        names = ["postgres", "engine", "web"]
        watched.supervisor.start(
            *(
                watched.service(
                    name, source, str(order), name, is_ready=lambda pid, n=name: (tmp_path / n).exists()
                )
                for name in names
            )
        )
        watched.supervisor.stop(["web", "beat", "engine", "postgres"])
        assert order.read_text().split() == ["web", "engine", "postgres"]
        assert_nothing_left(str(tmp_path))

    def test_one_that_does_not_listen_is_killed_with_all_it_started(self, watched, tmp_path):
        ready = tmp_path / "ready"
        source = (
            "import pathlib, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            f"subprocess.Popen([sys.executable, '-c', {SLEEP!r}, sys.argv[1] + '-grandchild'])\n"
            "pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
        )
        deaf = watched.service(
            "worker", source, str(ready), is_ready=lambda pid: ready.exists(), stop_timeout_seconds=0.5
        )
        watched.supervisor.start(deaf)
        assert processes_with(f"{ready}-grandchild")
        watched.supervisor.stop(["worker"])
        assert_nothing_left(str(tmp_path))
        assert watched.said == ["worker did not stop within 0.5 s and was killed"]

    def test_a_signal_ends_the_watch(self, watched):
        watched.supervisor.start(watched.service("worker", SLEEP))
        watched.supervisor._on_signal(signal.SIGTERM, None)
        with pytest.raises(Stopped):
            watched.supervisor.run()

    @pytest.mark.parametrize("way", ["kernel", "watchdog"])
    def test_nothing_is_left_when_it_is_killed(self, way, tmp_path, run_script: RunScript):
        if way == "kernel" and sys.platform != "linux":
            pytest.skip("only Linux's kernel tells a child of its parent's death")
        script = run_script(
            f"""
import os, sys
from pathlib import Path
from cacheplane.launcher.supervisor import Service, Supervisor
watched = Supervisor(Path({str(tmp_path)!r}), say=print)
command = (sys.executable, "-c", {SLEEP!r}, "{tmp_path}")
watched.start(*(Service(name=name, command=command, environment=os.environ) for name in ("a", "b")))
print("running", flush=True)
watched.run()
""",
            CACHEPLANE_PARENT_DEATH=way,
        )
        assert script.line() == "running"
        # Each is a launcher first, and becomes its command a moment later.
        wait_for(
            lambda: len(processes_with(f"{SLEEP} {tmp_path}")) >= 2, seconds=20, what="both run their command"
        )
        script.end(signal.SIGKILL)
        assert_nothing_left(str(tmp_path))


class TestWatchdog:
    def test_a_child_that_was_reaped_is_not_killed_again(self, tmp_path, run_script: RunScript):
        """Its number may be another's by then."""
        bystander = subprocess.Popen([sys.executable, "-c", SLEEP], process_group=0)
        script = run_script(
            f"""
import signal, sys, time
from cacheplane.launcher.watchdog import Watchdog
watchdog = Watchdog()
watchdog.watch({bystander.pid}, signal.SIGKILL)
watchdog.forget({bystander.pid})
print("forgotten", flush=True)
time.sleep(600)
"""
        )
        try:
            assert script.line() == "forgotten"
            script.end(signal.SIGKILL)
            time.sleep(1.0)
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.wait()


class TestLogs:
    def test_a_log_that_has_grown_is_put_aside_while_it_is_written(self, tmp_path, monkeypatch):
        monkeypatch.setattr(supervisor, "LOG_BYTES_MAX", 100)
        log = tmp_path / "web.log"
        with log.open("ab") as writer:
            writer.write(b"old " * 100)
            writer.flush()
            supervisor._shorten(log)
            writer.write(b"new")
        assert log.read_bytes() == b"new"
        assert log.with_name("web.log.1").read_bytes() == b"old " * 100

    def test_the_tail_of_a_log_is_its_last_lines(self, tmp_path):
        log = tmp_path / "web.log"
        log.write_text("\n".join(f"line {number}" for number in range(10_000)))
        assert processes.tail(log, lines=2) == "line 9998\nline 9999"
        assert processes.tail(tmp_path / "none.log") == ""
