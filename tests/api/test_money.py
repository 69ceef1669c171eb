"""What a caller pays, worked out from the price list to the last place."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from decimal import ROUND_DOWN, Decimal

from tests.api import books
from tests.api.streams import Call

HELLO = {"role": "user", "content": "Hello."}


def shown(amount: Decimal) -> Decimal:
    return amount.quantize(Decimal("0.00001"), rounding=ROUND_DOWN)


def test_a_creation_a_hit_and_a_deletion_add_up(caller, prose):
    from billing.models import StorageSegment

    active = caller.active(prose(300))
    answer = caller.ask(active["id"], max_tokens=8)
    assert caller.request("DELETE", f"/v1/caching/{active['id']}").status == 200
    tokens, usage = active["tokens"], answer.json["usage"]
    segment = StorageSegment.objects.get(subject=active["id"])
    minutes = books.started_minutes(from_=segment.started_at, to=segment.closed_at)
    rest = usage["prompt_tokens"] - tokens
    assert books.spent(caller) == {
        "creation": tokens * Decimal("0.000024"),
        "storage": tokens * minutes * Decimal("0.000005"),
        "call": Decimal("0.02"),
        "prompt": rest * Decimal("0.000012"),
        "completion": usage["completion_tokens"] * Decimal("0.000012"),
    }
    left = 1000 - sum(books.spent(caller).values())
    assert books.purse(caller) == (left, 0)
    assert caller.balance() == {
        "available_balance": shown(left),
        "cash_balance": shown(left),
        "voucher_balance": 0,
    }


def test_an_hour_of_calls_is_the_sum_of_its_calls(caller):
    active = caller.active()
    answers = [caller.ask(active["id"], f"Question {n}?") for n in range(10)]
    price = sum(books.call_price(answer.json["usage"], is_hit=True) for answer in answers)
    charged = books.spent(caller)
    assert charged["call"] + charged["prompt"] + charged["completion"] == price
    assert charged["call"] == Decimal("0.2")


def test_vouchers_pay_before_cash(new_caller):
    from django.db import transaction

    from billing import charging, clock

    caller = new_caller(money="1", purse="voucher")
    with transaction.atomic():
        charging.recharge(
            organization_id=caller.organization,
            amount=Decimal(2),
            purse="cash",
            reason="test",
            operator="test",
            idempotency_key=f"second:{caller.organization}",
            at=clock.now(),
        )
    usage = caller.chat(HELLO).json["usage"]
    price = books.call_price(usage, is_hit=False)
    assert caller.balance() == {
        "available_balance": shown(3 - price),
        "cash_balance": 2,
        "voucher_balance": shown(1 - price),
    }


def test_what_a_call_may_cost_next_is_held_while_it_runs(caller):
    model = "moonshot-v1-128k"
    with Call(caller, HELLO, model=model, stream=True, max_tokens=10_000) as call:
        assert call.answer.status == 200
        _, held = books.purse(caller)
        tokens = held / books.TOKENS[model]
        assert 512 < tokens < 512 + 100, "the prompt, and the beginning of the answer"
        available = caller.balance()["available_balance"]
        assert available == shown(1000 - held)
        assert caller.balance()["cash_balance"] == 1000


def test_storage_that_is_owed_is_not_available(caller, prose):
    active = caller.active(prose(300))
    paid = books.spent(caller)["creation"]
    balance = caller.balance()
    assert balance["cash_balance"] == shown(1000 - paid)
    owed = 1000 - paid - balance["available_balance"]
    minute = active["tokens"] * books.STORAGE
    assert owed // minute in (1, 2), "a started minute is owed, and posted later"


def test_the_balance_is_cut_and_not_rounded(new_caller):
    caller = new_caller(money="0.123459999")
    answer = caller.request("GET", "/v1/users/me/balance")
    assert answer.json == {
        "code": 0,
        "data": {"available_balance": 0.12345, "voucher_balance": 0.0, "cash_balance": 0.12345},
        "scode": "0x0",
        "status": True,
    }
    assert b'"available_balance":0.12345,' in answer.body.replace(b" ", b"")


def test_a_call_that_cannot_be_paid_is_refused_and_holds_nothing(new_caller):
    caller = new_caller(money="0.00001")
    refused = caller.chat(HELLO)
    assert (refused.status, refused.error["type"]) == (429, "exceeded_current_quota_error")
    assert refused.error["message"].startswith(f"Your account {caller.organization}<ak-")
    assert refused.error["message"].endswith("is suspended due to insufficient balance, please recharge")
    assert "retry-after" in refused.headers
    assert books.purse(caller) == (Decimal("0.00001"), 0)


def test_forty_callers_with_money_for_seven_make_seven_calls(caller, new_caller):
    told = caller.chat(HELLO, max_tokens=2).json
    assert told["choices"][0]["finish_reason"] == "length", "each call uses all that it holds"
    price = books.call_price(told["usage"], is_hit=False)
    poor = new_caller(money=str(price * 7 + price / 2))
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: poor.chat(HELLO, max_tokens=2), range(40)))
    assert sorted(answer.status for answer in answers) == [200] * 7 + [429] * 33
    assert {a.error["type"] for a in answers if a.status == 429} == {"exceeded_current_quota_error"}
    assert books.purse(poor) == (price / 2, 0)
    assert poor.balance()["available_balance"] == shown(price / 2)


def test_forty_hits_at_once_are_paid_one_by_one(caller):
    active = caller.active()
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda n: caller.ask(active["id"], f"{n}?", max_tokens=1), range(40)))
    served = [answer for answer in answers if answer.status == 200]
    refused = {answer.error["type"] for answer in answers if answer.status != 200}
    assert refused <= {"engine_overloaded_error"}
    charged = books.spent(caller)
    price = sum(books.call_price(answer.json["usage"], is_hit=True) for answer in served)
    assert charged["call"] + charged["prompt"] + charged["completion"] == price
    assert charged["call"] == len(served) * books.CALL


def test_nobody_pays_for_somebody_else(caller, outsider):
    caller.ask(caller.active()["id"])
    assert books.purse(outsider) == (1000, 0)
    assert outsider.balance()["available_balance"] == 1000
