"""Overrides of the tier that was earned, and thresholds for who pays in $."""

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("access", "0005_margin_of_admission")]

    operations = [
        migrations.AddField(
            model_name="tier",
            name="recharged_from_usd",
            field=models.DecimalField(
                blank=True,
                decimal_places=9,
                help_text="The same in $, for who pays in $. Empty: it is not earned in $.",
                max_digits=24,
                null=True,
            ),
        ),
        migrations.AddConstraint(
            model_name="tier",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("recharged_from_usd__isnull", True), ("recharged_from_usd__gte", 0), _connector="OR"
                ),
                name="tier_recharged_from_usd_not_negative",
            ),
        ),
        migrations.AlterField(
            model_name="organization",
            name="tier",
            field=models.ForeignKey(
                help_text="Earned by recharges.",
                on_delete=django.db.models.deletion.PROTECT,
                related_name="organizations",
                to="access.tier",
            ),
        ),
        migrations.CreateModel(
            name="TierOverride",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("ends_at", models.DateTimeField(blank=True, null=True)),
                ("reason", models.CharField(max_length=500)),
                ("created_by", models.CharField(max_length=150)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="tier_overrides",
                        to="access.organization",
                    ),
                ),
                (
                    "tier",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="overrides",
                        to="access.tier",
                    ),
                ),
            ],
            options={
                "ordering": ["-id"],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("reason", ""), _negated=True), name="tier_override_has_a_reason"
                    )
                ],
            },
        ),
    ]
