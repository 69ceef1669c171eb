"""Indexes of the lists: pages by organization and id, and the metadata that filters them."""

import django.contrib.postgres.indexes
import django.db.models.functions.comparison
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0003_tiers_and_gates"),
        ("billing", "0003_first_prices"),
        ("caching", "0003_idempotency_keys"),
        ("kv", "0001_initial"),
    ]

    operations = [
        migrations.RemoveIndex(
            model_name="cacheobject",
            name="cache_by_organization",
        ),
        migrations.AddIndex(
            model_name="cacheobject",
            index=models.Index(
                models.F("organization"),
                models.OrderBy(django.db.models.functions.comparison.Collate("id", "C"), descending=True),
                name="cache_pages",
            ),
        ),
        migrations.AddIndex(
            model_name="cacheobject",
            index=django.contrib.postgres.indexes.GinIndex(
                fields=["metadata"], name="cache_by_metadata", opclasses=["jsonb_path_ops"]
            ),
        ),
    ]
