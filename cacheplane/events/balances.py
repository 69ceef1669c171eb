"""`balance.low`: told once when what is available falls below an endpoint's threshold, and again after it was above."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from django.db import transaction

from billing import accounts, clock
from billing.accounts import Balance
from cacheplane.events import outbox
from cacheplane.events.models import BALANCE_LOW, WebhookEndpoint


def tell_low() -> int:
    """Look at the balance of each organization that wants to be told; how many endpoints were told."""
    told = 0
    balances: dict[str, Balance] = {}
    for endpoint in WebhookEndpoint.objects.listening_for(BALANCE_LOW).order_by("organization_id", "id"):
        owner = endpoint.organization_id
        at = clock.now_of(owner)
        balance = balances[owner] if owner in balances else accounts.balance(owner, at)
        balances = {owner: balance}
        is_low = balance.available < endpoint.balance_threshold
        if is_low and endpoint.balance_low_at is None:
            told += _tell(endpoint, balance, at=at)
        elif not is_low and endpoint.balance_low_at is not None:
            WebhookEndpoint.objects.filter(id=endpoint.id).update(balance_low_at=None)
    return told


def _tell(endpoint: WebhookEndpoint, balance: Balance, *, at: datetime) -> bool:
    with transaction.atomic():
        unchanged = WebhookEndpoint.objects.listening_for(BALANCE_LOW).filter(
            id=endpoint.id, balance_low_at__isnull=True, balance_threshold=endpoint.balance_threshold
        )
        if not unchanged.update(balance_low_at=at):
            return False
        outbox.write(
            organization_id=endpoint.organization_id,
            endpoint_ids=[endpoint.id],
            event_type=BALANCE_LOW,
            subject=endpoint.organization_id,
            at=at,
            data={
                "object": "balance",
                "currency": balance.currency,
                "available_balance": shown(balance.available),
                "threshold": shown(endpoint.balance_threshold),
            },
        )
    return True


def shown(amount: Decimal) -> str:
    """Exact, as text: without an exponent and without zeros that say nothing."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
