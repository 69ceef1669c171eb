"""Which tier's prices an account pays, and since when: rows with dates, of which only the future can be changed.

Who decides on tiers is told elsewhere; billing knows a tier by its name, and charges by it from the instant of the
change on. What was used before keeps its price, so that a month can be rated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from django.db.models import Q

from billing import storage
from billing.accounts import LockedAccount
from billing.models import AccountPriceTier, Meter, PricedItem
from billing.rating import TierSpan


def change(
    account: LockedAccount, *, tier: str, at: datetime, until: datetime | None = None, then: str | None = None
) -> bool:
    """From `at` on the account pays the prices of `tier`, from `until` on those of `then`, if both are known.

    False if just that was planned already. Storage that is open reckons with it at once. Raises NoPrice, when
    something is stored that has no price for that tier nor for all.
    """
    wanted = _course(tier, at=at, until=until, then=then)
    rows = list(
        AccountPriceTier.objects.filter(
            Q(valid_to__isnull=True) | Q(valid_to__gt=at), organization_id=account.organization_id
        ).order_by("valid_from")
    )
    if _plan(rows) == [(span.tier, span.valid_to) for span in wanted]:
        return False
    storage.cut_exhausted(account, at=at)
    for row in rows:
        if row.valid_from >= at:
            row.delete()
        else:
            row.valid_to = at
            row.save(update_fields=["valid_to"])
    AccountPriceTier.objects.bulk_create(
        AccountPriceTier(
            organization_id=account.organization_id,
            tier=span.tier,
            valid_from=span.valid_from,
            valid_to=span.valid_to,
        )
        for span in wanted
    )
    storage.reprice_account(account, at=at)
    return True


def have_changed(*, since: datetime) -> bool:
    """Whether any account was given other prices since then, of tiers that have a price of their own for storage."""
    return (
        AccountPriceTier.objects.filter(created_at__gt=since).exists()
        and PricedItem.objects.filter(meter=Meter.STORAGE).exclude(tier="").exists()
    )


def _course(tier: str, *, at: datetime, until: datetime | None, then: str | None) -> list[TierSpan]:
    if until is None or then is None or then == tier:
        return [TierSpan(tier=tier, valid_from=at, valid_to=None)]
    return [
        TierSpan(tier=tier, valid_from=at, valid_to=until),
        TierSpan(tier=then, valid_from=until, valid_to=None),
    ]


def _plan(rows: Sequence[AccountPriceTier]) -> list[tuple[str, datetime | None]]:
    return [(row.tier, row.valid_to) for row in rows]
