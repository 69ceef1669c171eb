"""Time to first token, cached against cold, through us and on the engine alone; and a restore beside a plain read.

Cold: the whole prompt is evaluated. Restored: the saved file is put into a slot and only the question is evaluated.
Warm: the slot still holds the prefix. "The engine alone" does the same on the same engine and the same file, with no
check of the file before it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.table import Table

from cacheplane.engines import kv_files
from cacheplane.engines.base import KVHandle
from tests.bench.instance import Instance, console, instance, parser
from tests.bench.precompute import created, delete, until_active
from tests.bench.prompts import asking, long_message, new_question, tokens_of

Samples = dict[str, list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is asked over and over: `prefix` is cached as `cache_id`, whose bytes lie in `handle`."""

    found: Instance
    prefix: dict[str, str]
    cache_id: str
    handle: KVHandle
    slot: int


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--tokens", type=int, default=8005)
    options.add_argument("--rounds", type=int, default=3, help="each asks twice cold and 12 times cached")
    given = options.parse_args()
    with instance(preset=given.preset, ready_file=given.ready_file) as found:
        with _prepared(found, tokens=given.tokens) as setting:
            _report(setting, _measured(setting, rounds=given.rounds), _restores(setting))


@contextmanager
def _prepared(found: Instance, *, tokens: int) -> Iterator[Setting]:
    """The cache object that all questions are asked on; deleted in the end."""
    prefix = long_message(found.engine, tokens)
    cache_id = created(found, prefix)
    try:
        until_active(found, cache_id)
        names = ("filename", "n_tokens", "size_bytes", "sha256", "blake3", "fingerprint")
        row = found.database.execute(
            f"""SELECT {", ".join(names)} FROM kv_kvstate
                 WHERE id = (SELECT kv_state_id FROM caching_cacheobject WHERE id = %s)""",
            [cache_id],
        ).fetchone()
        assert row is not None, "an active object has a KV state"
        handle = KVHandle(**dict(zip(names, row, strict=True)))
        yield Setting(found=found, prefix=prefix, cache_id=cache_id, handle=handle, slot=found.last_slot())
    finally:
        found.api.close()  # an answer may be half read
        delete(found, cache_id)


# --- First token -----------------------------------------------------------------------------------------------


def _measured(setting: Setting, *, rounds: int) -> Samples:
    """Seconds by what was done. Each round is cold once and cached three times each way, in alternating order."""
    samples: Samples = defaultdict(list)
    for number in range(rounds):
        for name, ask in _in_turn(number, {"us, cold": _cold_us, "engine, cold": _cold_engine}):
            samples[name].append(ask(setting))
            console.print(f"bench: round {number + 1}: {name} {samples[name][-1]:.3f} s")
        for again in range(3):
            for name, ask in _in_turn(
                again, {"us, restored": _restored_us, "engine, restored": _restored_engine}
            ):
                samples[name].append(ask(setting))
            # Each of the two has just been used with the prefix in its slot.
            for name, ask in _in_turn(again, {"us, warm": _warm_us, "engine, warm": _warm_engine}):
                samples[name].append(ask(setting))
    return samples


def _in_turn(
    number: int, ways: dict[str, Callable[[Setting], float]]
) -> Iterator[tuple[str, Callable[[Setting], float]]]:
    yield from ways.items() if number % 2 == 0 else reversed(ways.items())


def _cold_us(setting: Setting) -> float:
    answer = setting.found.api.ask(asking([setting.prefix, new_question()], max_tokens=2))
    assert answer.cached_tokens == 0
    return answer.first_token_seconds


def _cold_engine(setting: Setting) -> float:
    return _ask_engine(setting, is_cached=False)


def _restored_us(setting: Setting) -> float:
    setting.found.forget_slots()
    return _warm_us(setting)


def _warm_us(setting: Setting) -> float:
    cache = {"role": "cache", "content": f"cache_id={setting.cache_id}"}
    answer = setting.found.api.ask(asking([cache, new_question()], max_tokens=2))
    assert answer.is_hit
    return answer.first_token_seconds


def _restored_engine(setting: Setting) -> float:
    started = time.perf_counter()
    _restore(setting)
    restored = time.perf_counter() - started
    return restored + _warm_engine(setting)


def _warm_engine(setting: Setting) -> float:
    return _ask_engine(setting, is_cached=True)


def _ask_engine(setting: Setting, *, is_cached: bool) -> float:
    body = asking([setting.prefix, new_question()], max_tokens=2)
    answer = setting.found.engine.ask(body | {"id_slot": setting.slot, "cache_prompt": is_cached})
    assert (answer.cached_tokens >= setting.handle.n_tokens - 1) == is_cached
    return answer.first_token_seconds


def _restore(setting: Setting) -> None:
    path = f"/slots/{setting.slot}?action=restore"
    setting.found.engine.call("POST", path, {"filename": setting.handle.filename})


# --- Restore ---------------------------------------------------------------------------------------------------


def _restores(setting: Setting, *, rounds: int = 15) -> Samples:
    """Seconds of a plain read of the file, of our proof of it, and of the engine's restore, in turns."""
    samples: Samples = defaultdict(list)
    path: Path = setting.found.kv_dir / setting.handle.filename
    works: dict[str, Callable[[], object]] = {
        "read": path.read_bytes,
        "prove": lambda: kv_files.prove(setting.found.kv_dir, setting.handle),
        "restore": lambda: _restore(setting),
    }
    for _ in range(rounds):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            samples[name].append(time.perf_counter() - started)
    return samples


# --- What it says ----------------------------------------------------------------------------------------------


def _report(setting: Setting, first: Samples, restores: Samples) -> None:
    us = {kind: median(first[f"us, {kind}"]) for kind in ("cold", "restored", "warm")}
    engine = {kind: median(first[f"engine, {kind}"]) for kind in us}
    tokens = len(tokens_of(setting.found.engine, [setting.prefix]))
    table = Table(title=f"Time to first token over {tokens:,} tokens: medians")
    for heading in ("", "cold", "restored", "warm", "÷ restored", "÷ warm"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, times in (("through us", us), ("engine alone", engine)):
        table.add_row(
            name,
            *(f"{times[kind] * 1000:,.0f} ms" for kind in times),
            *(f"{times['cold'] / times[kind]:.1f} ×" for kind in ("restored", "warm")),
        )
    ratio = {kind: (us["cold"] / us[kind]) / (engine["cold"] / engine[kind]) for kind in ("restored", "warm")}
    table.add_row("us / engine", "", "", "", *(f"{ratio[kind]:.1%}" for kind in ratio))
    console.print(table)
    console.print(f"goal: cold / restored through us at least 90 % of the engine's: {ratio['restored']:.1%}")
    console.print(
        "  of that the cached half alone, cold being the same work and most of the noise: "
        f"{engine['restored'] / us['restored']:.1%}"
    )
    took = {name: median(values) for name, values in restores.items()}
    size = setting.handle.size_bytes
    for name, seconds in took.items():
        console.print(
            f"  {name}: {seconds * 1000:.1f} ms, {size / seconds / 1e9:.2f} GB/s ({size / 1e6:.1f} MB)"
        )
    console.print(f"goal: restore at least 50 % of the speed of a read: {took['read'] / took['restore']:.1%}")


if __name__ == "__main__":
    main()
