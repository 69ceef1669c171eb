"""What all that an organization caches may cost."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0004_admission_functions"),
        ("caching", "0006_lifetimes_and_budgets"),
    ]

    operations = [
        migrations.CreateModel(
            name="OrganizationBudget",
            fields=[
                (
                    "organization",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="cache_budget",
                        serialize=False,
                        to="access.organization",
                    ),
                ),
                ("amount", models.DecimalField(decimal_places=9, max_digits=24)),
                ("per", models.CharField(choices=[("month", "month"), ("total", "total")], max_length=5)),
                ("set_at", models.DateTimeField()),
                ("set_by", models.CharField(max_length=128)),
            ],
            options={
                "ordering": ["organization"],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("amount__gt", 0), ("per__in", ["month", "total"])),
                        name="organization_budget_is_one",
                    )
                ],
            },
        ),
    ]
