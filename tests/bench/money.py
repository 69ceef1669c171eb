"""Money per second: holds and settlements, many accounts and one, a month rated again, a balance with open objects.

On a database of its own, durable like the one that `manage.py up` runs. What is compared runs in turns; the floor is
the same number of transactions on the same server, each of one bare UPDATE of one row.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from cacheplane.management.drill import processes
from cacheplane.management.drill.figures import in_silence
from cacheplane.management.drill.server import own_server

if TYPE_CHECKING:
    from collections.abc import Sequence

# A process of the bench's own begins by importing this file: what needs Django is imported within.
WORK = "tests.bench.money_work"
GOALS = {"plain": 1000, "hot_plain": 250}
TITLES = {
    "plain": "hold + settle, {accounts} accounts",
    "whole": "limits, hold, slot + settle, {accounts} accounts",
    "floor": "floor: two bare UPDATEs, {accounts} rows",
    "hot_plain": "hold + settle, one account",
    "hot_whole": "limits, hold, slot + settle, one account",
    "hot_floor": "floor: two bare UPDATEs, one row",
}
FLOOR_OF = {"plain": "floor", "whole": "floor", "hot_plain": "hot_floor", "hot_whole": "hot_floor"}
WARM_UP_SECONDS = 3.0
RERATING_SECONDS_MAX = 60
BALANCE_MS_MAX = 3.0
console = Console(highlight=False)


def main() -> None:
    options = ArgumentParser(description=__doc__)
    options.add_argument("--accounts", type=int, default=2000)
    options.add_argument("--clients", type=int, default=4, help="processes with a connection each")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=3.0, help="of each measurement in each round")
    options.add_argument("--events", type=int, default=1_000_000, help="to be rated again")
    options.add_argument("--objects", type=int, default=100, help="open while the balance is read")
    options.add_argument(
        "--forgetful", action="store_true", help="no fsync: what the code takes, without the disk"
    )
    given = options.parse_args()
    with own_server(durable=not given.forgetful) as environment:
        os.environ.update(environment)
        import django

        django.setup()
        _measure(given)


def _measure(given: Any) -> None:
    from django.core.management import call_command

    from tests.bench import money_work
    from tests.bench.instance import machine

    call_command("migrate", verbosity=0)
    console.print(f"bench: {machine()}; {given.clients} clients")
    scene = money_work.prepare(accounts=given.accounts)
    arguments = [scene | {"seed": number} for number in range(given.clients)]
    rates: dict[str, list[float]] = {kind: [] for kind in TITLES}
    with processes.team(WORK, arguments) as team:
        for kind in ("warm_up", "plain", "whole"):
            team.tell([(kind, WARM_UP_SECONDS)] * given.clients, in_silence)
        money_work.analyze()
        for number in range(given.rounds):
            # Every other round the other way round, so that none always follows the same one.
            for kind in list(TITLES) if number % 2 else list(reversed(TITLES)):
                counts = team.tell([(kind, given.seconds)] * given.clients, in_silence)
                rates[kind].append(sum(counts) / given.seconds)
    _report_rates(rates, accounts=given.accounts)
    _report_balance(*money_work.balances(objects=given.objects), objects=given.objects)
    [figure] = money_work.rerated(events=given.events)
    console.print(f"re-rating {figure.count:,} events: {figure.reached}")
    console.print(f"goal: identical, under {RERATING_SECONDS_MAX} s")


def _report_rates(rates: dict[str, list[float]], *, accounts: int) -> None:
    table = Table(title="Per second, in turns")
    table.add_column("")
    for heading in ("median", "least", "most", "of floor", "goal"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind, values in rates.items():
        floor = FLOOR_OF.get(kind)
        share = f"{median(values) / median(rates[floor]):.2f}" if floor else ""
        goal = f">= {GOALS[kind]}" if kind in GOALS else ""
        figures = (median(values), min(values), max(values))
        table.add_row(
            TITLES[kind].format(accounts=accounts), *(f"{figure:.0f}" for figure in figures), share, goal
        )
    console.print(table)


def _report_balance(ours: Sequence[float], bare: Sequence[float], *, objects: int) -> None:
    console.print(
        f"balance with {objects} open objects: median {median(ours) * 1000:.2f} ms; a bare SELECT beside it "
        f"{median(bare) * 1000:.2f} ms; goal: at most {BALANCE_MS_MAX:.0f} ms"
    )


if __name__ == "__main__":
    main()
