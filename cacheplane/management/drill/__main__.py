"""The drill itself, on the database that the environment names. `manage.py drill` starts it on one of its own."""

from __future__ import annotations

import os
import signal
import sys

import django

django.setup()  # before anything of ours

from dataclasses import asdict  # noqa: E402

import msgspec  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: E402
from rich.table import Table  # noqa: E402

from cacheplane.management.drill import money  # noqa: E402
from cacheplane.management.drill.figures import DrillError, Figure  # noqa: E402
from cacheplane.management.drill.money import Part, Sizes  # noqa: E402
from cacheplane.management.drill.server import OWN_DATABASE_VARIABLE  # noqa: E402


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the command asks for, as its one argument."""

    seed: int
    parts: list[str]
    sizes: dict[str, int]
    json_path: str | None


def main(argument: str) -> int:
    url = os.environ.get("DATABASE_URL")
    if not url or os.environ.get(OWN_DATABASE_VARIABLE) != url:
        print("The drill needs a database of its own: start it with manage.py drill money.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    order = msgspec.json.decode(argument, type=Order)
    console = Console()
    try:
        figures = _figures(order, console)
    except DrillError as error:
        console.print(f"drill: {error}", style="red", highlight=False)
        return 1
    except KeyboardInterrupt:
        return 130
    _show(console, figures)
    if order.json_path is not None:
        with open(order.json_path, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode([asdict(figure) for figure in figures])))
    return 0 if all(figure.is_reached for figure in figures) else 1


def _figures(order: Order, console: Console) -> list[Figure]:
    sizes, figures = Sizes(**order.sizes), []
    with money.own_databases() as renew:
        for part in money.PARTS:
            if part.name in order.parts:
                renew(f"drill_{part.name}")
                figures += _watched(part, order.seed, sizes, console)
    return figures


def _watched(part: Part, seed: int, sizes: Sizes, console: Console) -> list[Figure]:
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        task = progress.add_task(part.name, total=part.units(sizes))
        return part.run(seed, sizes, lambda done: progress.advance(task, done))


def _show(console: Console, figures: list[Figure]) -> None:
    table = Table(title="Drill: money")
    table.add_column("", no_wrap=True)
    for heading in ("figure", "goal", "reached"):
        table.add_column(heading, overflow="fold")
    for heading in ("count", "seed", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in figures:
        table.add_row(
            "ok" if figure.is_reached else "MISSED",
            figure.name,
            figure.goal,
            figure.reached,
            f"{figure.count:,} {figure.what}",
            str(figure.seed),
            f"{figure.seconds:.1f}",
        )
    console.print(table, highlight=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
