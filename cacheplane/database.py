"""Database work for the asynchronous part: a few threads, each with a connection of its own; and statements
that are sent often or are large.

The money and lifecycle code exists once, synchronous; the hot path runs it here. A thread keeps its connection
between calls. One that the server has closed meanwhile is replaced before it is used; when one breaks in use, all
threads open new ones before their next statement.
"""

from __future__ import annotations

import asyncio
import select
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import psycopg
from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError, connection, transaction
from django.db.backends.postgresql.base import ServerBindingCursor

from cacheplane.errors import ServiceUnavailable

P = ParamSpec("P")
R = TypeVar("R")

RETRY_AFTER_SECONDS = 1

_threads = ThreadPoolExecutor(settings.HOT_PATH_DATABASE_THREADS, thread_name_prefix="database")
_local = threading.local()
_generation = 0

PLACES = max(1, settings.HOT_PATH_DATABASE_THREADS // 2)
# Of organizations for which something is under way: whoever uses a semaphore holds it, and the last takes it along.
_places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

_beating = ThreadPoolExecutor(1, thread_name_prefix="heartbeat")


async def run_apart(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """As `run`, on a thread of its own: for what must go on when calls that wait for a lock keep all others busy."""
    return await asyncio.get_running_loop().run_in_executor(
        _beating, lambda: _guarded(function, *args, **kwargs)
    )


async def run_for(organization_id: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """As `run`, for what may wait until the organization's account is unlocked: it leaves half of the threads to
    others. Raises ServiceUnavailable."""
    places = _places.get(organization_id)
    if places is None:
        places = _places[organization_id] = asyncio.Semaphore(PLACES)
    async with places:
        return await run(function, *args, **kwargs)


async def run(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `function` in a database thread. Raises ServiceUnavailable when the database cannot be reached."""
    return await asyncio.get_running_loop().run_in_executor(
        _threads, lambda: _guarded(function, *args, **kwargs)
    )


def _guarded(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    global _generation
    if getattr(_local, "generation", _generation) != _generation:
        connection.close()
    elif _has_server_hung_up():
        connection.connection.close()  # so that a pool throws it away
        connection.close()
    _local.generation = _generation
    try:
        return function(*args, **kwargs)
    except (OperationalError, InterfaceError) as error:
        connection.close()
        _generation += 1
        raise ServiceUnavailable(
            "The database cannot be reached, please try again later", retry_after_seconds=RETRY_AFTER_SECONDS
        ) from error


def _has_server_hung_up() -> bool:
    """Asks the socket, not the server. Nothing is on its way to an idle connection but the end of it, or a notice of
    the server's, for which a new connection is a small price."""
    idle = connection.connection
    if idle is None or idle.closed:
        return False
    poll = select.poll()
    poll.register(idle.pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))


def prepared_row(
    statement: str, values: Mapping[str, Any], *, refusal: str | None = None
) -> tuple[Any, ...] | None:
    """The first row of a statement that each call sends: parsed and planned once by each connection, and its values
    sent beside it. None when it gives none, or fails with the SQLSTATE `refusal`, having done nothing.

    Raises Django's database errors.
    """
    connection.ensure_connection()
    try:
        # Within somebody's transaction (a test's) a refusal must not end that one.
        with transaction.atomic() if connection.in_atomic_block else nullcontext():
            with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
                row: tuple[Any, ...] | None = cursor.execute(
                    statement, values, prepare=settings.DATABASE_PREPARED_STATEMENTS
                ).fetchone()
                return row
    except DatabaseError as error:
        if refusal is not None and getattr(error.__cause__, "sqlstate", None) == refusal:
            return None
        raise


@contextmanager
def values_apart() -> Iterator[None]:
    """Statements within send their values beside them, for the server to put in. The usual way writes the values into
    the statement, quoted: of a megabyte that takes longer than to store it. For plain INSERTs, whose columns say what
    type each value is of."""
    connection.ensure_connection()
    raw = connection.connection
    usual, raw.cursor_factory = raw.cursor_factory, ServerBindingCursor
    try:
        yield
    finally:
        raw.cursor_factory = usual
