"""An account that somebody keeps locked, as a long change of its books does."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from django.conf import settings

from tests.conftest import Answer, Client, wait_for

CALLS = 2 * settings.HOT_PATH_DATABASE_THREADS


def ask(caller: Client) -> Answer:
    return caller.chat({"role": "user", "content": "Hello."})


def test_it_keeps_its_own_callers_waiting_and_no_others(new_caller: Callable[..., Client]) -> None:
    from django.db import connection, transaction

    from billing import accounts

    def waiting() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            return int(cursor.fetchone()[0])

    locked, other = new_caller(), new_caller()
    with ThreadPoolExecutor(CALLS) as callers:
        with transaction.atomic():
            accounts.lock(locked.organization)
            calls = [callers.submit(ask, locked) for _ in range(CALLS)]
            wait_for(lambda: waiting() >= CALLS // 4, seconds=30, what="calls wait for the lock")
            assert ask(other).status == 200
            assert not any(call.done() for call in calls)
        assert [call.result().status for call in calls] == [200] * CALLS
