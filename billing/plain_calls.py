"""The usual call's hold and settlement in one message each: parameters for two functions of the database.

`billing_hold_plainly` and `billing_settle_plainly` do what `holds.place` and `charging.charge_call` do, where one
purse pays for all of it and no storage can run out by it. For everything else they raise NOT_PLAIN, having done
nothing, and the long way is gone. What is needed and not known here (a price, a currency) makes a None: the long way
learns it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from billing import accounts, money, price_book
from billing.ledger import Charge
from billing.metering import Event
from billing.models import REVENUE_OF_METER, Meter, system_account_id

NOT_PLAIN = "CP001"
"""The SQLSTATE of both functions' refusal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainQuote:
    """An amount, and the instants between which its prices are known to hold."""

    amount: Decimal
    currency: str
    good_from: datetime
    good_until: datetime


def quote(
    organization_id: str,
    *,
    model: str,
    fee_of_family: str | None,
    prompt_tokens: int,
    completion_tokens: int,
    at: datetime,
) -> PlainQuote | None:
    """What a call costs at most, with the fee of a cache object of `fee_of_family` if it uses one."""
    currency = accounts.known_currency(organization_id)
    if currency is None:
        return None
    used = [(Meter.PROMPT, model, prompt_tokens), (Meter.COMPLETION, model, completion_tokens)]
    if fee_of_family is not None:
        used.append((Meter.CALL, fee_of_family, 1))
    amounts, known = [], []
    for meter, priced, quantity in used:
        found = price_book.remembered(meter=meter, model=priced, currency=currency, at=at)
        if found is None:
            return None
        known.append(found)
        amounts.append(money.multiply(quantity, found.price.unit_price))
    return PlainQuote(
        amount=money.total(amounts),
        currency=currency,
        good_from=max(price.valid_from for price in known),
        good_until=min(price.known_until for price in known),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainCharges:
    """`rows` is the function's parameter: JSON in which amounts are strings, and exact."""

    total: Decimal
    currency: str
    rows: str


def charges(organization_id: str, events: Sequence[Event], *, started_at: datetime) -> PlainCharges | None:
    currency = accounts.known_currency(organization_id)
    if currency is None or not events:
        return None
    rows: list[dict[str, Any]] = []
    amounts = []
    for event in events:
        found = price_book.remembered(meter=event.meter, model=event.model, currency=currency, at=started_at)
        if found is None:
            return None
        price = found.price
        charge = Charge(event=event, price_id=price.price_id, unit_price=price.unit_price)
        amounts.append(charge.amount)
        rows.append(
            {
                "id": str(event.id),
                "meter": event.meter,
                "source": event.source,
                "source_key": event.source_key,
                "subject": event.subject,
                "model": event.model,
                "quantity": event.quantity,
                "unit": event.unit,
                "occurred_at": event.occurred_at.isoformat(),
                "api_key_id": event.api_key_id,
                "request_id": event.request_id,
                "cached_tokens": event.cached_tokens,
                "called_model": event.called_model,
                "amount": str(charge.amount),
                "price_id": price.price_id,
                "unit_price": str(price.unit_price),
                "revenue": str(system_account_id(REVENUE_OF_METER[Meter(event.meter)], currency)),
            }
        )
    return PlainCharges(total=money.total(amounts), currency=currency, rows=json.dumps(rows))
