"""Names belong to families, and one of them picks its window by itself."""

import django.db.models.deletion
from django.db import migrations, models

FAMILY, AUTO, OWNER = "moonshot-v1", "moonshot-v1-auto", "cacheplane"


def add(apps, schema_editor):
    defaults = {"family_id": FAMILY, "window_tokens": None, "owned_by": OWNER}
    apps.get_model("engines", "ServedModel").objects.get_or_create(name=AUTO, defaults=defaults)


def remove(apps, schema_editor):
    apps.get_model("engines", "ServedModel").objects.filter(window_tokens=None).delete()


class Migration(migrations.Migration):
    dependencies = [("engines", "0004_model_families")]
    operations = [
        migrations.AlterField(
            model_name="servedmodel",
            name="family",
            field=models.ForeignKey(
                db_column="family",
                on_delete=django.db.models.deletion.PROTECT,
                related_name="served_models",
                to="engines.modelfamily",
            ),
        ),
        migrations.AlterField(
            model_name="servedmodel",
            name="window_tokens",
            field=models.PositiveIntegerField(
                blank=True,
                help_text="Without one, the name stands for its family's smallest window that a call fits.",
                null=True,
            ),
        ),
        migrations.RunPython(add, remove),
    ]
