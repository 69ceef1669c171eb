"""`/v1/billing/balance` and `/v1/billing/prices`: exact to the last place."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

from tests.api import books
from tests.api.transfers import recharged


def balance(caller) -> dict:
    answer = caller.request("GET", "/v1/billing/balance")
    assert answer.status == 200, answer.body
    return answer.json


def test_a_new_organization_has_what_it_was_given(caller):
    assert balance(caller) == {
        "object": "billing.balance",
        "currency": "CNY",
        "available": "1000.000000000",
        "cash": "1000.000000000",
        "voucher": "0.000000000",
        "held": "0.000000000",
        "owed": "0.000000000",
        "posted": "1000.000000000",
        "exhaust_at": None,
        "runway_seconds": None,
        "vouchers": [],
    }


def test_what_is_stored_is_owed_and_burns(new_caller, prose):
    caller = new_caller(money="10")
    active = caller.active(prose(300), ttl=3000)
    told = balance(caller)
    minute = active["tokens"] * books.STORAGE
    available, owed = Decimal(told["available"]), Decimal(told["owed"])
    assert owed / minute in (1, 2)
    assert available == Decimal(told["posted"]) - Decimal(told["held"]) - owed
    assert told["runway_seconds"] == available * 60 // minute
    caller.request("DELETE", f"/v1/caching/{active['id']}")
    told = balance(caller)
    assert (told["runway_seconds"], told["owed"]) == (None, "0.000000000")
    assert Decimal(told["available"]) == Decimal(told["posted"]) == 10 - sum(books.spent(caller).values())


def test_the_end_of_the_money_is_told(new_caller, prose):
    caller = new_caller(money="0.05")
    caller.active(prose(300), ttl=86_000)
    told = balance(caller)
    left = datetime.fromisoformat(told["exhaust_at"]) - datetime.now().astimezone()
    assert timedelta(0) < left < timedelta(hours=1)


def test_vouchers_are_told_one_by_one(new_caller):
    caller = new_caller(money="1", purse="voucher")
    ends = recharged(caller, "2", purse="voucher", days=3)
    told = balance(caller)
    assert told["vouchers"] == [
        {"amount": "2.000000000", "expires_at": ends.isoformat()},
        {"amount": "1.000000000", "expires_at": None},
    ]
    assert (told["voucher"], told["cash"]) == ("3.000000000", "0.000000000")


def test_the_contracts_balance_says_the_same_in_numbers(caller):
    caller.chat({"role": "user", "content": "Hello."})
    exact = Decimal(balance(caller)["available"])
    assert caller.balance()["available_balance"] == exact.quantize(Decimal("0.00001"), rounding="ROUND_DOWN")


def test_all_prices_in_force_are_listed(bystander):
    answer = bystander.request("GET", "/v1/billing/prices").json
    assert answer["object"] == "list"
    in_force = {
        (p["meter"], p["kind"], p["model"]): p["unit_price"]
        for p in answer["data"]
        if p["in_force"] and p["model"].startswith("moonshot-v1")
    }
    assert in_force == {
        ("creation", None, "moonshot-v1"): "0.000024000",
        ("storage", None, "moonshot-v1"): "0.000005000",
        ("call", None, "moonshot-v1"): "0.020000000",
        **{
            ("tokens", kind, model): f"{price:.9f}"
            for model, price in books.TOKENS.items()
            for kind in ("prompt", "completion")
        },
    }
    assert {p["currency"] for p in answer["data"]} == {"CNY"}
    assert all(
        p["in_force"] or p["valid_from"] > datetime.now().astimezone().isoformat() for p in answer["data"]
    )
