"""Where the kernel does not tell children that their parent died: a small process that does.

It reads a pipe whose only other end the parent holds. The parent writes `+PID SIGNAL` for each child (the leader of
a process group) and `-PID` when it has reaped one. The end of the pipe means that the parent is gone.
"""

import os
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 5.0


class Watchdog:
    """Held by the parent. Ends by itself once this process has closed the pipe or died."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, start_new_session=True
        )

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def watch(self, pid: int, death_signal: signal.Signals) -> None:
        self._write(f"+{pid} {int(death_signal)}\n")

    def forget(self, pid: int) -> None:
        self._write(f"-{pid}\n")

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None, "opened as a pipe"
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()


def main() -> None:
    watched: dict[int, int] = {}
    for line in sys.stdin:
        pid, _, number = line[1:].partition(" ")
        if line.startswith("+"):
            watched[int(pid)] = int(number)
        else:
            watched.pop(int(pid), None)
    for pid, number in watched.items():
        _signal_group(pid, number)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and any(_signal_group(pid, 0) for pid in watched):
        time.sleep(0.05)
    for pid in watched:
        _signal_group(pid, signal.SIGKILL)


def _signal_group(pid: int, number: int) -> bool:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    main()
