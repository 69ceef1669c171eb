"""The parts of `drill money` in their order, and a database for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from django.core.management import call_command
from django.db import connection, connections

from billing import price_book
from cacheplane.management.drill import (
    duplicates,
    exhaustion,
    intervals,
    operations,
    overdraft,
    rerating,
)
from cacheplane.management.drill.figures import Advance, Figure

SEED = 20240806


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much each part does."""

    operations: int = operations.OPERATIONS
    rounds: int = overdraft.ROUNDS
    messages: int = duplicates.MESSAGES_OF_A_KIND
    intervals: int = intervals.INTERVALS
    events: int = rerating.EVENTS
    objects: int = exhaustion.OBJECTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`units` is how often `run` will advance, all in all."""

    name: str
    units: Callable[[Sizes], int]
    run: Callable[[int, Sizes, Advance], list[Figure]]


# The quick ones first: what is broken is heard of soon.
PARTS = (
    Part(
        name=overdraft.PART,
        units=lambda sizes: sizes.rounds * overdraft.CALLERS,
        run=lambda seed, sizes, advance: overdraft.run(seed=seed, rounds=sizes.rounds, advance=advance),
    ),
    Part(
        name=duplicates.PART,
        units=lambda sizes: sizes.messages * len(duplicates.KINDS),
        run=lambda seed, sizes, advance: duplicates.run(seed=seed, messages=sizes.messages, advance=advance),
    ),
    Part(
        name=exhaustion.PART,
        units=lambda sizes: sizes.objects,
        run=lambda seed, sizes, advance: exhaustion.run(seed=seed, count=sizes.objects, advance=advance),
    ),
    Part(
        name=intervals.PART,
        units=lambda sizes: sizes.intervals,
        run=lambda seed, sizes, advance: intervals.run(seed=seed, intervals=sizes.intervals, advance=advance),
    ),
    Part(
        name=rerating.PART,
        units=lambda sizes: sizes.events,
        run=lambda seed, sizes, advance: rerating.run(seed=seed, events=sizes.events, advance=advance),
    ),
    Part(
        name=operations.PART,
        units=lambda sizes: sizes.operations,
        run=lambda seed, sizes, advance: operations.run(
            seed=seed, operations=sizes.operations, advance=advance
        ),
    ),
)
NAMES = tuple(part.name for part in PARTS)


@contextmanager
def own_databases() -> Iterator[Callable[[str], None]]:
    """Make the tables once; call what is given to have a copy of them, empty, in place of the one before.

    For a server that nobody else uses: the copies are dropped again, whatever is in them.
    """
    call_command("migrate", verbosity=0)
    template, used = str(connection.settings_dict["NAME"]), ""

    def renew(name: str) -> None:
        nonlocal used
        _go_to(template)
        with connection.cursor() as cursor:
            if used:
                cursor.execute(f'DROP DATABASE "{used}" WITH (FORCE)')
        _go_to("postgres")
        with connection.cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        used = name
        _go_to(name)

    yield renew
    connections.close_all()


def _go_to(database: str) -> None:
    """This thread's next connection, and every other thread's, is to this database."""
    connection.close()
    connections.settings["default"]["NAME"] = database
    price_book.forget()
