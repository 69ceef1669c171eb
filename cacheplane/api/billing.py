"""`/v1/billing/balance` and `/v1/billing/prices`: what there is, and what things cost. Amounts are exact strings."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing import accounts, clock, money, price_list
from billing.accounts import Balance
from billing.price_list import ListedPrice
from cacheplane.api import openapi
from cacheplane.api.authentication import caller_of

AMOUNT: dict[str, Any] = {"type": "string", "pattern": r"^-?[0-9]+\.[0-9]{9}$"}
INSTANT: dict[str, Any] = {"type": "string", "format": "date-time"}
MAYBE_INSTANT: dict[str, Any] = {"type": ["string", "null"], "format": "date-time"}

BALANCE: dict[str, Any] = {
    "type": "object",
    "required": [
        *("object", "currency", "available", "cash", "voucher", "held", "owed", "posted", "exhaust_at"),
        *("runway_seconds", "vouchers"),
    ],
    "properties": {
        "object": {"type": "string", "enum": ["billing.balance"]},
        "currency": {"type": "string"},
        "available": AMOUNT | {"description": "posted, less what is held and owed"},
        "cash": AMOUNT,
        "voucher": AMOUNT,
        "held": AMOUNT | {"description": "set aside for calls and creations on their way"},
        "owed": AMOUNT | {"description": "storage that was used and is not posted yet"},
        "posted": AMOUNT | {"description": "cash and vouchers"},
        "exhaust_at": MAYBE_INSTANT
        | {"description": "the first minute of storage that cannot be paid as things stand; null: all can"},
        "runway_seconds": {
            "type": ["integer", "null"],
            "minimum": 0,
            "description": "how long what is available pays for what is stored now, were it kept for good; "
            "null: nothing is stored",
        },
        "vouchers": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["amount", "expires_at"],
                "properties": {"amount": AMOUNT, "expires_at": MAYBE_INSTANT},
                "additionalProperties": False,
            },
        },
    },
    "additionalProperties": False,
}
PRICE: dict[str, Any] = {
    "type": "object",
    "required": [
        *("id", "object", "meter", "kind", "model", "tier", "unit", "currency", "per_million", "unit_price"),
        *("valid_from", "valid_to", "in_force"),
    ],
    "properties": {
        "id": {"type": "integer"},
        "object": {"type": "string", "enum": ["billing.price"]},
        "meter": {"type": "string", "enum": ["creation", "storage", "call", "tokens"]},
        "kind": {"type": ["string", "null"], "enum": ["prompt", "completion", None]},
        "model": {"type": "string", "description": "a model, or for a cache object's fees its family"},
        "tier": {
            "type": ["string", "null"],
            "description": "null: for all tiers that have no price of their own",
        },
        "unit": {"type": "string", "enum": ["token", "token_minute", "call"]},
        "currency": {"type": "string"},
        "per_million": AMOUNT | {"description": "for 1,000,000 units"},
        "unit_price": AMOUNT,
        "valid_from": INSTANT,
        "valid_to": MAYBE_INSTANT,
        "in_force": {
            "type": "boolean",
            "description": "it is what is paid now; false: announced, or the tier has another",
        },
    },
    "additionalProperties": False,
}


def meter_and_kind(meter: str) -> tuple[str, str | None]:
    """("tokens", which) for prompt and completion; any other meter by its own name."""
    return ("tokens", meter) if meter in ("prompt", "completion") else (meter, None)


def balance_as_json(balance: Balance) -> dict[str, Any]:
    return {
        "object": "billing.balance",
        "currency": balance.currency,
        "available": money.text(balance.available),
        "cash": money.text(balance.cash),
        "voucher": money.text(balance.voucher),
        "held": money.text(balance.held),
        "owed": money.text(balance.owed),
        "posted": money.text(money.add(balance.cash, balance.voucher)),
        "exhaust_at": balance.exhaust_at.isoformat() if balance.exhaust_at else None,
        "runway_seconds": balance.runway_seconds,
        "vouchers": [
            {
                "amount": money.text(voucher.amount),
                "expires_at": voucher.expires_at.isoformat() if voucher.expires_at else None,
            }
            for voucher in balance.vouchers
        ],
    }


def price_as_json(price: ListedPrice) -> dict[str, Any]:
    meter, kind = meter_and_kind(price.meter)
    return {
        "id": price.id,
        "object": "billing.price",
        "meter": meter,
        "kind": kind,
        "model": price.model,
        "tier": price.tier or None,
        "unit": price.unit,
        "currency": price.currency,
        "per_million": money.text(price.per_million),
        "unit_price": money.text(price.unit_price),
        "valid_from": price.valid_from.isoformat(),
        "valid_to": price.valid_to.isoformat() if price.valid_to else None,
        "in_force": price.is_paid,
    }


class BillingBalance(APIView):
    @extend_schema(
        operation_id="get_billing_balance",
        summary="What is there, exact: posted, held, owed, and what can be spent now",
        responses=openapi.answers(BALANCE, 401, 403),
    )
    def get(self, request: Request) -> Response:
        organization_id = caller_of(request).organization_id
        return Response(balance_as_json(accounts.balance(organization_id, clock.now_of(organization_id))))


class BillingPrices(APIView):
    @extend_schema(
        operation_id="list_prices",
        summary="All prices in force in the organization's currency, and those that are announced",
        responses=openapi.answers(openapi.list_of(PRICE), 401, 403),
    )
    def get(self, request: Request) -> Response:
        organization_id = caller_of(request).organization_id
        at = clock.now_of(organization_id)
        currency = accounts.balance(organization_id, at).currency
        prices = price_list.listed(organization_id, currency=currency, at=at)
        return Response({"object": "list", "data": [price_as_json(price) for price in prices]})
