"""`GET /v1/billing/statements` and `/v1/billing/invoices`: whole months, in three forms that say the same."""

from __future__ import annotations

import csv
import io
import re
from datetime import date, timedelta
from decimal import Decimal
from html.parser import HTMLParser

import pytest

from tests.api import books
from tests.api.transfers import everything

PATH = "/v1/billing/statements"
HELLO = {"role": "user", "content": "Hello."}


@pytest.fixture
def month(instance_database) -> str:
    """The month of UTC+8 that it is."""
    from billing import clock
    from billing.periods import day_at

    return f"{day_at(clock.now()):%Y-%m}"


@pytest.fixture
def busy(caller):
    active = caller.active()
    caller.ask(active["id"])
    caller.chat(HELLO)
    caller.request("DELETE", f"/v1/caching/{active['id']}")
    return caller


class Page(HTMLParser):
    """Tags, and the texts of cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells and data.strip():
            self.cells[-1] += data.strip()


def test_the_months_are_listed_with_what_they_open_and_close_with(busy, month):
    listed = busy.request("GET", PATH).json
    left = 1000 - sum(books.spent(busy).values())
    [told] = listed["data"]
    start = date.fromisoformat(f"{month}-01")
    assert told == {
        "object": "billing.statement.month",
        "month": month,
        "start": start.isoformat(),
        "end": (start + timedelta(days=31)).replace(day=1).isoformat(),
        "currency": "CNY",
        "opening": "0.000000000",
        "closing": f"{left:.9f}",
        "final": False,
        "invoice": None,
    }
    assert listed["has_more"] is False


def test_a_statement_says_what_the_transfers_say(busy, month):
    statement = busy.request("GET", f"{PATH}/{month}").json
    transfers = everything(busy, order="asc")
    assert [(str(e["id"]), e["amount"]) for e in statement["entries"]] == [
        (t["id"], t["amount"]) for t in transfers
    ]
    assert Decimal(statement["spent"]) == sum(books.spent(busy).values())
    balance = busy.request("GET", "/v1/billing/balance").json
    assert statement["closing"] == balance["posted"]
    assert statement["organization"] == busy.organization


def test_the_file_says_what_the_document_says(busy, month):
    document = busy.request("GET", f"{PATH}/{month}").json
    answer = busy.request("GET", f"{PATH}/{month}?format=csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == f'attachment; filename="statement-{month}.csv"'
    assert answer.body.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(answer.body.decode("utf-8-sig"), newline="")))
    assert [(row["amount"], row["balance_after"]) for row in rows] == [
        (entry["amount"], entry["balance_after"]) for entry in document["entries"]
    ]


def test_the_page_can_be_printed_and_loads_nothing(busy, month):
    document = busy.request("GET", f"{PATH}/{month}").json
    answer = busy.request("GET", f"{PATH}/{month}?format=html")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    html = answer.body.decode()
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "form", "base"}
    )
    attributes = {name for _, about in page.tags for name in about}
    assert attributes <= {"lang", "charset", "name", "content", "class"}
    assert "@import" not in html and "url(" not in html
    assert "@media print" in html
    for entry in document["entries"]:
        assert entry["amount"] in page.cells
        assert entry["balance_after"] in page.cells
    assert document["closing"] in page.cells


def test_every_text_on_the_page_is_escaped(instance_database):
    from billing import clock
    from billing.periods import month_of
    from billing.statement_document import MeterSum, Statement
    from cacheplane.api.statements import as_page

    strange = "<script>alert('x')</script>&\""
    at = clock.now()
    statement = Statement(
        organization_id=strange,
        currency="CNY",
        period=month_of(at.date()),
        read_at=at,
        purses=(),
        lines=(),
        waived=(),
        meters=(MeterSum(meter="prompt", model=strange, quantity=1, paid=Decimal(1), waived=Decimal(0)),),
        sums={strange: Decimal(1)},
        spent=Decimal(1),
        invoice=None,
    )
    html = as_page(statement)
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;&quot;") == 4


@pytest.fixture
def old(new_caller):
    """A caller who put money in and spent some of it two months ago, and some last month."""
    from billing import clock, invoicing
    from billing.periods import day_at, month_of
    from tests.domain.billing.conftest import Payer

    now = clock.now()
    this = month_of(day_at(now))
    last = month_of(this.start - timedelta(days=1))
    before = month_of(last.start - timedelta(days=1))
    caller = new_caller(money="0")
    payer = Payer(organization_id=caller.organization, at=before.starts_at + timedelta(days=3))
    payer.recharge("10")
    payer.call(prompt=1234, completion=5)
    payer.at = last.starts_at + timedelta(days=3)
    payer.call(prompt=4321, completion=7)
    invoicing.make(caller.organization, at=now)
    caller.months = [f"{period.start:%Y-%m}" for period in (before, last, this)]
    return caller


def test_each_month_opens_where_the_one_before_closed(old):
    whole = old.request("GET", f"{PATH}?order=asc").json["data"]
    assert [row["month"] for row in whole] == old.months
    assert [row["final"] for row in whole] == [True, True, False]
    for earlier, later in zip(whole, whole[1:], strict=False):
        assert earlier["closing"] == later["opening"]
    newest = old.request("GET", f"{PATH}?limit=1").json
    assert ([row["month"] for row in newest["data"]], newest["has_more"]) == (old.months[:1:-1], True)
    rest = old.request("GET", f"{PATH}?limit=2&after={old.months[2]}").json
    assert ([row["month"] for row in rest["data"]], rest["has_more"]) == (old.months[1::-1], False)


def test_invoices(old):
    listed = old.request("GET", "/v1/billing/invoices").json
    assert [invoice["month"] for invoice in listed["data"]] == old.months[1::-1]
    assert [invoice["number"] for invoice in listed["data"]] == [2, 1]
    for invoice in listed["data"]:
        assert invoice["object"] == "billing.invoice"
        assert re.fullmatch(r"-?[0-9]+\.[0-9]{2}", invoice["amount"])
        statement = old.request("GET", f"{PATH}/{invoice['month']}").json
        assert Decimal(statement["spent"]) == Decimal(invoice["spent"])
        assert statement["invoice"]["number"] == invoice["number"]
    page = old.request("GET", f"/v1/billing/invoices?after={old.months[1]}").json
    assert ([invoice["month"] for invoice in page["data"]], page["has_more"]) == (old.months[:1], False)
    whole = old.request("GET", f"{PATH}?order=asc").json["data"]
    assert [row["invoice"] and row["invoice"]["number"] for row in whole] == [1, 2, None]


def test_an_organization_without_a_finished_month_has_no_invoice(caller):
    assert caller.request("GET", "/v1/billing/invoices").json == {
        "object": "list",
        "data": [],
        "has_more": False,
    }


def test_nobody_sees_somebody_elses(busy, outsider, month):
    statement = outsider.request("GET", f"{PATH}/{month}").json
    assert [entry["kind"] for entry in statement["entries"]] == ["recharge"]
    assert statement["organization"] == outsider.organization
    assert busy.organization not in outsider.request("GET", f"{PATH}/{month}?format=html").body.decode()


@pytest.mark.parametrize("absent", ["1999-01", "9999-12", "0000-01", "2026-13", "2026-1", "x", "2026-01-01"])
def test_a_month_that_is_none_is_not_found(bystander, absent):
    refused = bystander.request("GET", f"{PATH}/{absent}")
    assert (refused.status, refused.error["type"]) == (404, "resource_not_found_error")


@pytest.mark.parametrize(
    ("query", "named"),
    [
        *(("?after=x", "after"), ("?limit=0", "limit"), ("?order=x", "order"), ("?month=2026-01", "month")),
        *(("/{}?format=pdf", "format"), ("/{}?start=2026-01-01", "start")),
    ],
)
def test_each_refusal_names_the_parameter(bystander, month, query, named):
    refused = bystander.request("GET", PATH + query.format(month))
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["message"].startswith(f"Invalid request: {named}: got ")
