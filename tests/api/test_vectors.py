"""The published arithmetic, to the last digit, through the API: real objects of the tokens that are named, real calls,
and a sandbox's clock instead of the hours.

The vectors are of 2024: storage at 10 yuan, then at 5. So a family of its own keeps 5 now and is announced 10 for a
month ahead, where two of the sandboxes go. The engine has a model of one small layer, because the nano model takes
half a minute for 35,000 tokens. Still, each call's text takes it a while to read: so the second vector, with its 639
calls, has a tenth of the tokens at ten times their price, in a family of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cacheplane.engines import make_gguf
from tests.conftest import Client, Instance, start_instance, using_database_of, wait_for

pytestmark = [pytest.mark.own_instance, pytest.mark.xdist_group("vectors")]

TIER = "rehearsal"
HOUR = 3600
SOON_SECONDS = 20
"""Before an end, so that an object still is when it is looked at."""


@dataclass(frozen=True)
class Family:
    """`dearer`: how many times the published price its tokens have; the fee of a call is the published one."""

    name: str
    dearer: int

    @property
    def model(self) -> str:
        return f"{self.name}-128k"


FULL, TENTH = Family("rehearsal-v1", 1), Family("rehearsal-tenth-v1", 10)
SMALL = make_gguf.Preset(
    embedding=32, layers=1, heads=1, kv_heads=1, feed_forward=32, vocabulary=12_288, quantization="q8_0"
)


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory, first_start: Path) -> Iterator[Instance]:
    folder = tmp_path_factory.mktemp("vectors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(make_gguf.PRESETS, "small", SMALL)
        made = make_gguf.write_model(folder / "small.gguf", preset="small", seed=1)
    running = start_instance(folder / "data", environment={"MODEL": str(made.path)}, copy_of=first_start)
    try:
        yield running
    finally:
        status = running.stop()
    assert status == 0, running.log.read_text()[-4000:]


@pytest.fixture(scope="module")
def prices(instance: Instance, django_db_blocker: Any) -> datetime:
    """Two families on the instance's engine, at the vectors' prices; from when on storage costs 10 yuan there."""
    with using_database_of(instance, django_db_blocker):
        from billing import clock, price_book
        from cacheplane.access.models import Tier
        from cacheplane.engines.models import ModelFamily, ServedModel

        tier5 = Tier.objects.get(slug="tier5")
        # The vectors send more in a minute than any tier takes.
        tier5.slug, tier5.rank, tier5.tokens_per_minute = TIER, 90, 10**9
        tier5.save(force_insert=True)
        engine = ModelFamily.objects.get(name="moonshot-v1").engine
        now = clock.now()
        dear_from = now + timedelta(days=30)
        for family in (FULL, TENTH):
            row = ModelFamily.objects.create(name=family.name, engine=engine)
            ServedModel.objects.create(name=family.model, family=row, window_tokens=131_072)
            for meter, model, per_million, valid_from in [
                ("creation", family.name, 24 * family.dearer, now),
                ("storage", family.name, 5 * family.dearer, now),
                ("storage", family.name, 10 * family.dearer, dear_from),
                ("call", family.name, 20_000, now),
                ("prompt", family.model, 60 * family.dearer, now),
                ("completion", family.model, 60 * family.dearer, now),
            ]:
                price_book.publish(
                    meter=meter,
                    model=model,
                    currency="CNY",
                    per_million=Decimal(per_million),
                    valid_from=valid_from,
                )
        return dear_from


def advance(caller: Client, **by: Any) -> datetime:
    answer = caller.request("POST", "/v1/sandbox/clock", by)
    assert answer.status == 200, answer.body
    return datetime.fromisoformat(answer.json["now"])


def estimate(caller: Client, family: Family, text: str) -> dict[str, Any]:
    body = {"model": family.name, "messages": [{"role": "system", "content": text}], "ttl": HOUR}
    answer = caller.request("POST", "/v1/caching/estimate", body)
    assert answer.status == 200, answer.body
    return dict(answer.json)


def text_of(caller: Client, family: Family, tokens: int) -> str:
    """A text that the engine counts as so many tokens with its template around it: found by halving."""

    def count(words: int) -> int:
        return int(estimate(caller, family, "light " * words)["tokens"])

    low, high = 1, tokens
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(middle) <= tokens else (low, middle - 1)
    assert count(low) == tokens
    return "light " * low


def made(caller: Client, family: Family, text: str, *, tokens: int) -> dict[str, Any]:
    """An active object that lives for one hour."""
    answer = caller.create(text, model=family.name, ttl=HOUR)
    assert (answer.status, answer.json["tokens"]) == (200, tokens)
    return caller.wait_until(answer.json["id"], "active", seconds=240)


def activated(caller: Client, cache_id: str) -> int:
    """The second in which its first minute began."""
    events = caller.request("GET", f"/v1/caching/{cache_id}/events").json["data"]
    (at,) = [event["at"] for event in events if event["kind"] == "active"]
    return int(datetime.fromisoformat(at).timestamp())


def end_at(caller: Client, cache_id: str, unix_seconds: int) -> None:
    answer = caller.request("PUT", f"/v1/caching/{cache_id}", {"expired_at": unix_seconds})
    assert (answer.status, answer.json["status"]) == (200, "active")


def ask(caller: Client, family: Family, cache_id: str, times: int) -> tuple[Decimal, Decimal]:
    """(what the calls' own tokens cost, what the tokens that came from the cache would have cost)."""
    own = saved = 0
    answers = [caller.ask(cache_id, f"And now, {n}?", model=family.model, max_tokens=1) for n in range(times)]
    for answer in answers:
        assert answer.status == 200, answer.body
        usage = answer.json["usage"]
        own += usage["prompt_tokens"] - usage["cached_tokens"] + usage["completion_tokens"]
        saved += usage["cached_tokens"]
    token = Decimal("0.00006") * family.dearer
    return own * token, saved * token


def test_an_hour_of_35_000_tokens_and_100_calls(prices: datetime, new_caller: Callable[..., Client]) -> None:
    caller = new_caller(kind="sandbox", tier=TIER)
    text = text_of(caller, FULL, 35_000)
    assert estimate(caller, FULL, text)["storage_per_hour"] == "10.500000000"
    assert advance(caller, to=prices.isoformat()) >= prices
    told = estimate(caller, FULL, text)
    assert (told["creation_fee"], told["storage_per_hour"]) == ("0.840000000", "21.000000000")
    assert (told["total"], told["call_fee"]) == ("21.840000000", "0.020000000")
    (on_model,) = told["models"]
    assert on_model["price_uncached"] == "2.100000000"
    assert on_model["break_even_calls_per_hour"] == 11, "10.5"

    active = made(caller, FULL, text, tokens=35_000)
    began = activated(caller, active["id"])
    end_at(caller, active["id"], began + HOUR)
    own, saved = ask(caller, FULL, active["id"], 100)
    advance(caller, to=began + HOUR - SOON_SECONDS)
    assert caller.get(active["id"]).json["status"] == "active"
    spent = 1000 - caller.balance()["available_balance"] - own
    assert (spent, saved) == (Decimal("23.84"), Decimal("210.00"))
    assert round(100 * (saved - spent) / saved, 2) == Decimal("88.65")


def test_fifteen_hours_and_639_calls(prices: datetime, new_caller: Callable[..., Client]) -> None:
    caller = new_caller(kind="sandbox", tier=TIER)
    advance(caller, to=prices.isoformat())
    active = made(caller, TENTH, text_of(caller, TENTH, 3_500), tokens=3_500)
    until = activated(caller, active["id"]) + 15 * HOUR
    end_at(caller, active["id"], until)
    own, saved = ask(caller, TENTH, active["id"], 639)
    advance(caller, to=until)
    assert caller.get(active["id"]).json["status"] == "expired"
    spent = 1000 - caller.balance()["available_balance"] - own
    assert spent == Decimal("315.84") + Decimal("12.78")
    assert saved == Decimal("1341.90")
    assert round(100 * (1 - spent / saved), 2) == Decimal("75.51")


def test_an_hour_and_one_more_of_10_000_tokens_at_5(
    prices: datetime, new_caller: Callable[..., Client]
) -> None:
    caller = new_caller(kind="sandbox", tier=TIER)
    active = made(caller, FULL, text_of(caller, FULL, 10_000), tokens=10_000)
    began = activated(caller, active["id"])
    end_at(caller, active["id"], began + HOUR)
    advance(caller, to=began + HOUR - SOON_SECONDS)
    end_at(caller, active["id"], began + 2 * HOUR)
    advance(caller, advance=2 * HOUR)
    assert caller.get(active["id"]).json["status"] == "expired"
    spent = 1000 - caller.balance()["available_balance"]
    assert spent - Decimal("0.24") == Decimal("6.00")
    lines = storage_of(active["id"])
    assert lines == (120, Decimal("6.00"))


def storage_of(cache_id: str) -> tuple[int, Decimal]:
    """(minutes, what they cost) as the ledger has them, once the sweep has closed the segment."""
    from billing.models import StorageLine

    def found() -> list[StorageLine]:
        return list(StorageLine.objects.filter(segment__subject=cache_id))

    wait_for(lambda: found(), seconds=20, what="storage is posted")
    return sum(row.end_minute - row.first_minute for row in found()), sum(
        (r.amount for r in found()), Decimal(0)
    )
