"""`/v1/billing/statements` and `/v1/billing/invoices`: whole months of UTC+8, to be kept, printed and checked."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

from django.http import HttpResponse
from django.template.loader import render_to_string
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing import clock, money, statement_months, statements
from billing.models import Invoice
from billing.periods import Period, month_of
from billing.statement_document import Statement
from billing.statement_months import Month
from cacheplane.api import csv_files, openapi
from cacheplane.api.authentication import caller_of
from cacheplane.api.billing import AMOUNT, INSTANT
from cacheplane.api.pagination import Window, require_known, window_from
from cacheplane.api.transfers import format_from
from cacheplane.errors import InvalidRequest, NotFound

JSON, CSV, HTML = "json", "csv", "html"
MONTH = re.compile(r"(19[7-9][0-9]|[2-8][0-9]{3})-(0[1-9]|1[0-2])")
PRINTED_LINES_MAX = 2_000
CONTENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""A page to print: it loads nothing, runs nothing, and stands in no other page."""

_MONTH = {"type": "string", "pattern": f"^{MONTH.pattern}$", "examples": ["2026-11"]}
_DAY = {"type": "string", "format": "date"}
INVOICE: dict[str, Any] = {
    "type": "object",
    "required": ["object", "month", "number", "currency", "spent", "spent_to_date", "amount", "made_at"],
    "properties": {
        "object": {"type": "string", "enum": ["billing.invoice"]},
        "month": _MONTH,
        "number": {
            "type": "integer",
            "description": "counts the organization's invoices from 1, without a gap",
        },
        "currency": {"type": "string"},
        "spent": AMOUNT | {"description": "exact, since the invoice before"},
        "spent_to_date": AMOUNT | {"description": "exact, since the first entry"},
        "amount": {
            "type": "string",
            "description": "to fen: round(spent_to_date) less the same of the invoice before",
        },
        "made_at": INSTANT,
    },
    "additionalProperties": False,
}
MONTH_LISTED: dict[str, Any] = {
    "type": "object",
    "required": [
        *("object", "month", "start", "end", "currency", "opening", "closing", "final", "invoice"),
    ],
    "properties": {
        "object": {"type": "string", "enum": ["billing.statement.month"]},
        "month": _MONTH,
        "start": _DAY,
        "end": _DAY | {"description": "not included"},
        "currency": {"type": "string"},
        "opening": AMOUNT,
        "closing": AMOUNT,
        "final": {"type": "boolean", "description": "false: the month is not over"},
        "invoice": {"anyOf": [INVOICE, {"type": "null"}]},
    },
    "additionalProperties": False,
}
STATEMENT: dict[str, Any] = {
    "type": "object",
    "description": "all entries of the month, with what it takes to recompute it; read by `verify_statement`",
    "required": [
        "object",
        "organization",
        "currency",
        "start",
        "end",
        "final",
        "opening",
        "closing",
        "spent",
    ],
    "properties": {
        "object": {"type": "string", "enum": ["billing.statement"]},
        "organization": {"type": "string"},
        "currency": {"type": "string"},
        "start": _DAY,
        "end": _DAY,
        "final": {"type": "boolean"},
        "opening": AMOUNT,
        "closing": AMOUNT,
        "spent": AMOUNT,
        "sums": {"type": "object", "additionalProperties": AMOUNT},
        "meters": {"type": "array", "items": {"type": "object"}},
        "purses": {"type": "array", "items": {"type": "object"}},
        "entries": {"type": "array", "items": {"type": "object"}},
        "waived": {"type": "array", "items": {"type": "object"}},
        "invoice": {"type": ["object", "null"]},
    },
}
CURSOR = [
    openapi.LIMIT,
    OpenApiParameter("order", str, enum=["asc", "desc"], description="default desc"),
    OpenApiParameter(
        "after",
        {"type": "string", "pattern": f"^({MONTH.pattern})?$"},
        description="exclusive cursor: a month of the list",
    ),
]


def invoice_as_json(invoice: Invoice) -> dict[str, Any]:
    return {
        "object": "billing.invoice",
        "month": f"{invoice.month:%Y-%m}",
        "number": invoice.number,
        "currency": invoice.currency,
        "spent": money.text(invoice.spent),
        "spent_to_date": money.text(invoice.spent_to_date),
        "amount": format(invoice.amount, ".2f"),
        "made_at": invoice.made_at.isoformat(),
    }


def month_as_json(month: Month) -> dict[str, Any]:
    return {
        "object": "billing.statement.month",
        "month": f"{month.period.start:%Y-%m}",
        "start": month.period.start.isoformat(),
        "end": month.period.end.isoformat(),
        "currency": month.currency,
        "opening": money.text(month.opening),
        "closing": money.text(month.closing),
        "final": month.is_final,
        "invoice": invoice_as_json(month.invoice) if month.invoice else None,
    }


