"""The published arithmetic, to the last digit, through the API: real objects of the tokens that are named, real calls,
and a sandbox's clock instead of the hours.

The vectors are of 2024: storage at 10 yuan, then at 5. So a family of its own keeps 5 now and is announced 10 for a
month ahead, where one of the sandboxes goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.conftest import Client, Instance, wait_for

FAMILY, MODEL, TIER = "rehearsal-v1", "rehearsal-v1-128k", "rehearsal"
HOUR = 3600
AT_ONCE = 3
SOON_SECONDS = 20
"""Before an end, so that an object still is when it is looked at."""


@pytest.fixture
def prices(instance: Instance, instance_database: None) -> Iterator[datetime]:
    """The vectors' prices for a family on the instance's own engine; from when on storage costs 10."""
    from billing import clock, price_book
    from billing.models import PricedItem
    from cacheplane.access.models import Tier
    from cacheplane.engines.models import ModelFamily, ServedModel

    tier5 = Tier.objects.get(slug="tier5")
    # The vectors send more in a minute than any tier takes.
    tier5.slug, tier5.rank, tier5.tokens_per_minute = TIER, 90, 10**9
    if not Tier.objects.filter(slug=TIER).exists():
        tier5.save(force_insert=True)
    engine = ModelFamily.objects.get(name="moonshot-v1").engine
    family = ModelFamily.objects.create(name=FAMILY, engine=engine)
    served = ServedModel.objects.create(name=MODEL, family=family, window_tokens=131_072)
    now = clock.now()
    dear_from = now + timedelta(days=30)
    for meter, model, price in [
        ("creation", FAMILY, 24),
        ("storage", FAMILY, 5),
        ("call", FAMILY, 20_000),
        ("prompt", MODEL, 60),
        ("completion", MODEL, 60),
    ]:
        if not PricedItem.objects.filter(meter=meter, model=model).exists():
            publish = {"meter": meter, "model": model, "currency": "CNY"}
            price_book.publish(**publish, per_million=Decimal(price), valid_from=now)
            if meter == "storage":
                price_book.publish(**publish, per_million=Decimal(10), valid_from=dear_from)
    yield dear_from
    served.delete()
    family.delete()


def advance(caller: Client, **by: Any) -> datetime:
    answer = caller.request("POST", "/v1/sandbox/clock", by)
    assert answer.status == 200, answer.body
    return datetime.fromisoformat(answer.json["now"])


def estimate(caller: Client, text: str, *, ttl: int) -> dict[str, Any]:
    body = {"model": FAMILY, "messages": [{"role": "system", "content": text}], "ttl": ttl}
    answer = caller.request("POST", "/v1/caching/estimate", body)
    assert answer.status == 200, answer.body
    return dict(answer.json)


def text_of(caller: Client, tokens: int) -> str:
    """A text that the engine counts as so many tokens with its template around it: found by halving."""

    def count(words: int) -> int:
        return int(estimate(caller, "light " * words, ttl=HOUR)["tokens"])

    low, high = 1, tokens
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(middle) <= tokens else (low, middle - 1)
    assert count(low) == tokens
    return "light " * low


def made(caller: Client, text: str, *, tokens: int) -> dict[str, Any]:
    """An active object that lives for one hour."""
    answer = caller.create(text, model=FAMILY, ttl=HOUR)
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


def ask(caller: Client, cache_id: str, times: int) -> tuple[Decimal, Decimal]:
    """(what the calls' own tokens cost, what the tokens that came from the cache would have cost)."""
    own = saved = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(
            pool.map(
                lambda n: caller.ask(cache_id, f"And now, {n}?", model=MODEL, max_tokens=1), range(times)
            )
        )
    for answer in answers:
        assert answer.status == 200, answer.body
        usage = answer.json["usage"]
        own += usage["prompt_tokens"] - usage["cached_tokens"] + usage["completion_tokens"]
        saved += usage["cached_tokens"]
    return own * Decimal("0.00006"), saved * Decimal("0.00006")


@pytest.mark.timeout(900)  # 639 calls, each of 35,000 tokens
def test_an_hour_and_fifteen_hours_of_35_000_tokens(
    prices: datetime, new_caller: Callable[..., Client]
) -> None:
    caller = new_caller(kind="sandbox", tier=TIER, money="1000")
    text = text_of(caller, 35_000)
    assert estimate(caller, text, ttl=HOUR)["storage_per_hour"] == "10.500000000"
    assert advance(caller, to=prices.isoformat()) >= prices
    told = estimate(caller, text, ttl=HOUR)
    assert (told["creation_fee"], told["storage_per_hour"]) == ("0.840000000", "21.000000000")
    assert (told["total"], told["call_fee"]) == ("21.840000000", "0.020000000")
    (on_model,) = told["models"]
    assert on_model["price_uncached"] == "2.100000000"
    assert on_model["break_even_calls_per_hour"] == 11, "10.5"

    active = made(caller, text, tokens=35_000)
    began = activated(caller, active["id"])
    end_at(caller, active["id"], began + HOUR)
    own, saved = ask(caller, active["id"], 100)
    advance(caller, to=began + HOUR - SOON_SECONDS)
    assert caller.get(active["id"]).json["status"] == "active"
    spent = 1000 - caller.balance()["available_balance"] - own
    assert (spent, saved) == (Decimal("23.84"), Decimal("210.00"))
    assert round(100 * (saved - spent) / saved, 2) == Decimal("88.65")

    until = began + 15 * HOUR
    end_at(caller, active["id"], until)
    more_own, more_saved = ask(caller, active["id"], 539)
    advance(caller, to=until)
    assert caller.get(active["id"]).json["status"] == "expired"
    spent = 1000 - caller.balance()["available_balance"] - own - more_own
    assert spent == Decimal("315.84") + Decimal("12.78")
    assert saved + more_saved == Decimal("1341.90")
    assert round(100 * (1 - spent / (saved + more_saved)), 2) == Decimal("75.51")


def test_an_hour_and_one_more_of_10_000_tokens_at_5(
    prices: datetime, new_caller: Callable[..., Client]
) -> None:
    caller = new_caller(kind="sandbox", tier=TIER, money="1000")
    active = made(caller, text_of(caller, 10_000), tokens=10_000)
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
