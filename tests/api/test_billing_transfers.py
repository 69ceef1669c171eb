"""`GET /v1/billing/transfers`: every line that moved the organization's money, and no other."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from decimal import Decimal
from urllib.parse import quote

import pytest

from tests.api import books
from tests.api.transfers import PATH, everything, file, page, recharged, total

ABSENT = "999999999999999999"
HELLO = {"role": "user", "content": "Hello."}


@pytest.fixture
def busy(new_caller, prose):
    """Money from two purses for an object, a hit, a plain call and a correction; the object is gone."""
    from django.db import transaction

    from billing import charging, clock
    from billing.models import LedgerEntry

    caller = new_caller()
    recharged(caller, "0.001", purse="voucher", days=1)
    active = caller.active(prose(300))
    caller.hit = caller.ask(active["id"], max_tokens=2)
    caller.cache_id = active["id"]
    caller.chat(HELLO)
    caller.request("DELETE", f"/v1/caching/{active['id']}")
    fee = LedgerEntry.objects.get(organization_id=caller.organization, kind="call")
    with transaction.atomic():
        charging.correct(
            organization_id=caller.organization,
            entry_id=fee.id,
            reason="test",
            operator="test",
            at=clock.now(),
        )
    return caller


def test_all_transfers_together_are_the_balance(busy):
    transfers = everything(busy, limit=3)
    balance = busy.request("GET", "/v1/billing/balance").json
    assert total(transfers) == Decimal(balance["posted"])
    for purse in ("cash", "voucher"):
        assert total([t for t in transfers if t["purse"] == purse]) == Decimal(balance[purse])
    assert {t["meter"] for t in transfers} == {
        *("recharge", "creation", "call", "tokens", "storage", "reversal")
    }


def test_each_line_says_what_it_was_for(busy):
    lines = {
        (t["meter"], t["kind"]): t for t in everything(busy, request_id=busy.hit.headers["msh-request-id"])
    }
    usage = busy.hit.json["usage"]
    rest = usage["prompt_tokens"] - usage["cached_tokens"]
    fee = lines["call", None]
    assert fee == {
        "id": fee["id"],
        "object": "billing.transfer",
        "time": fee["time"],
        "meter": "call",
        "kind": None,
        "subject": busy.cache_id,
        "model": "moonshot-v1",
        "api_key": fee["api_key"],
        "quantity": 1,
        "unit": "call",
        "unit_price": "0.020000000",
        "amount": "-0.020000000",
        "waived": "0.000000000",
        "balance_after": fee["balance_after"],
        "purse": "cash",
        "price_id": fee["price_id"],
        "request_id": busy.hit.headers["msh-request-id"],
        "reverses": None,
    }
    assert fee["api_key"].startswith("ak-")
    prompt = lines["tokens", "prompt"]
    assert (prompt["quantity"], prompt["model"]) == (rest, "moonshot-v1-8k")
    assert Decimal(prompt["amount"]) == -rest * books.TOKENS["moonshot-v1-8k"]
    assert datetime.fromisoformat(fee["time"]).utcoffset() == timedelta(0)
    [reversal] = everything(busy, meter="reversal")
    assert (reversal["reverses"], reversal["amount"], reversal["subject"]) == (
        *(fee["id"], "0.020000000"),
        busy.cache_id,
    )


def test_the_newest_comes_first_unless_it_is_said_otherwise(busy):
    times = [t["time"] for t in everything(busy)]
    assert times == sorted(times, reverse=True)
    assert everything(busy, order="asc", limit=2) == everything(busy)[::-1]
    newest = page(busy, limit=1)["data"][0]
    assert newest["meter"] == "reversal"
    ids = [t["id"] for t in everything(busy)]
    assert [t["id"] for t in everything(busy, after=ids[1], before=ids[4])] == ids[2:4]


def test_pages_are_whole_while_calls_are_written(caller):
    """Who reads forward sees every row once, those included that are written meanwhile."""
    caller.chat(HELLO, max_tokens=1)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            caller.chat(HELLO, max_tokens=1)

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    try:
        backward = everything(caller, limit=2)
        seen, after = [], {}
        while len(seen) < 60:
            got = page(caller, limit=7, order="asc", **after)["data"]
            seen += got
            after = {"after": seen[-1]["id"]}
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    seen += everything(caller, order="asc", after=seen[-1]["id"])
    whole = everything(caller, order="asc")
    assert seen == whole
    assert len({t["id"] for t in whole}) == len(whole)
    first = [t["id"] for t in whole].index(backward[0]["id"])
    assert backward == whole[first::-1], "who reads backward sees what there was as he began"


def test_the_file_says_what_the_list_says(busy):
    listed = everything(busy)
    shown = [{name: "" if value is None else str(value) for name, value in t.items()} for t in listed]
    assert file(busy) == shown
    assert file(busy, meter="tokens", order="asc") == [t for t in shown[::-1] if t["meter"] == "tokens"]
    assert file(busy, after=listed[2]["id"], limit=1) == shown[3:], "a file has no pages"
    assert file(busy, subject="cache-none") == []


def test_a_file_is_sent_in_parts_and_whole(caller):
    """More rows than one query reads."""
    from billing import history
    from tests.api.ledger_rows import fill

    fill(caller, rows=history.PAGE_ROWS * 2 + 500)
    rows = file(caller, order="asc")
    assert len(rows) == history.PAGE_ROWS * 2 + 501
    assert [int(row["id"]) for row in rows] == sorted({int(row["id"]) for row in rows})
    assert total(rows) == Decimal(caller.request("GET", "/v1/billing/balance").json["posted"])


@pytest.mark.parametrize(
    ("query", "meters"),
    [
        ("meter=creation", {"creation"}),
        ("meter=prompt", {"tokens"}),
        ("model=moonshot-v1-8k", {"tokens"}),
        ("model=moonshot-v1-8", set()),
        ("request_id=req-none", set()),
        ("api_key=ak-none", set()),
        ("start=0&end=2000-01-01", set()),
        ("start=2100-01-01T00:00:00Z", set()),
        ("end=1", set()),
    ],
)
def test_filters(busy, query, meters):
    answer = busy.request("GET", f"{PATH}?{query}")
    assert answer.status == 200, answer.body
    assert {t["meter"] for t in answer.json["data"]} == meters


def test_a_span_may_be_said_in_several_ways(busy):
    transfers = everything(busy, order="asc")
    moment = datetime.fromisoformat(transfers[3]["time"])
    expected = [t for t in transfers if t["time"] >= transfers[3]["time"]]
    for way in (
        moment.isoformat(),
        moment.isoformat().replace("+00:00", "Z"),
        moment.astimezone(datetime.fromisoformat("2026-01-01T00:00:00+08:00").tzinfo).isoformat(),
    ):
        assert everything(busy, order="asc", start=way) == expected
    plus = moment.isoformat()
    assert busy.request("GET", f"{PATH}?start={plus}&order=asc&limit=100").json["data"] == expected, (
        "not encoded"
    )
    assert everything(busy, order="asc", start=int(moment.timestamp())) != []
    assert everything(busy, order="asc", end=moment.isoformat()) == transfers[: -len(expected)]
    local = moment.astimezone(datetime.fromisoformat("2026-01-01T00:00:00+08:00").tzinfo).replace(tzinfo=None)
    assert everything(busy, order="asc", start=local.isoformat()) == expected, "UTC+8 unless it is said"
    utc = moment.replace(tzinfo=None).isoformat()
    assert everything(busy, order="asc", start=utc, tz="UTC") == expected


# --- Who may see what, and what is taken -----------------------------------------------------------------------


def test_nobody_sees_somebody_elses(busy, outsider):
    [own] = everything(outsider)
    assert (own["meter"], own["amount"]) == ("recharge", "1000.000000000")
    for query in (f"subject={busy.cache_id}", f"request_id={busy.hit.headers['msh-request-id']}"):
        assert outsider.request("GET", f"{PATH}?{query}").json["data"] == []
    assert len(file(outsider)) == 1


@pytest.mark.parametrize("cursor", ["after", "before"])
def test_somebody_elses_cursor_answers_exactly_like_an_absent_one(busy, outsider, cursor):
    theirs = everything(busy)[0]["id"]
    foreign = outsider.request("GET", f"{PATH}?{cursor}={theirs}")
    absent = outsider.request("GET", f"{PATH}?{cursor}={ABSENT}")
    assert (foreign.status, foreign.error["type"]) == (404, "resource_not_found_error")
    assert foreign.body.replace(theirs.encode(), b"ID") == absent.body.replace(ABSENT.encode(), b"ID")


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("limit=101", "limit"),
        ("order=up", "order"),
        ("after=x", "after"),
        ("before=-1", "before"),
        ("after=" + "9" * 19, "after"),
        ("meter=money", "meter"),
        ("subject=" + "x" * 129, "subject"),
        ("model=%C3%BC", "model"),
        ("api_key=a%20b", "api_key"),
        ("request_id=%0A", "request_id"),
        ("start=yesterday", "start"),
        ("start=2026-13-01", "start"),
        ("end=20261101T00", "end"),
        ("end=0001-01-01", "end"),
        ("start=2026-02-01&end=2026-01-01", "start"),
        ("start=5&end=5", "start"),
        ("tz=Mars/Olympus", "tz"),
        ("tz=../etc/passwd", "tz"),
        ("format=xml", "format"),
        ("from=2026-01-01", "from"),
        ("meter=call&meters=storage", "meters"),
        ("%C3%BC%00=", "\u00fc\0"),
    ],
)
def test_each_refusal_names_the_parameter_what_came_and_what_is_taken(bystander, query, named):
    refused = bystander.request("GET", f"{PATH}?{query}")
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    message = refused.error["message"]
    assert message.startswith(f"Invalid request: {named}: got ")
    assert " takes " in message


def test_what_is_taken_for_an_instant_is_said(bystander):
    refused = bystander.request("GET", f"{PATH}?start={quote('1st of May')}")
    assert refused.error["message"] == (
        "Invalid request: start: got '1st of May', takes an ISO 8601 date or time such as 2026-11-01 or "
        "2026-11-01T08:00:00+08:00, or unix seconds"
    )
