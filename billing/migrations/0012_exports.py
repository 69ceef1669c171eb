"""Exports: how far each sink has got, and the number of the transaction that wrote an event, to go by.

Events that are there already all get the number of this migration: they are committed, and their ids keep them apart.
"""

import uuid

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0008_kind_stays"),
        ("billing", "0011_sandbox_clock"),
    ]

    operations = [
        migrations.CreateModel(
            name="ExportPosition",
            fields=[
                (
                    "sink",
                    models.CharField(
                        help_text="Where the events go: a URL.",
                        max_length=500,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("recorded_xid", models.BigIntegerField(default=0)),
                (
                    "event_id",
                    models.UUIDField(
                        default=uuid.UUID("00000000-0000-0000-0000-000000000000"),
                        help_text="The last event that went there.",
                    ),
                ),
                (
                    "not_before",
                    models.DateTimeField(
                        blank=True,
                        help_text="What was recorded before has gone there under other numbers.",
                        null=True,
                    ),
                ),
                ("exported", models.BigIntegerField(default=0)),
                ("moved_at", models.DateTimeField(blank=True, null=True)),
                ("file_name", models.CharField(blank=True, max_length=64)),
                (
                    "file_bytes",
                    models.BigIntegerField(
                        default=0, help_text="What lies behind was written and never committed."
                    ),
                ),
                ("failures", models.PositiveIntegerField(default=0, help_text="Since the last success.")),
                ("failure", models.CharField(blank=True, max_length=200)),
                ("retry_at", models.DateTimeField(blank=True, null=True)),
            ],
        ),
        migrations.CreateModel(
            name="ExportTally",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "meter",
                    models.CharField(
                        choices=[
                            ("creation", "Creation"),
                            ("storage", "Storage"),
                            ("call", "Call on a cache object"),
                            ("prompt", "Prompt tokens"),
                            ("completion", "Completion tokens"),
                        ],
                        max_length=12,
                    ),
                ),
                ("hour", models.DateTimeField()),
                ("currency", models.CharField(choices=[("CNY", "CNY"), ("USD", "USD")], max_length=3)),
                ("events", models.BigIntegerField()),
                ("quantity", models.DecimalField(decimal_places=0, max_digits=38)),
                ("amount", models.DecimalField(decimal_places=9, max_digits=38)),
            ],
            options={
                "verbose_name_plural": "export tallies",
            },
        ),
        migrations.AddField(
            model_name="meterevent",
            name="recorded_xid",
            field=models.BigIntegerField(
                db_default=models.Func(
                    output_field=models.BigIntegerField(), template="(pg_current_xact_id()::text::bigint)"
                ),
                editable=False,
                help_text="The transaction that wrote it, so that exports know what can no longer come before it.",
            ),
        ),
        migrations.AddIndex(
            model_name="meterevent",
            index=models.Index(fields=["recorded_xid", "id"], name="events_as_exported"),
        ),
        migrations.AddField(
            model_name="exporttally",
            name="position",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE,
                related_name="tallies",
                to="billing.exportposition",
            ),
        ),
        migrations.AddConstraint(
            model_name="exporttally",
            constraint=models.UniqueConstraint(
                fields=("position", "meter", "hour", "currency"), name="one_tally_per_meter_and_hour"
            ),
        ),
    ]
