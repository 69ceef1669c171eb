"""What the reader sees: a bar while the object is computed, a line per step, and the table at the end."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.status import Status
from rich.table import Table

from cacheplane.management.demo.journey import QUESTIONS, Result, Step

FEN_FRACTION = Decimal("0.00001")


class TerminalWatcher:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._bar: Progress | None = None

    def begin(self, what: str) -> None:
        self._status = self._console.status(what)
        self._status.start()

    def progress(self, done: int, total: int) -> None:
        if self._bar is None:
            self._stop_status()
            columns = (TextColumn("computing"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
            self._bar = Progress(*columns, TimeElapsedColumn(), console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("computing", total=total)
        self._bar.update(self._task, completed=done, total=total)

    def end(self, step: Step) -> None:
        self.stop()
        first = f", first token after {seconds(step.first_token_seconds)}" if step.first_token_seconds else ""
        self._console.print(f"  {step.name}: {seconds(step.seconds)}{first}", highlight=False)

    def stop(self) -> None:
        self._stop_status()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _stop_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def show(console: Console, result: Result, *, costs_from: str) -> None:
    table = Table(title="One cache object's life (prompt and cached in tokens)", title_justify="left")
    table.add_column("step", no_wrap=True)
    for heading in ("prompt", "cached", "first token", "in all", "cost ¥"):
        table.add_column(heading, justify="right", no_wrap=True)
    _add(table, result.creation)
    for pair in result.pairs:
        _add(table, pair.with_cache)
        _add(table, pair.without)
    for step in (result.listing, result.extension, result.deletion):
        _add(table, step)
    table.add_row("storage while active", "", "", "", "", yuan(result.storage))
    console.print(table)
    for line in conclusions(result):
        console.print(line, highlight=False)
    console.print(f"Amounts: {costs_from}. Times: this run, this machine.", highlight=False)


def _add(table: Table, step: Step) -> None:
    table.add_row(
        step.name,
        "" if step.prompt_tokens is None else f"{step.prompt_tokens:,}",
        "" if step.cached_tokens is None else f"{step.cached_tokens:,}",
        "" if step.first_token_seconds is None else seconds(step.first_token_seconds),
        seconds(step.seconds),
        yuan(step.cost),
    )


def conclusions(result: Result) -> list[str]:
    """What the figures say, in sentences."""
    cached, cold = result.first_with_cache, result.first_without
    saved_seconds = sum(p.without.seconds - p.with_cache.seconds for p in result.pairs)
    with_cache = sum((p.with_cache.cost for p in result.pairs), Decimal(0))
    without = sum((p.without.cost for p in result.pairs), Decimal(0))
    kept = result.creation.cost + result.storage
    saved = without - with_cache - kept
    asked = f"{len(QUESTIONS)} questions"
    lines = [
        f"First token over {result.cached_tokens:,} cached tokens, median of {asked}: "
        f"{seconds(cached)} with the cache, {seconds(cold)} without: {cold / cached:.1f} times faster.",
        f"Waiting saved: {seconds(saved_seconds)} over {asked}.",
        f"Money: {asked} cost ¥{yuan(without)} without the cache; with it ¥{yuan(with_cache)}, and "
        f"¥{yuan(kept)} to make and keep it: "
        + (f"saved ¥{yuan(saved)}." if saved >= 0 else f"¥{yuan(-saved)} more."),
    ]
    each = (without - with_cache) / len(QUESTIONS)
    if each > 0:
        questions = int((kept / each).to_integral_value(rounding="ROUND_CEILING"))
        lines.append(f"A question saves ¥{yuan(each)}, so {questions} of them pay for it.")
    return lines


def seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if abs(value) < 1 else f"{value:.2f} s"


def yuan(amount: Decimal) -> str:
    return f"{amount.quantize(FEN_FRACTION, rounding=ROUND_HALF_UP):f}"
