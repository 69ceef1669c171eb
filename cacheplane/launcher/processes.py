"""Starting a child process that cannot outlive its parent, and stopping it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from cacheplane.launcher.errors import LauncherError
from cacheplane.launcher.watchdog import Watchdog

CHILD_SCRIPT = Path(__file__).with_name("child.py")
# `kernel` needs prctl's parent-death signal (Linux); `watchdog` works everywhere and is what macOS gets.
PARENT_DEATH_VARIABLE = "CACHEPLANE_PARENT_DEATH"
LOG_TAIL_LINES = 12

_watchdog: Watchdog | None = None


def spawn(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | int | None = None,
    errors: IO[bytes] | int | None = None,
    identity: str = "same",
    death_signal: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start `command` in a process group of its own, bound to this process's life.

    Call it from the main thread: the kernel's death signal fires when the *thread* that forked ends.
    `output` takes stdout, and stderr too unless `errors` is given. Raises LauncherError when the program is not there.
    """
    program = shutil.which(command[0])
    if program is None:
        raise LauncherError(f"The program {command[0]} was not found.")
    by_kernel = parent_death() == "kernel"
    prefix = [
        sys.executable,
        "-I",
        "-S",
        str(CHILD_SCRIPT),
        str(os.getpid()),
        str(int(death_signal) if by_kernel else 0),
    ]
    try:
        process = subprocess.Popen(
            [*prefix, identity, program, *command[1:]],
            env=dict(environment) if environment is not None else None,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if errors is None and output is not None else errors,
            process_group=0,
        )
    except OSError as error:
        raise LauncherError(f"{command[0]} could not be started: {error.strerror}.") from error
    if not by_kernel:
        _the_watchdog().watch(process.pid, death_signal)
    return process


def parent_death() -> str:
    """How children learn of this process's death: `kernel` or `watchdog`."""
    return os.environ.get(PARENT_DEATH_VARIABLE) or ("kernel" if sys.platform == "linux" else "watchdog")


def _the_watchdog() -> Watchdog:
    global _watchdog
    if _watchdog is None or not _watchdog.is_alive():
        _watchdog = Watchdog()
    return _watchdog


def stop(process: subprocess.Popen[bytes], *, stop_signal: signal.Signals, timeout_seconds: float) -> bool:
    """Ask the process to end, then kill its group; returns whether it ended by itself. Reaps it."""
    if process.poll() is None:
        process.send_signal(stop_signal)
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            kill_group(process)
            forget(process)
            return False
    forget(process)
    return True


def kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ended in the meantime
    process.wait()


def forget(process: subprocess.Popen[bytes]) -> None:
    """Tell the watchdog that this process has been reaped, so that its number can be another's."""
    if _watchdog is not None:
        _watchdog.forget(process.pid)


def tail(log: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log, for the person at the terminal."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 8192))
            return "\n".join(stream.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def command_line(pid: int) -> str:
    """The command line of any process, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return ""
    found = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True)
    return found.stdout.strip()
