"""The prices that a caller may be shown: those in force, and those that are announced."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db.models import Q

from billing import money, price_book, rating
from billing.metering import UNITS
from billing.models import Meter, Price


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPrice:
    """`per_million` units, and the same for one unit, which is exact. It holds from `valid_from` to `valid_to`, for
    the tier that it names, or for all that have none of their own. `is_paid` now; if not, it is announced, or the
    organization's tier has another."""

    id: int
    meter: str
    model: str
    tier: str
    unit: str
    currency: str
    per_million: Decimal
    unit_price: Decimal
    valid_from: datetime
    valid_to: datetime | None
    is_paid: bool


def listed(organization_id: str, *, currency: str, at: datetime) -> list[ListedPrice]:
    """All prices in one currency that hold at `at` or will hold later, by model, meter and time: those for all tiers,
    and those of the tier that the organization has at `at`."""
    tier = rating.tier_at(price_book.tiers_between(organization_id, at, at), at)
    rows = list(
        Price.objects.filter(
            Q(valid_to__isnull=True) | Q(valid_to__gt=at),
            priced_item__currency=currency,
            priced_item__tier__in={"", tier},
        )
        .select_related("priced_item")
        .order_by("priced_item__model", "priced_item__meter", "priced_item__tier", "valid_from")
    )
    # The tier's own come after those for all, and so take their place.
    paid = {(row.priced_item.meter, row.priced_item.model): row.pk for row in rows if row.valid_from <= at}
    return [_listed(row, is_paid=row.pk in paid.values()) for row in rows]


def _listed(row: Price, *, is_paid: bool) -> ListedPrice:
    item = row.priced_item
    return ListedPrice(
        id=row.pk,
        meter=item.meter,
        model=item.model,
        tier=item.tier,
        unit=UNITS[Meter(item.meter)],
        currency=item.currency,
        per_million=row.per_million,
        unit_price=money.unit_price(row.per_million),
        valid_from=row.valid_from,
        valid_to=row.valid_to,
        is_paid=is_paid,
    )
