"""A precompute, from the request to active, beside the engine's own prefill of the same tokens."""

from __future__ import annotations

import time
from collections import defaultdict
from datetime import datetime
from statistics import median

from rich.table import Table

from tests.bench.instance import Instance, console, instance, parser
from tests.bench.prompts import FAMILY, long_message, tokens_of

LOOK_EVERY_SECONDS = 0.25


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--tokens", type=int, default=8005)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    with instance(preset=given.preset, ready_file=given.ready_file) as found:
        message = long_message(found.engine, given.tokens)
        tokens = tokens_of(found.engine, [message])
        samples: dict[str, list[float]] = defaultdict(list)
        for number in range(given.rounds):
            for is_ours in (True, False) if number % 2 == 0 else (False, True):
                if is_ours:
                    whole, worked = precomputed(found, message)
                    samples["us, request to active"].append(whole)
                    samples["us, claimed to active"].append(worked)
                else:
                    samples["engine, prefill"].append(prefilled(found, tokens))
            last = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in samples.items())
            console.print(f"bench: round {number + 1}: {last}")
        _report(samples, tokens=len(tokens))


def created(found: Instance, message: dict[str, str]) -> str:
    body = {"model": FAMILY, "messages": [message], "name": "bench", "ttl": 3600}
    return str(found.api.call("POST", "/v1/caching", body).body["id"])


def until_active(found: Instance, cache_id: str) -> None:
    while (status := found.api.call("GET", f"/v1/caching/{cache_id}").body["status"]) == "pending":
        time.sleep(LOOK_EVERY_SECONDS)
    if status != "active":
        raise SystemExit(f"The cache object became {status}.")


def delete(found: Instance, cache_id: str) -> None:
    found.api.call("DELETE", f"/v1/caching/{cache_id}")


def precomputed(found: Instance, message: dict[str, str]) -> tuple[float, float]:
    """Seconds from the request to active, and from the worker's claim to active, by the events' times."""
    asked_at = time.time()
    cache_id = created(found, message)
    until_active(found, cache_id)
    rows = found.database.execute(
        "SELECT kind, max(at) FROM caching_cacheobjectevent WHERE cache_id = %s GROUP BY kind", [cache_id]
    ).fetchall()
    at: dict[str, datetime] = dict(rows)  # type: ignore[arg-type]
    delete(found, cache_id)
    active = at["active"].timestamp()
    return active - asked_at, active - at["claimed"].timestamp()


def prefilled(found: Instance, tokens: list[int]) -> float:
    """Seconds of the same work done by hand in the same slot."""
    slot = found.last_slot()
    found.engine.call("POST", f"/slots/{slot}?action=erase", {})
    started = time.perf_counter()
    body = {"prompt": tokens, "n_predict": 0, "id_slot": slot, "cache_prompt": False}
    told = found.engine.call("POST", "/completion", body).body
    assert told["tokens_evaluated"] == len(tokens)
    return time.perf_counter() - started


def _report(samples: dict[str, list[float]], *, tokens: int) -> None:
    table = Table(title=f"Precompute of {tokens:,} tokens")
    for heading in ("", "median", "least", "most"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, values in samples.items():
        table.add_row(name, *(f"{value:.2f} s" for value in (median(values), min(values), max(values))))
    console.print(table)
    engine = median(samples["engine, prefill"])
    for name in ("us, request to active", "us, claimed to active"):
        console.print(
            f"{name} / engine, prefill: {median(samples[name]) / engine:.3f} × (goal: at most 1.1 ×)"
        )


if __name__ == "__main__":
    main()
