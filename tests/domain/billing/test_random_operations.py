"""Operations drawn at random, long ago, now and ahead, around price changes; the audit looks in between."""

from __future__ import annotations

import pytest

from billing.models import LedgerEntry, Price
from cacheplane.management.drill import operations, wanderers

pytestmark = pytest.mark.django_db(transaction=True)

SEED = 20240806


def test_whatever_is_done_in_whatever_order_the_promises_hold():
    figure, done = operations.run_here(seed=SEED, operations=1500, accounts=10)
    print(f"\n{figure}: {dict(done.most_common())}")
    assert figure.is_reached, figure.reached
    for name in {*wanderers.EVERYTHING, *wanderers.MOSTLY_CALLS}:
        assert done[name] > 0, f"no {name} was ever allowed"
    assert done["hold: InsufficientFunds"] > 0
    assert done["short settlements"] > 0
    assert LedgerEntry.objects.filter(kind="lapse").exists()
    assert Price.objects.filter(priced_item__model="drill-0", valid_to__isnull=False).exists()
