"""Families become rows, each with the engine that serves it: until now there was one engine for all."""

import django.db.models.deletion
from django.db import migrations, models

FIRST_FAMILY = "moonshot-v1"


def add(apps, schema_editor):
    engine = apps.get_model("engines", "Engine").objects.order_by("id").first()
    served = apps.get_model("engines", "ServedModel").objects.values_list("family", flat=True)
    for name in sorted({FIRST_FAMILY, *served}):
        apps.get_model("engines", "ModelFamily").objects.get_or_create(name=name, defaults={"engine": engine})


class Migration(migrations.Migration):
    dependencies = [("engines", "0003_slot_functions")]
    operations = [
        migrations.CreateModel(
            name="ModelFamily",
            fields=[
                ("name", models.CharField(max_length=64, primary_key=True, serialize=False)),
                (
                    "engine",
                    models.ForeignKey(
                        blank=True,
                        help_text="Without one, calls of this family are told that none serves it.",
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="families",
                        to="engines.engine",
                    ),
                ),
            ],
            options={"ordering": ["name"], "verbose_name_plural": "model families"},
        ),
        migrations.RunPython(add, migrations.RunPython.noop),
    ]
