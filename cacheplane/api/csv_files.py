"""Tables for spreadsheets: UTF-8 with the mark that they know it by, and no cell that they would run as a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from decimal import Decimal

from django.http import StreamingHttpResponse

from billing import money

BYTE_ORDER_MARK = "\ufeff"
CONTENT_TYPE = "text/csv; charset=utf-8"
STARTS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

Cell = str | int | Decimal | datetime | None


def text_of(cell: Cell) -> str:
    """A number is written as it is, negative or not; a text that would start a formula gets a quote before it."""
    if cell is None:
        return ""
    if isinstance(cell, Decimal):
        return money.text(cell)
    if isinstance(cell, datetime):
        return cell.isoformat()
    if isinstance(cell, int):
        return str(cell)
    return f"'{cell}" if cell.startswith(STARTS_A_FORMULA) else cell


def lines(rows: Iterable[Sequence[Cell]]) -> str:
    written = io.StringIO()
    csv.writer(written).writerows([text_of(cell) for cell in row] for row in rows)
    return written.getvalue()


def streamed(
    columns: Sequence[str], pages: AsyncIterator[Iterable[Sequence[Cell]]], *, filename: str
) -> StreamingHttpResponse:
    """A file to be saved, sent page by page as the reader takes it."""

    async def parts() -> AsyncIterator[bytes]:
        yield (BYTE_ORDER_MARK + lines([columns])).encode()
        async for rows in pages:
            yield lines(rows).encode()

    return StreamingHttpResponse(parts(), content_type=CONTENT_TYPE, headers=as_file(filename))


def as_file(filename: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{filename}"'}
