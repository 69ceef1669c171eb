"""Many at once, each on a thread and a connection of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from django.db import connection

R = TypeVar("R")

START_TIMEOUT_SECONDS = 120.0


def all_at_once(works: Sequence[Callable[[], R]]) -> list[R]:
    """Run each on its own connection, from one starting shot; what they return, in their order."""
    start = threading.Barrier(len(works))

    def run(work: Callable[[], R]) -> R:
        try:
            connection.ensure_connection()
            start.wait(timeout=START_TIMEOUT_SECONDS)
            return work()
        finally:
            connection.close()

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(run, works))


def shared_out(works: Iterable[Callable[[], object]], *, threads: int) -> None:
    """The works in their order, by so many hands: whoever is free takes the next one."""
    rest, guard = iter(works), threading.Lock()

    def hand() -> None:
        while True:
            with guard:
                work = next(rest, None)
            if work is None:
                return
            work()

    all_at_once([hand] * threads)
