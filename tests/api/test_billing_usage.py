"""`GET /v1/billing/usage`: sums of what was used and paid."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal
from urllib.parse import urlencode

import pytest

from tests.api import books

PATH = "/v1/billing/usage"
HELLO = {"role": "user", "content": "Hello."}


def usage(caller, **query) -> dict:
    answer = caller.request("GET", f"{PATH}?{urlencode(query)}")
    assert answer.status == 200, answer.body
    return answer.json


@pytest.fixture
def used(caller, prose):
    """A creation, two hits, a plain call on another model, and storage that is closed."""
    active = caller.active(prose(300))
    caller.hits = [caller.ask(active["id"], f"{n}?").json["usage"] for n in range(2)]
    caller.plain = caller.chat(HELLO, model="moonshot-v1-128k").json["usage"]
    caller.request("DELETE", f"/v1/caching/{active['id']}")
    caller.cached = active
    return caller


def test_all_in_one(used):
    told = usage(used)
    assert (told["object"], told["currency"], told["group_by"], told["tz"]) == (
        *("billing.usage", "CNY", []),
        "Asia/Shanghai",
    )
    [whole] = told["data"]
    assert whole == {
        "creation_tokens": used.cached["tokens"],
        "storage_token_minutes": sum(books.counted(used, "storage")),
        "calls": 2,
        "prompt_tokens": sum(u["prompt_tokens"] - u["cached_tokens"] for u in (*used.hits, used.plain)),
        "cached_tokens": sum(u["cached_tokens"] for u in used.hits),
        "completion_tokens": sum(u["completion_tokens"] for u in (*used.hits, used.plain)),
        "amount": f"{sum(books.spent(used).values()):.9f}",
        "reversed": "0.000000000",
        "waived": "0.000000000",
    }
    assert whole["cached_tokens"] > 0


def test_what_was_paid_for_use_is_what_the_transfers_say(used):
    from tests.api.transfers import everything, total

    spent = total([t for t in everything(used) if t["meter"] != "recharge"])
    assert Decimal(usage(used)["data"][0]["amount"]) == -spent


def test_by_meter(used):
    told = {(row["meter"], row["kind"]): row for row in usage(used, group_by="meter")["data"]}
    assert set(told) == {
        *(("creation", None), ("storage", None), ("call", None)),
        *(("tokens", "prompt"), ("tokens", "completion")),
    }
    for (meter, kind), row in told.items():
        name = kind or meter
        assert row["quantity"] == sum(books.counted(used, name))
        assert Decimal(row["amount"]) == books.spent(used)[name]


def test_by_several(used):
    rows = usage(used, group_by="model,cache,key,day")["data"]
    today = datetime.now(timezone(timedelta(hours=8))).date()
    told = {(row["model"], row["cache"]): row for row in rows}
    assert set(told) >= {
        ("moonshot-v1", used.cached["id"]),
        ("moonshot-v1-8k", used.cached["id"]),
        ("moonshot-v1-128k", None),
    }
    plain = told["moonshot-v1-128k", None]
    assert plain["prompt_tokens"] == used.plain["prompt_tokens"]
    assert plain["key"].startswith("ak-")
    assert all(abs((today - datetime.fromisoformat(row["day"]).date()).days) <= 1 for row in rows)
    assert sum(Decimal(row["amount"]) for row in rows) == sum(books.spent(used).values())


def test_a_span(used):
    told = usage(used, start="2020-01-01", end="2020-02-01")
    assert (told["start"], told["end"]) == ("2019-12-31T16:00:00+00:00", "2020-01-31T16:00:00+00:00")
    assert told["data"][0]["amount"] == "0.000000000"
    assert usage(used, start="2020-01-01", end="2020-02-01", group_by="day")["data"] == []
    month = usage(used)
    started, ended = (datetime.fromisoformat(month[name]) for name in ("start", "end"))
    assert ended - started == timedelta(days=30)


def test_nobody_sees_somebody_elses(used, outsider):
    assert usage(outsider, group_by="cache,key")["data"] == []


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("group_by=week", "group_by"),
        ("group_by=day,week", "group_by"),
        ("start=x", "start"),
        ("end=x", "end"),
        ("start=2020-01-01&end=2026-01-01", "start"),
        ("start=2026-01-02&end=2026-01-01", "start"),
        ("tz=+08:00", "tz"),
        ("from=2026-01-01", "from"),
    ],
)
def test_each_refusal_names_the_parameter(bystander, query, named):
    refused = bystander.request("GET", f"{PATH}?{query}")
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith(f"Invalid request: {named}: got ")
    assert " takes " in refused.error["message"]
