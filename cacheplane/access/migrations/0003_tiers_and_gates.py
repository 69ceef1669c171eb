"""The tiers and the beta gate as published in 2024. Operators may change them."""

from datetime import UTC, datetime
from decimal import Decimal

from django.db import migrations

# slug, ¥ recharged from, concurrency, requests a minute, tokens a minute, tokens a day
TIERS = [
    ("tier0", "0", 1, 3, 32_000, 1_500_000),
    ("tier1", "50", 50, 200, 128_000, 10_000_000),
    ("tier2", "100", 100, 500, 128_000, 20_000_000),
    ("tier3", "500", 200, 5_000, 384_000, None),
    ("tier4", "5000", 400, 5_000, 768_000, None),
    ("tier5", "20000", 1_000, 10_000, 2_000_000, None),
]
CONTEXT_CACHING_OPENS_AT = datetime(2024, 6, 30, 16, 0, tzinfo=UTC)  # 2024-07-01 00:00 in Shanghai


def seed(apps, schema_editor):
    Tier = apps.get_model("access", "Tier")
    for rank, (slug, recharged_from, concurrency, requests, tokens, day_tokens) in enumerate(TIERS):
        Tier.objects.create(
            slug=slug,
            rank=rank,
            recharged_from=Decimal(recharged_from),
            concurrency=concurrency,
            requests_per_minute=requests,
            tokens_per_minute=tokens,
            tokens_per_day=day_tokens,
        )
    gate = apps.get_model("access", "FeatureGate").objects.create(
        slug="context_caching", description="Cache objects and calls on them (/v1/caching)."
    )
    apps.get_model("access", "FeatureOpening").objects.create(
        gate=gate, minimum_tier_id="tier5", opens_at=CONTEXT_CACHING_OPENS_AT
    )


def unseed(apps, schema_editor):
    apps.get_model("access", "FeatureOpening").objects.all().delete()
    apps.get_model("access", "FeatureGate").objects.all().delete()
    apps.get_model("access", "Tier").objects.all().delete()


class Migration(migrations.Migration):
    dependencies = [("access", "0002_guards")]

    operations = [migrations.RunPython(seed, unseed)]
