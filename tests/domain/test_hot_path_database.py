"""The hot path's threads keep their connections: what happens when the server ends those."""

from __future__ import annotations

import asyncio
import threading

import pytest
from django.conf import settings
from django.db import DataError, connection

from cacheplane import database
from tests.conftest import wait_for

THREADS = settings.HOT_PATH_DATABASE_THREADS


def in_every_thread(function):
    """Each thread takes one turn: none goes on before all have come."""
    together = threading.Barrier(THREADS)

    def turn():
        together.wait(30)
        return function()

    async def all_of_them():
        return await asyncio.gather(*(database.run(turn) for _ in range(THREADS)))

    return asyncio.run(all_of_them())


def backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def close() -> None:
    connection.close()  # looked up in the thread that runs it


@pytest.fixture(autouse=True)
def own_connections(django_db_setup, django_db_blocker):
    """The threads' connections are real ones, and none stays. Nothing is written."""
    with django_db_blocker.unblock():
        yield
        in_every_thread(close)
        close()


def test_connections_that_the_server_ended_are_replaced_before_a_call_uses_them():
    before = in_every_thread(backend)
    assert len(set(before)) == THREADS
    assert set(in_every_thread(backend)) == set(before)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s) AS pid", [before])

        def are_gone() -> bool:
            cursor.execute("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = ANY(%s))", [before])
            return cursor.fetchone()[0]

        wait_for(are_gone, seconds=10, what="the server has ended them")
    after = in_every_thread(backend)
    assert len(set(after)) == THREADS
    assert not set(after) & set(before)


# --- Values beside their statement -------------------------------------------------------------------------------


def as_the_server_got_it() -> str:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid() AND %s::text <> ''",
            ["a megabyte"],
        )
        return cursor.fetchone()[0]


def test_values_go_beside_the_statement_within_the_block_alone():
    assert "'a megabyte'" in as_the_server_got_it()
    with database.values_apart():
        assert "a megabyte" not in as_the_server_got_it()
    assert "'a megabyte'" in as_the_server_got_it()


def test_a_statement_that_fails_within_the_block_leaves_the_connection_as_it_was():
    with pytest.raises(DataError), database.values_apart(), connection.cursor() as cursor:
        cursor.execute("SELECT %s::jsonb", ["no JSON"])
    assert "'a megabyte'" in as_the_server_got_it()
