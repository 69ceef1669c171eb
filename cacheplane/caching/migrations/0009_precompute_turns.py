"""Whose turn it was to be computed, so that no organization keeps the others waiting."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0004_admission_functions"),
        ("caching", "0008_metadata_statistics"),
    ]

    operations = [
        migrations.CreateModel(
            name="PrecomputeTurn",
            fields=[
                (
                    "organization",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="precompute_turn",
                        serialize=False,
                        to="access.organization",
                    ),
                ),
                ("taken_at", models.DateTimeField()),
            ],
            options={"ordering": ["-taken_at"]},
        ),
    ]
