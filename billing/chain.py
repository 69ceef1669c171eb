"""The hash chain of a purse, recomputed: pure, so that a statement can be checked far from any database.

    head(0) = sha256("billing purse " + the purse's id)
    head(n) = sha256(head(n − 1) + the n-th entry as a JSON array)

The database makes the same chain by itself (the trigger `billing_ledgerentry_is_chained`). Amounts are strings with
nine places, signed as the purse sees them; instants are microseconds since 1970 in UTC; what a statement does not show
is there by its digest, `sealed`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from billing import money

_encode = json.JSONEncoder(ensure_ascii=False).encode
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainedEntry:
    """What of an entry is in the chain. `change` is positive when the money came into the purse."""

    id: int
    organization: str
    currency: str
    purse: str
    sequence: int
    kind: str
    change: Decimal
    balance_after: Decimal
    event: str | None
    quantity: int | None
    unit_price: Decimal | None
    reverses: int | None
    reason: str
    request_id: str
    created_at: datetime
    sealed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """The first entry of a purse whose stored head is not what its contents make."""

    entry: ChainedEntry
    detail: str


def genesis(purse: str) -> bytes:
    return hashlib.sha256(f"billing purse {purse}".encode()).digest()


def sealed(
    *,
    debit: str,
    credit: str,
    idempotency_key: str,
    price: int | None,
    operator: str,
) -> str:
    """The digest, in hex, of what a statement does not show."""
    hidden = [debit, credit, idempotency_key, price, operator]
    return hashlib.sha256(_canonical(hidden)).hexdigest()


def following(previous: bytes, entry: ChainedEntry) -> bytes:
    """The head after `entry`, 32 bytes."""
    shown = [
        entry.id,
        entry.organization,
        entry.currency,
        entry.purse,
        entry.sequence,
        entry.kind,
        money.text(entry.change),
        money.text(entry.balance_after),
        entry.event,
        entry.quantity,
        None if entry.unit_price is None else money.text(entry.unit_price),
        entry.reverses,
        entry.reason,
        entry.request_id,
        (entry.created_at - EPOCH) // timedelta(microseconds=1),
        entry.sealed,
    ]
    return hashlib.sha256(previous + _canonical(shown)).digest()


def breaks(entries: Iterable[tuple[ChainedEntry, bytes]]) -> Iterator[Break]:
    """The first break of each purse. Entries with their stored heads, purse by purse, in the order of the sequence."""
    purse, head, sequence, is_broken = "", b"", 0, False
    for entry, stored in entries:
        if entry.purse != purse:
            purse, head, sequence, is_broken = entry.purse, genesis(entry.purse), 0, False
        if is_broken:
            continue
        head, sequence = following(head, entry), sequence + 1
        if entry.sequence != sequence:
            is_broken = True
            yield Break(entry=entry, detail=f"number {sequence} is missing")
        elif head != stored:
            is_broken = True
            yield Break(entry=entry, detail=f"the chain says {stored.hex()}, its contents make {head.hex()}")


def _canonical(values: Sequence[object]) -> bytes:
    """As PostgreSQL's json_build_array writes it."""
    return _encode(values).encode()
