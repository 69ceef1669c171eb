"""Every error that billing raises on purpose.

    BillingError
    ├── AccountNotFound         the organization has no billing account
    ├── InsufficientFunds       less is available than is needed
    ├── NoPrice                 the price book has no price for that instant
    ├── PriceRefused            a published price overlaps, or starts too soon
    ├── DraftRefused            a draft of new prices, or the month to try it on, cannot be read
    ├── HoldError
    │   ├── HoldNotFound        no hold was placed under that reference
    │   ├── HoldExists          one was placed already
    │   └── HoldClosed          it was settled or voided: nothing more is charged on it
    ├── SegmentClosed           storage of that subject has ended
    ├── SegmentOpen             the subject is stored already
    ├── IdempotencyConflict     the same key came with other contents
    ├── ReversalRefused         the entry cannot be undone (undone already, or itself an undoing)
    ├── StatementRefused        no statement is made for that period
    ├── InvoiceRefused          the month is not over
    └── ExportError
        ├── ExportMoved         somebody else has exported meanwhile
        └── ExportAhead         the position is of another database than this one: a dump was restored

Each has a `code` (stable, for logs and tests) and a sentence for a person. None knows HTTP.
"""

from __future__ import annotations

from decimal import Decimal
from typing import ClassVar


class BillingError(Exception):
    code: ClassVar[str] = "billing_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class AccountNotFound(BillingError):
    code = "account_not_found"


class InsufficientFunds(BillingError):
    code = "insufficient_funds"

    def __init__(self, *, available: Decimal, needed: Decimal) -> None:
        super().__init__(f"{needed} is needed and {available} is available.")
        self.available = available
        self.needed = needed


class NoPrice(BillingError):
    code = "no_price"


class PriceRefused(BillingError):
    code = "price_refused"


class DraftRefused(BillingError):
    code = "draft_refused"


class HoldError(BillingError):
    code = "hold_error"


class HoldNotFound(HoldError):
    code = "hold_not_found"


class HoldExists(HoldError):
    code = "hold_exists"


class HoldClosed(HoldError):
    code = "hold_closed"


class SegmentClosed(BillingError):
    code = "segment_closed"


class SegmentOpen(BillingError):
    code = "segment_open"


class IdempotencyConflict(BillingError):
    code = "idempotency_conflict"


class ReversalRefused(BillingError):
    code = "reversal_refused"


class StatementRefused(BillingError):
    code = "statement_refused"


class InvoiceRefused(BillingError):
    code = "invoice_refused"


class ExportError(BillingError):
    code = "export_error"


class ExportMoved(ExportError):
    code = "export_moved"


class ExportAhead(ExportError):
    code = "export_ahead"
