"""What a short call pays for going through us: time to its first token, and CPU of the web process and PostgreSQL.

Keys, limits, hold, slot lease and settling are all on. One caller, one call at a time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median, quantiles

import psutil
from rich.table import Table

from tests.bench.instance import Instance, console, instance, parser
from tests.bench.prompts import asking, short_message

WARM_UP_CALLS = 20
IDLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """CPU seconds that were used up to now."""

    web: float
    postgres: float

    def since(self, earlier: Cpu) -> Cpu:
        return Cpu(web=self.web - earlier.web, postgres=self.postgres - earlier.postgres)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument(
        "--pairs", type=int, default=100, help="streamed calls, each once through us and once not"
    )
    options.add_argument("--batches", type=int, default=6, help="of calls that are not streamed, for the CPU")
    options.add_argument("--calls", type=int, default=50, help="in each batch")
    options.add_argument("--answer-tokens", type=int, default=16)
    given = options.parse_args()
    with instance(preset=given.preset, ready_file=given.ready_file) as found:
        for _ in range(WARM_UP_CALLS):
            _through_us(found, max_tokens=2)
            _directly(found, max_tokens=2)
        _report_first_token(*_first_tokens(found, pairs=given.pairs))
        _report_cpu(found, batches=given.batches, calls=given.calls, max_tokens=given.answer_tokens)


# --- Time ------------------------------------------------------------------------------------------------------


def _first_tokens(found: Instance, *, pairs: int) -> tuple[list[float], list[float]]:
    """Seconds to the first token, (through us, directly), in turns."""
    ours, engines = [], []
    for number in range(pairs):
        for is_ours in (True, False) if number % 2 else (False, True):
            if is_ours:
                ours.append(_through_us(found, max_tokens=2))
            else:
                engines.append(_directly(found, max_tokens=2))
    return ours, engines


def _through_us(found: Instance, *, max_tokens: int) -> float:
    return found.api.ask(asking([short_message()], max_tokens=max_tokens)).first_token_seconds


def _directly(found: Instance, *, max_tokens: int) -> float:
    body = asking([short_message()], max_tokens=max_tokens) | {"id_slot": 0, "cache_prompt": False}
    return found.engine.ask(body).first_token_seconds


def _report_first_token(ours: list[float], engines: list[float]) -> None:
    table = Table(title=f"Time to first token, short prompt, {len(ours)} pairs in turns")
    for heading in ("", "median", "p90", "least"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, values in (("through us", ours), ("engine directly", engines)):
        figures = (median(values), quantiles(values, n=10)[-1], min(values))
        table.add_row(name, *(f"{figure * 1000:.2f} ms" for figure in figures))
    console.print(table)
    added = (median(ours) - median(engines)) * 1000
    paired = median(one - other for one, other in zip(ours, engines, strict=True)) * 1000
    console.print(f"added at the median: {added:.2f} ms; median of the pairs' differences: {paired:.2f} ms")
    console.print("goal: at most 6 ms")


# --- CPU -------------------------------------------------------------------------------------------------------


def _report_cpu(found: Instance, *, batches: int, calls: int, max_tokens: int) -> None:
    """In batches: on a shared machine the same work takes more CPU time while others use the same core."""
    before = _cpu(found)
    time.sleep(IDLE_SECONDS)
    idle = _cpu(found).since(before)
    body = asking([short_message()], max_tokens=max_tokens) | {"stream": False}
    used, took = [], []
    for _ in range(batches):
        before, started = _cpu(found), time.perf_counter()
        for _ in range(calls):
            found.api.call("POST", "/v1/chat/completions", body)
        took.append(time.perf_counter() - started)
        used.append(_cpu(found).since(before))
    title = f"CPU of a call that is not streamed, {batches} batches of {calls} calls of {max_tokens} answer tokens"
    table = Table(title=title)
    for heading in ("", "median", "least", "idle, per second", "median without idle"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, values, resting in (
        ("web", [cpu.web for cpu in used], idle.web / IDLE_SECONDS),
        ("PostgreSQL", [cpu.postgres for cpu in used], idle.postgres / IDLE_SECONDS),
    ):
        net = median((value - resting * seconds) / calls for value, seconds in zip(values, took, strict=True))
        figures = (median(values) / calls, min(values) / calls, resting, net)
        table.add_row(name, *(f"{figure * 1000:.2f} ms" for figure in figures))
    console.print(table)
    console.print(f"goal: web at most 3 ms; a call took {median(took) / calls * 1000:.1f} ms")


def _cpu(found: Instance) -> Cpu:
    return Cpu(web=_tree(found.pids["web"]), postgres=_tree(found.pids["postgres"]))


def _tree(pid: int) -> float:
    """CPU seconds of a process, of its children, and of those that it has buried."""
    process = psutil.Process(pid)
    own = process.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue  # it ended since; its parent has it by the next look
        total += times.user + times.system
    return float(total)


if __name__ == "__main__":
    main()
