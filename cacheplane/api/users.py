"""`/v1/users/me/balance`: the one place where an amount is a JSON number, as the contract's clients expect."""

from __future__ import annotations

from decimal import ROUND_DOWN, Decimal

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from billing import accounts, clock
from cacheplane.api import openapi
from cacheplane.api.authentication import caller_of

FIVE_PLACES = Decimal("0.00001")


def _shown(amount: Decimal) -> Decimal:
    """Toward zero, so that no more is shown than can be spent."""
    return amount.quantize(FIVE_PLACES, rounding=ROUND_DOWN)


class Balance(APIView):
    @extend_schema(
        operation_id="get_balance",
        summary="What is left: cash, voucher, and what can be spent now",
        responses=openapi.answers({"type": "object"}, 401),
    )
    def get(self, request: Request) -> Response:
        owner = caller_of(request).organization_id
        balance = accounts.balance(owner, clock.now_of(owner))
        data = {
            "available_balance": _shown(balance.available),
            "voucher_balance": _shown(balance.voucher),
            "cash_balance": _shown(balance.cash),
        }
        return Response({"code": 0, "data": data, "scode": "0x0", "status": True})
