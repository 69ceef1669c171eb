"""The first model family: three names that differ in their window."""

from django.db import migrations

OWNER = "cacheplane"
FAMILY = "moonshot-v1"
WINDOWS = {"moonshot-v1-8k": 8_192, "moonshot-v1-32k": 32_768, "moonshot-v1-128k": 131_072}


def add(apps, schema_editor):
    model = apps.get_model("engines", "ServedModel")
    for name, window_tokens in WINDOWS.items():
        model.objects.get_or_create(
            name=name, defaults={"family": FAMILY, "window_tokens": window_tokens, "owned_by": OWNER}
        )


class Migration(migrations.Migration):
    dependencies = [("engines", "0001_initial")]
    operations = [migrations.RunPython(add, migrations.RunPython.noop)]