def _month_from(text: str) -> date | None:
    found = MONTH.fullmatch(text)
    return date(int(found[1]), int(found[2]), 1) if found else None


def _cursor_of(window: Window) -> date | None:
    if window.after is None:
        return None
    month = _month_from(window.after)
    if month is None:
        raise InvalidRequest(
            f"Invalid request: after: got {window.after[:40]!r}, takes a month such as 2026-11"
        )
    return month


class BillingStatements(APIView):
    @extend_schema(
        operation_id="list_statements",
        summary="The months of which there are statements, with what they open and close with",
        parameters=CURSOR,
        responses=openapi.answers(openapi.page_of(MONTH_LISTED), 400, 401, 403),
    )
    def get(self, request: Request) -> Response:
        require_known(request.query_params, CURSOR)
        window = window_from(request.query_params, order_default="desc")
        organization_id, after = caller_of(request).organization_id, _cursor_of(window)
        at = clock.now_of(organization_id)
        periods = statement_months.periods_of(organization_id, at=at)
        if window.newest_first:
            periods = [p for p in reversed(periods) if after is None or p.start < after]
        else:
            periods = [p for p in periods if after is None or p.start > after]
        found = statement_months.opened_and_closed(organization_id, periods[: window.limit], at=at)
        data = [month_as_json(month) for month in found]
        return Response({"object": "list", "data": data, "has_more": len(periods) > window.limit})


PARAMETERS = [
    OpenApiParameter("month", _MONTH, OpenApiParameter.PATH),
    OpenApiParameter("format", str, enum=[JSON, CSV, HTML]),
]


class BillingStatement(APIView):
    @extend_schema(
        operation_id="get_statement",
        summary="One month, entry by entry: as JSON to be checked, for a spreadsheet, or to be printed",
        parameters=PARAMETERS,
        responses=openapi.answers(STATEMENT, 400, 401, 403, 404)
        | {(200, "text/csv"): {"type": "string"}, (200, "text/html"): {"type": "string"}},
    )
    def get(self, request: Request, month: str) -> Response | HttpResponse:
        require_known(request.query_params, PARAMETERS)
        form = format_from(request.query_params, JSON, CSV, HTML)
        organization_id = caller_of(request).organization_id
        period = _required(organization_id, month)
        statement = statements.statement(organization_id, start=period.start, end=period.end)
        if form == CSV:
            headers = csv_files.as_file(f"statement-{month}.csv")
            return HttpResponse(statement.as_csv(), content_type=csv_files.CONTENT_TYPE, headers=headers)
        if form == HTML:
            return HttpResponse(as_page(statement), headers={"Content-Security-Policy": CONTENT_POLICY})
        return Response(statement.as_document())


def _required(organization_id: str, month: str) -> Period:
    """Raises NotFound for what is no month, and for one in which there was nothing yet, or nothing is yet."""
    start = _month_from(month)
    period = None if start is None else month_of(start)
    if period is None or period not in statement_months.periods_of(
        organization_id, at=clock.now_of(organization_id)
    ):
        raise NotFound(f"Not found the statement {month[:40]}")
    return period


def as_page(statement: Statement) -> str:
    """HTML without scripts and without anything from elsewhere; every text in it is escaped by the template."""
    document = statement.as_document()
    entries = document.pop("entries")
    kinds = {purse["id"]: purse["kind"] for purse in document["purses"]}
    return render_to_string(
        "cacheplane/statement.html",
        {
            "statement": document,
            "month": f"{statement.period.start:%Y-%m}",
            "lines": len(entries),
            "entries": [entry | {"purse_kind": kinds[entry["purse"]]} for entry in entries]
            if len(entries) <= PRINTED_LINES_MAX
            else [],
        },
    )


class BillingInvoices(APIView):
    @extend_schema(
        operation_id="list_invoices",
        summary="The organization's invoices: what it spent in each month, to fen",
        parameters=CURSOR,
        responses=openapi.answers(openapi.page_of(INVOICE), 400, 401, 403),
    )
    def get(self, request: Request) -> Response:
        require_known(request.query_params, CURSOR)
        window = window_from(request.query_params, order_default="desc")
        found = statement_months.invoices(
            caller_of(request).organization_id,
            limit=window.limit + 1,
            newest_first=window.newest_first,
            after=_cursor_of(window),
        )
        data = [invoice_as_json(invoice) for invoice in found[: window.limit]]
        return Response({"object": "list", "data": data, "has_more": len(found) > window.limit})
