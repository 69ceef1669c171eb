"""An organization's transfers as its caller reads them."""

from __future__ import annotations

import csv
import io
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

PATH = "/v1/billing/transfers"


def page(caller, **query: Any) -> dict[str, Any]:
    answer = caller.request("GET", f"{PATH}?{urlencode(query)}")
    assert answer.status == 200, answer.body
    return answer.json


def everything(caller, *, limit: int = 100, **query: Any) -> list[dict[str, Any]]:
    """All pages, one after the other."""
    found: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        got = page(caller, limit=limit, **query, **after)
        found += got["data"]
        if not got["has_more"]:
            return found
        assert len(got["data"]) == limit
        after = {"after": got["data"][-1]["id"]}


def file(caller, **query: Any) -> list[dict[str, str]]:
    """The same as a spreadsheet reads it."""
    answer = caller.request("GET", f"{PATH}?{urlencode(query | {'format': 'csv'})}")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/csv; charset=utf-8"), answer.body
    assert answer.headers["content-disposition"] == 'attachment; filename="transfers.csv"'
    assert answer.body.startswith(b"\xef\xbb\xbf")
    return list(csv.DictReader(io.StringIO(answer.body.decode("utf-8-sig"), newline="")))


def total(transfers: list[dict[str, Any]]) -> Decimal:
    return sum((Decimal(each["amount"]) for each in transfers), Decimal(0))


def recharged(caller, amount: str, *, purse: str = "cash", days: int | None = None) -> datetime | None:
    """Put money in; when it expires."""
    from django.db import transaction

    from billing import charging, clock

    at = clock.now()
    expires_at = None if days is None else at + timedelta(days=days)
    with transaction.atomic():
        charging.recharge(
            organization_id=caller.organization,
            amount=Decimal(amount),
            purse=purse,
            reason="test",
            operator="test",
            idempotency_key=f"{caller.organization}:{purse}:{at.isoformat()}",
            at=at,
            expires_at=expires_at,
        )
    return expires_at
