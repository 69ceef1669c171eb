"""Three promises about size: a list page at any depth, header mode on a long conversation, and a large create.

list     the page at a depth of 20,000 objects against the first one, over HTTP, in turns
match    finding the object and comparing 128k tokens of messages with it, on the server's own code
create   a body of 1 MB through Django, less the time in which the engine renders and tokenizes it
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from rich.table import Table

from cacheplane.ids import new_id
from tests.bench.instance import Instance, console, instance, parser
from tests.bench.prompts import FAMILY, TEXT

PAGE = "/v1/caching?limit=20"
MATCHED_TOKENS = 128_000
CREATE_BYTES = 1_000_000

COPIES = """
INSERT INTO caching_cacheobject ({columns}, id)
SELECT {columns}, unnest(%s::text[]) FROM caching_cacheobject WHERE id = %s
"""


def main() -> None:
    options = parser(__doc__ or "")
    options.set_defaults(preset="nano")
    options.add_argument("--depth", type=int, default=20_000)
    options.add_argument("--rounds", type=int, default=12, help="a minute takes 2,000,000 tokens")
    given = options.parse_args()
    with instance(preset=given.preset, ready_file=given.ready_file) as found:
        with found.without_worker():
            rows = [
                _create(found, rounds=given.rounds),
                _match(found, rounds=given.rounds),
                _list(found, depth=given.depth, rounds=given.rounds),
            ]
    table = Table(title=f"{given.rounds} rounds in turns; medians")
    for heading in ("", "measured", "against", "figure", "goal"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


Row = tuple[str, str, str, str, str]


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def _in_turns(one: Callable[[], object], other: Callable[[], object], *, rounds: int) -> tuple[float, float]:
    """Medians in milliseconds, after one unmeasured turn of each."""
    one(), other()
    pairs = [(_timed(one), _timed(other)) for _ in range(rounds)]
    return median(first for first, _ in pairs), median(second for _, second in pairs)


def _text(chars: int) -> str:
    text = TEXT.read_text(encoding="utf-8")
    return (text * (chars // len(text) + 1))[:chars]


def _new(found: Instance, messages: list[dict[str, str]]) -> dict[str, Any]:
    return found.api.call("POST", "/v1/caching", {"model": FAMILY, "ttl": 600, "messages": messages}).body


# --- List ------------------------------------------------------------------------------------------------------


def _list(found: Instance, *, depth: int, rounds: int) -> Row:
    made = _new(found, [{"role": "system", "content": "One of many."}])["id"]
    ids = sorted(new_id("cache") for _ in range(depth))
    names = found.database.execute(
        "SELECT string_agg(column_name, ', ') FROM information_schema.columns"
        " WHERE table_name = 'caching_cacheobject' AND column_name <> ALL(%s)",
        [["id", "status", "kv_state_id", "segment_id", "hold_reference", "activated_at"]],
    ).fetchone()
    assert names is not None
    # Written past the API, as ended objects: only the list looks at them, and they go with the block.
    columns = f"{names[0]}, status"
    found.database.execute(
        COPIES.format(columns=columns).replace(f"SELECT {columns}", f"SELECT {names[0]}, 'expired'"),
        [ids, made],
    )
    found.database.execute("ANALYZE caching_cacheobject")
    try:
        deep = ids[20]
        first, at_depth = _in_turns(
            lambda: found.api.call("GET", PAGE),
            lambda: found.api.call("GET", f"{PAGE}&after={deep}"),
            rounds=rounds,
        )
    finally:
        found.database.execute("DELETE FROM caching_cacheobject WHERE id = ANY(%s)", [ids])
    return (
        f"list page at depth {depth:,}",
        f"{at_depth:.2f} ms",
        f"first page {first:.2f} ms",
        f"{at_depth / first:.2f} ×",
        "≤ 2 ×",
    )


# --- Header mode -----------------------------------------------------------------------------------------------


def _match(found: Instance, *, rounds: int) -> Row:
    chars = int(1_000 * _chars_per_token(found))
    messages = [
        {"role": "user" if turn % 2 else "assistant", "content": _text(chars)}
        for turn in range(1, MATCHED_TOKENS // 1_000 - 2)
    ]
    made = _new(found, messages)
    figures = _inside(found, "match", {"cache_id": made["id"], "messages": messages, "rounds": rounds})
    found.api.call("DELETE", f"/v1/caching/{made['id']}")
    return (
        f"header mode, {made['tokens']:,} tokens",
        f"{figures['match']:.2f} ms",
        f"one SHA-256 {figures['sha256']:.2f} ms",
        f"{figures['match']:.2f} ms, at least {figures['least']:.2f}",
        "≤ 5 ms",
    )


def _chars_per_token(found: Instance) -> float:
    text = _text(40_000)
    tokens = found.engine.call("POST", "/tokenize", {"content": text}).body["tokens"]
    return len(text) / len(tokens)


def _inside(found: Instance, part: str, given: dict[str, Any]) -> dict[str, float]:
    """A part that is measured on the server's own code: in a process of its own, with the instance's settings."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.contract_inside", part],
        input=json.dumps(given),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"DATA_DIR": str(found.data_dir)},
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


# --- Create ----------------------------------------------------------------------------------------------------


def _create(found: Instance, *, rounds: int) -> Row:
    messages = [{"role": "user", "content": _text_of_long_words(found)}]
    given = {"messages": messages, "rounds": rounds, "api_key": found.api_key}
    figures = _inside(found, "create", given)
    return (
        f"create, {figures['bytes']:,.0f} bytes, {figures['tokens']:,.0f} tokens",
        f"{figures['whole']:.0f} ms",
        f"of it the engine {figures['engine']:.0f} ms",
        f"{figures['beyond']:.1f} ms beyond, at least {figures['least']:.1f}; {figures['cpu']:.1f} ms of our CPU",
        "≤ 30 ms",
    )


def _text_of_long_words(found: Instance) -> str:
    """The window is 131,072 tokens: a megabyte fits into it when its words are long and are one token each."""
    words = sorted({word for word in TEXT.read_text(encoding="utf-8").split() if word.isalpha()}, key=len)

    def letters_per_token(word: str) -> float:
        return len(word) / len(
            found.engine.call("POST", "/tokenize", {"content": f" {word}" * 10}).body["tokens"]
        )

    best = sorted(words[-200:], key=letters_per_token)[-40:]
    dice = random.Random(1)
    lines = []
    while sum(map(len, lines)) < CREATE_BYTES:
        lines.append(" ".join(dice.choice(best) for _ in range(200)) + ".\n")
    return "".join(lines)[:CREATE_BYTES]


if __name__ == "__main__":
    main()
