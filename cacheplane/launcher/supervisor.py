"""Keeps a set of services running: starts them, restarts the dead ones, stops all of them in order.

One thread and one loop: the kernel's death signal follows the thread that forked, so the main thread forks, and it
lives as long as the supervisor. Nothing here waits for one service while another is dead.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from cacheplane.launcher import processes
from cacheplane.launcher.errors import LauncherError

TICK_SECONDS = 0.1
BACKOFF_SECONDS_FIRST = 0.5
BACKOFF_SECONDS_MAX = 15.0
CRASHES_MAX = 6  # that many deaths within the window are a crash loop: it is given up
CRASH_WINDOW_SECONDS = 120.0
LOG_BYTES_MAX = 32 << 20
LOG_CHECK_SECONDS = 60.0
STEP_STOP_TIMEOUT_SECONDS = 5.0


class Stopped(Exception):
    """A signal asked for the end."""


class ServiceFailed(LauncherError):
    """A service or a step did not do its work; the message carries the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A process that is to run for as long as the supervisor does."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    is_ready: Callable[[int], bool] = lambda pid: True
    ready_timeout_seconds: float = 180.0  # generous: many start on small, busy machines
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_seconds: float = 10.0
    death_signal: signal.Signals = signal.SIGKILL
    identity: str = "same"
    # Run to its end after each restart, once the service is ready again.
    after_restart: Sequence[str] | None = None


@dataclass(slots=True, kw_only=True)
class _Child:
    """A service's process over its deaths."""

    service: Service
    log: Path
    process: subprocess.Popen[bytes] | None = None
    hook: subprocess.Popen[bytes] | None = None
    hook_due: bool = False
    started_at: float = 0.0
    start_again_at: float = 0.0
    hook_again_at: float = 0.0
    is_ready: bool = False
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=CRASHES_MAX))


