"""What a subject has cost so far is asked for when it has a budget."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0004_plain_calls")]

    operations = [
        migrations.AddIndex(
            model_name="storagesegment",
            index=models.Index(fields=["subject"], name="segments_of_subject"),
        ),
    ]
