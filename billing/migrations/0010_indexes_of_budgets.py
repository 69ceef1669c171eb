"""What a subject, or an organization, has spent on creations and storage is asked for where there is a budget."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0009_cached_tokens")]

    operations = [
        migrations.AddIndex(
            model_name="storagesegment",
            index=models.Index(fields=["subject"], name="segments_of_subject"),
        ),
        migrations.AddIndex(
            model_name="storagesegment",
            index=models.Index(fields=["organization", "closed_at"], name="segments_of_organization"),
        ),
        migrations.AddIndex(
            model_name="meterevent",
            index=models.Index(
                condition=models.Q(("meter", "creation")),
                fields=["organization", "occurred_at"],
                name="creations_of_organization",
            ),
        ),
    ]
