"""Work in processes of its own, each with its own interpreter and connection. Nothing here needs Django to import."""

from __future__ import annotations

import importlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from cacheplane.management.drill.figures import Advance, DrillError

END_TIMEOUT_SECONDS = 30.0


class Team:
    """Processes that each play a role: they are told something, say how far they are, and answer."""

    def __init__(self, members: Sequence[tuple[BaseProcess, Connection]]) -> None:
        self._members = members

    def tell(self, said: Sequence[object], advance: Advance) -> list[Any]:
        """Say one thing to each, and wait for all their answers. Raises DrillError when one has ended."""
        pipes = [pipe for _, pipe in self._members]
        for pipe, what in zip(pipes, said, strict=True):
            pipe.send(what)
        answers: dict[Any, Any] = {}
        while len(answers) < len(pipes):
            for ready in wait([pipe for pipe in pipes if pipe not in answers]):
                assert isinstance(ready, Connection)
                try:
                    kind, value = ready.recv()
                except (EOFError, ConnectionResetError) as error:
                    raise DrillError("A process of the drill has ended; what it met stands above.") from error
                if kind == "advance":
                    advance(value)
                else:
                    answers[ready] = value
        return [answers[pipe] for pipe in pipes]


@contextmanager
def team(role: str, arguments: Sequence[dict[str, Any]]) -> Iterator[Team]:
    """One process per set of arguments, each on this process's database; they end with the block.

    `role` is the function `role` of the module so named. It is called with `hear` (the next thing; None: no more),
    `advance` (how far it is), `answer` (to each thing heard, once), and its arguments.
    """
    from django.db import connections

    context = multiprocessing.get_context("spawn")
    database = connections.settings["default"]["NAME"]
    members = []
    try:
        for values in arguments:
            ours, theirs = context.Pipe()
            process = context.Process(target=_live, args=(role, theirs, database, values), daemon=True)
            process.start()
            theirs.close()
            members.append((process, ours))
        yield Team(members)
    except BaseException:  # whatever ends the block early: nobody waits for what they were at
        for process, _ in members:
            process.terminate()
        raise
    finally:
        for process, pipe in members:
            pipe.close()
            process.join(END_TIMEOUT_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()


def _live(role: str, pipe: Connection, database: str, values: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; who leads the team ends it
    import django

    django.setup()
    from django.db import connections

    connections.settings["default"]["NAME"] = database
    play: Callable[..., None] = importlib.import_module(role).role

    def hear() -> Any:
        try:
            return pipe.recv()
        except EOFError:
            return None

    play(
        hear=hear,
        advance=lambda done: pipe.send(("advance", done)),
        answer=lambda value: pipe.send(("answer", value)),
        **values,
    )
    connections.close_all()
