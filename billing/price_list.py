"""The prices that a caller may be shown: those in force, and those that are announced."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db.models import Q

from billing import money
from billing.metering import UNITS
from billing.models import Meter, Price


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPrice:
    """`per_million` units, and the same for one unit, which is exact. It holds from `valid_from` to `valid_to`."""

    id: int
    meter: str
    model: str
    unit: str
    currency: str
    per_million: Decimal
    unit_price: Decimal
    valid_from: datetime
    valid_to: datetime | None

    def is_in_force_at(self, at: datetime) -> bool:
        return self.valid_from <= at and (self.valid_to is None or at < self.valid_to)


def listed(*, currency: str, at: datetime) -> list[ListedPrice]:
    """All prices in one currency that hold at `at` or will hold later, by model, meter and time."""
    rows = (
        Price.objects.filter(Q(valid_to__isnull=True) | Q(valid_to__gt=at), priced_item__currency=currency)
        .select_related("priced_item")
        .order_by("priced_item__model", "priced_item__meter", "valid_from")
    )
    return [
        ListedPrice(
            id=row.pk,
            meter=row.priced_item.meter,
            model=row.priced_item.model,
            unit=UNITS[Meter(row.priced_item.meter)],
            currency=row.priced_item.currency,
            per_million=row.per_million,
            unit_price=money.unit_price(row.per_million),
            valid_from=row.valid_from,
            valid_to=row.valid_to,
        )
        for row in rows
    ]
