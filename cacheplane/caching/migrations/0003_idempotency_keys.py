"""Keys of creations that are made once, however often they are sent."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0003_tiers_and_gates"),
        ("caching", "0002_tags"),
    ]

    operations = [
        migrations.CreateModel(
            name="IdempotencyKey",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("key", models.CharField(db_collation="C", max_length=255)),
                ("body_digest", models.CharField(max_length=64)),
                ("cache_id", models.CharField(max_length=40)),
                ("created_at", models.DateTimeField()),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="idempotency_keys",
                        to="access.organization",
                    ),
                ),
            ],
            options={
                "ordering": ["-created_at"],
                "indexes": [models.Index(fields=["organization", "created_at"], name="keys_by_age")],
                "constraints": [
                    models.UniqueConstraint(fields=("organization", "key"), name="one_creation_per_key")
                ],
            },
        ),
    ]
