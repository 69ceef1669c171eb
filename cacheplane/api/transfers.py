"""`GET /v1/billing/transfers`: what moved the organization's money, line by line, as JSON or for a spreadsheet."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

from django.http import QueryDict, StreamingHttpResponse
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing import history, money
from billing.history import Filter, Transfer, Window
from cacheplane import database
from cacheplane.api import csv_files, openapi, periods
from cacheplane.api.authentication import caller_of
from cacheplane.api.billing import AMOUNT, INSTANT
from cacheplane.api.pagination import require_known, window_from
from cacheplane.api.periods import open_period_from, zone_from
from cacheplane.errors import InvalidRequest, NotFound

CSV_ROWS_MAX = 100_000
CURSOR = re.compile(r"[0-9]{1,18}")
TEXT_CHARS_MAX = 128
TEXT = re.compile(rf"[\x21-\x7e]{{0,{TEXT_CHARS_MAX}}}")
JSON, CSV = "json", "csv"

COLUMNS = [
    *(
        "id",
        "object",
        "time",
        "meter",
        "kind",
        "subject",
        "model",
        "api_key",
        "quantity",
        "unit",
        "unit_price",
    ),
    *("amount", "waived", "balance_after", "purse", "price_id", "request_id", "reverses"),
]
_TEXT = {"type": "string", "pattern": f"^{TEXT.pattern}$"}
TRANSFER: dict[str, Any] = {
    "type": "object",
    "required": COLUMNS,
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string", "enum": ["billing.transfer"]},
        "time": INSTANT,
        "meter": {
            "type": "string",
            "enum": ["creation", "storage", "call", "tokens", "recharge", "reversal", "lapse", "waiver"],
        },
        "kind": {"type": ["string", "null"], "enum": ["prompt", "completion", None]},
        "subject": {"type": "string", "description": "the cache object's id; empty: none"},
        "model": {"type": "string", "description": "what was priced: a model, or a family"},
        "api_key": {"type": "string", "description": "the key's id; empty: none"},
        "quantity": {
            "type": ["integer", "null"],
            "description": "of the whole charge, also where several purses paid it",
        },
        "unit": {"type": ["string", "null"], "enum": ["token", "token_minute", "call", None]},
        "unit_price": {"type": ["string", "null"]},
        "amount": AMOUNT | {"description": "what left the purse is negative; all together are the balance"},
        "waived": AMOUNT | {"description": "used beyond what could be paid, and not charged"},
        "balance_after": {"type": ["string", "null"], "description": "of the purse; null: none was touched"},
        "purse": {"type": ["string", "null"], "enum": ["cash", "voucher", None]},
        "price_id": {"type": ["integer", "null"]},
        "request_id": {"type": "string"},
        "reverses": {"type": ["string", "null"], "description": "the id of the transfer that it undoes"},
    },
    "additionalProperties": False,
}


def as_row(transfer: Transfer) -> dict[str, csv_files.Cell]:
    """One transfer by the names of COLUMNS, for either format."""
    return {
        "id": str(transfer.id),
        "object": "billing.transfer",
        "time": transfer.time,
        "meter": transfer.meter,
        "kind": transfer.kind,
        "subject": transfer.subject,
        "model": transfer.model,
        "api_key": transfer.api_key_id,
        "quantity": transfer.quantity,
        "unit": transfer.unit,
        "unit_price": transfer.unit_price,
        "amount": transfer.amount,
        "waived": transfer.waived,
        "balance_after": transfer.balance_after,
        "purse": transfer.purse,
        "price_id": transfer.price_id,
        "request_id": transfer.request_id,
        "reverses": str(transfer.reverses) if transfer.reverses is not None else None,
    }


def as_json(transfer: Transfer) -> dict[str, Any]:
    amounts = ("unit_price", "amount", "waived", "balance_after")
    told: dict[str, Any] = as_row(transfer) | {"time": transfer.time.isoformat()}
    return told | {name: money.text(told[name]) for name in amounts if told[name] is not None}


def filter_from(query: QueryDict) -> Filter:
    """Which transfers are asked for. Raises InvalidRequest naming the parameter."""
    meter = query.get("meter", "")
    if meter and meter not in history.METERS:
        raise InvalidRequest(
            f"Invalid request: meter: got {meter[:40]!r}, takes one of {', '.join(history.METERS)}"
        )
    start, end = open_period_from(query, tz=zone_from(query))
    return Filter(
        meter=meter,
        subject=_text_from(query, "subject"),
        model=_text_from(query, "model"),
        api_key_id=_text_from(query, "api_key"),
        request_id=_text_from(query, "request_id"),
        start=start,
        end=end,
    )


def _text_from(query: QueryDict, name: str) -> str:
    raw = query.get(name, "")
    if not TEXT.fullmatch(raw):
        raise InvalidRequest(
            f"Invalid request: {name}: got {raw[:40]!r}, takes at most {TEXT_CHARS_MAX} visible ASCII characters"
        )
    return raw


def format_from(query: QueryDict, *taken: str) -> str:
    """The first one taken is the default. Raises InvalidRequest."""
    name = query.get("format", "") or taken[0]
    if name not in taken:
        raise InvalidRequest(f"Invalid request: format: got {name[:40]!r}, takes {' or '.join(taken)}")
    return name


def _cursor_from(query: QueryDict, name: str, *, organization_id: str) -> int | None:
    raw = query.get(name, "")
    if not raw:
        return None
    if not CURSOR.fullmatch(raw):
        raise InvalidRequest(f"Invalid request: {name}: got {raw[:40]!r}, takes the id of a transfer")
    if not history.is_of(organization_id, int(raw)):
        raise NotFound(f"Not found the transfer {raw}")
    return int(raw)


PARAMETERS = [
    *openapi.page_parameters(cursor="a transfer's id", pattern=f"^({CURSOR.pattern})?$"),
    OpenApiParameter("meter", str, enum=list(history.METERS)),
    OpenApiParameter("subject", _TEXT, description="a cache object's id"),
    OpenApiParameter("model", _TEXT),
    OpenApiParameter("api_key", _TEXT, description="a key's id"),
    OpenApiParameter("request_id", _TEXT),
    *periods.SPAN,
    OpenApiParameter("format", str, enum=[JSON, CSV]),
]


class BillingTransfers(APIView):
    @extend_schema(
        operation_id="list_transfers",
        summary="What moved the organization's money, line by line",
        description=f"format=csv: a file of all that the filter takes, of {CSV_ROWS_MAX} rows at most; limit is "
        "for JSON alone.",
        parameters=PARAMETERS,
        responses=openapi.answers(openapi.page_of(TRANSFER), 400, 401, 403, 404)
        | {(200, "text/csv"): {"type": "string"}},
    )
    def get(self, request: Request) -> Response | StreamingHttpResponse:
        query, organization_id = request.query_params, caller_of(request).organization_id
        require_known(query, PARAMETERS)
        asked = window_from(query, order_default="desc")
        wanted = filter_from(query)
        window = Window(
            limit=asked.limit,
            newest_first=asked.newest_first,
            after=_cursor_from(query, "after", organization_id=organization_id),
            before=_cursor_from(query, "before", organization_id=organization_id),
        )
        if format_from(query, JSON, CSV) == CSV:
            return _as_file(organization_id, wanted, window)
        more = Window(
            limit=window.limit + 1,
            newest_first=window.newest_first,
            after=window.after,
            before=window.before,
        )
        found = history.page(organization_id, wanted, more)
        data = [as_json(transfer) for transfer in found[: window.limit]]
        return Response({"object": "list", "data": data, "has_more": len(found) > window.limit})


def _as_file(organization_id: str, wanted: Filter, window: Window) -> StreamingHttpResponse:
    """All of the window at once, unless that is too much: a file is whole, or it is refused."""
    if history.count_up_to(organization_id, wanted, window, limit=CSV_ROWS_MAX + 1) > CSV_ROWS_MAX:
        raise InvalidRequest(
            f"Invalid request: format: got csv of more than {CSV_ROWS_MAX} transfers, takes a span that has fewer: "
            "say start and end"
        )

    async def pages() -> AsyncIterator[list[list[csv_files.Cell]]]:
        # A thread is held for a page at a time, not for as long as the reader takes.
        found = history.pages(organization_id, wanted, window, limit=CSV_ROWS_MAX)
        while page := await database.run(next, found, None):
            yield [list(as_row(transfer).values()) for transfer in page]

    return csv_files.streamed(COLUMNS, pages(), filename="transfers.csv")
