"""The tiers and the beta gate that every installation starts with."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from django.db import IntegrityError, transaction

from cacheplane.access.models import FeatureOpening, Organization, Tier

pytestmark = pytest.mark.django_db


def test_the_six_tiers_are_the_contracts():
    rows = Tier.objects.values_list(
        "slug",
        "rank",
        "recharged_from",
        "concurrency",
        "requests_per_minute",
        "tokens_per_minute",
        "tokens_per_day",
    )
    assert list(rows) == [
        ("tier0", 0, Decimal(0), 1, 3, 32_000, 1_500_000),
        ("tier1", 1, Decimal(50), 50, 200, 128_000, 10_000_000),
        ("tier2", 2, Decimal(100), 100, 500, 128_000, 20_000_000),
        ("tier3", 3, Decimal(500), 200, 5_000, 384_000, None),
        ("tier4", 4, Decimal(5_000), 400, 5_000, 768_000, None),
        ("tier5", 5, Decimal(20_000), 1_000, 10_000, 2_000_000, None),
    ]
    limits = Tier.objects.values_list("object_tokens_max", "cached_tokens_max", "ttl_seconds_max").distinct()
    assert list(limits.order_by()) == [(131_072, 1_000_000, 2_592_000)]


def test_context_caching_opened_to_tier5_on_the_first_of_july_2024_in_shanghai():
    opening = FeatureOpening.objects.get(gate_id="context_caching")
    assert opening.minimum_tier_id == "tier5"
    assert opening.opens_at == datetime(2024, 6, 30, 16, 0, tzinfo=UTC)


@pytest.mark.parametrize("wrong", [{"state": "closed"}, {"kind": "free"}])
def test_the_database_refuses_an_unknown_word(wrong):
    with pytest.raises(IntegrityError), transaction.atomic():
        Organization.objects.create(name="Acme", tier_id="tier0", **wrong)