class Supervisor:
    """Runs services whose logs lie in `log_dir`, and says what happens through `say`, a line each."""

    def __init__(self, log_dir: Path, *, say: Callable[[str], None]) -> None:
        self._log_dir = log_dir
        self._say = say
        self._children: dict[str, _Child] = {}
        self._steps: dict[str, subprocess.Popen[bytes]] = {}
        self._signals = 0
        self._logs_checked_at = 0.0
        self.on_change: Callable[[dict[str, int]], None] = lambda pids: None

    def catch_signals(self) -> None:
        """SIGINT, SIGTERM and a closed terminal stop everything; a second one does not wait."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if (
                signal.getsignal(number) is not signal.SIG_IGN or number is signal.SIGTERM
            ):  # nohup ignores SIGHUP
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def pids(self) -> dict[str, int]:
        """The process id of each running service."""
        return {
            name: child.process.pid for name, child in self._children.items() if child.process is not None
        }

    def log_of(self, name: str) -> Path:
        return self._log_dir / f"{name}.log"

    def run_step(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run a command to its end, into its log, while the services are watched.

        Raises ServiceFailed when it fails, Stopped on a signal.
        """
        self.begin_step(name, command, environment)
        self.finish_step(name)

    def begin_step(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a command that `finish_step` waits for; other steps can run meanwhile."""
        with self.log_of(name).open("ab") as output:
            self._steps[name] = processes.spawn(command, environment=environment, output=output)

    def finish_step(self, name: str) -> None:
        """Wait for a step that was begun, if it was. Raises as `run_step`."""
        process = self._steps.pop(name, None)
        if process is not None:
            self._run_to_end(name, process)

    def ask(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> str:
        """As `run_step`, but return what the command wrote to stdout: it may be secret and stays out of logs."""
        with tempfile.TemporaryFile() as answer, self.log_of(name).open("ab") as errors:
            process = processes.spawn(command, environment=environment, output=answer, errors=errors)
            self._run_to_end(name, process)
            answer.seek(0)
            return answer.read().decode(errors="replace")

    def _run_to_end(self, name: str, process: subprocess.Popen[bytes]) -> None:
        try:
            while process.poll() is None:
                self._tick()
                time.sleep(TICK_SECONDS / 5)
        finally:
            processes.stop(process, stop_signal=signal.SIGTERM, timeout_seconds=STEP_STOP_TIMEOUT_SECONDS)
        if process.returncode != 0:
            raise ServiceFailed(
                _complaint(f"{name} failed (exit status {process.returncode})", self.log_of(name))
            )

    def start(self, *services: Service) -> None:
        """Start services together and return when all are ready. Raises ServiceFailed or Stopped."""
        for service in services:
            self._children[service.name] = child = _Child(service=service, log=self.log_of(service.name))
            self._spawn(child)
        while not all(self._children[service.name].is_ready for service in services):
            for service in services:
                self._check_first_start(self._children[service.name])
            self._tick()
            time.sleep(TICK_SECONDS / 5)
        self.on_change(self.pids())

    def run(self) -> None:
        """Watch until a signal comes (raises Stopped) or a service is given up (raises ServiceFailed)."""
        while True:
            self._tick()
            time.sleep(TICK_SECONDS)

    def stop(self, order: Sequence[str]) -> None:
        """Stop unfinished steps, then the services in this order, and reap them; a second signal kills the rest."""
        while self._steps:
            _, step = self._steps.popitem()
            processes.stop(step, stop_signal=signal.SIGTERM, timeout_seconds=STEP_STOP_TIMEOUT_SECONDS)
        heard = self._signals
        for name in order:
            child = self._children.pop(name, None)
            if child is None:
                continue
            for process in (child.hook, child.process):
                if process is not None:
                    self._end(process, child.service, hurry=self._signals > heard)

    def _end(self, process: subprocess.Popen[bytes], service: Service, *, hurry: bool) -> None:
        timeout = 0.5 if hurry else service.stop_timeout_seconds
        if not processes.stop(process, stop_signal=service.stop_signal, timeout_seconds=timeout):
            self._say(f"{service.name} did not stop within {timeout:g} s and was killed")

    def _check_first_start(self, child: _Child) -> None:
        service = child.service
        if child.process is None or child.process.poll() is not None:
            raise ServiceFailed(_complaint(f"{service.name} ended while it started", child.log))
        if time.monotonic() - child.started_at > service.ready_timeout_seconds and not child.is_ready:
            waited = f"{service.ready_timeout_seconds:.0f} s"
            raise ServiceFailed(_complaint(f"{service.name} was not ready within {waited}", child.log))

    def _tick(self) -> None:
        if self._signals:
            raise Stopped
        now = time.monotonic()
        for child in list(self._children.values()):
            self._watch(child, now)
        if now - self._logs_checked_at > LOG_CHECK_SECONDS:
            self._logs_checked_at = now
            for child in self._children.values():
                _shorten(child.log)

    def _watch(self, child: _Child, now: float) -> None:
        if child.process is None:
            if now >= child.start_again_at:
                self._spawn(child)
                self.on_change(self.pids())
        elif child.process.poll() is not None:
            self._bury(child, now)
        elif not child.is_ready:
            self._wait_for_readiness(child, now)
        elif child.hook_due:
            self._run_hook(child, now)

    def _spawn(self, child: _Child) -> None:
        service = child.service
        with child.log.open("ab") as output:
            child.process = processes.spawn(
                service.command,
                environment=service.environment,
                output=output,
                identity=service.identity,
                death_signal=service.death_signal,
            )
        child.started_at = time.monotonic()
        child.is_ready = False

    def _wait_for_readiness(self, child: _Child, now: float) -> None:
        assert child.process is not None, "only a running process becomes ready"
        child.is_ready = child.service.is_ready(child.process.pid)
        if child.is_ready and child.deaths and not child.hook_due:
            self._say(f"{child.service.name} is back")
        if (
            child.is_ready
            or now - child.started_at <= child.service.ready_timeout_seconds
            or not child.deaths
        ):
            return
        self._say(f"{child.service.name} runs again but is not ready; it is started once more")
        processes.kill_group(child.process)

    def _bury(self, child: _Child, now: float) -> None:
        assert child.process is not None, "only a process dies"
        if not child.is_ready and not child.deaths:
            return  # the first start: `start` tells it
        processes.kill_group(child.process)  # what it may have started
        processes.forget(child.process)
        child.deaths.append(now)
        if len(child.deaths) == CRASHES_MAX and now - child.deaths[0] < CRASH_WINDOW_SECONDS:
            window = f"{CRASHES_MAX} times within {CRASH_WINDOW_SECONDS:.0f} s"
            raise ServiceFailed(_complaint(f"{child.service.name} died {window} and is given up", child.log))
        recent = sum(1 for death in child.deaths if now - death < CRASH_WINDOW_SECONDS)
        pause = min(BACKOFF_SECONDS_FIRST * 2 ** (recent - 1), BACKOFF_SECONDS_MAX)
        status = child.process.returncode
        self._say(f"{child.service.name} died (status {status}); it is started again in {pause:.1f} s")
        child.process, child.is_ready = None, False
        child.hook_due = child.service.after_restart is not None
        child.start_again_at = now + pause

    def _run_hook(self, child: _Child, now: float) -> None:
        """Start the hook, or look at how it went; one that fails is run again."""
        assert child.service.after_restart is not None, "due only where there is one"
        if child.hook is None:
            if now < child.hook_again_at:
                return
            with child.log.open("ab") as output:
                child.hook = processes.spawn(
                    child.service.after_restart, environment=child.service.environment, output=output
                )
        elif child.hook.poll() is not None:
            processes.forget(child.hook)
            child.hook_due = child.hook.returncode != 0
            child.hook_again_at = now + BACKOFF_SECONDS_FIRST
            if child.hook_due:
                self._say(f"{child.service.name} is back but could not be registered; trying again")
            else:
                self._say(f"{child.service.name} is back")
            child.hook = None


def _complaint(sentence: str, log: Path) -> str:
    end = processes.tail(log)
    if "No space left on device" in end:
        sentence += ": the disk is full, make room and start again"
    return f"{sentence}. The end of {log}:\n{end}"


def _shorten(log: Path) -> None:
    """Keep one older generation of a log that has grown: copied, then emptied, for its writer keeps it open."""
    try:
        if log.stat().st_size > LOG_BYTES_MAX:
            shutil.copyfile(log, log.with_name(log.name + ".1"))
            os.truncate(log, 0)
    except FileNotFoundError:
        pass  # a service that has not written yet
