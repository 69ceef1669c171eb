"""What decides the end of a cache object: a time, its use, the clock of a schedule, and a budget."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0004_admission_functions"),
        ("billing", "0004_plain_calls"),
        ("caching", "0005_messages_as_they_are"),
        ("kv", "0001_initial"),
    ]

    operations = [
        migrations.AddField(
            model_name="cacheobject",
            name="budget_amount",
            field=models.DecimalField(blank=True, decimal_places=9, max_digits=24, null=True),
        ),
        migrations.AddField(
            model_name="cacheobject",
            name="budget_per",
            field=models.CharField(
                blank=True,
                choices=[("month", "month"), ("total", "total")],
                db_default="",
                default="",
                max_length=5,
            ),
        ),
        migrations.AddField(
            model_name="cacheobject",
            name="cap_at",
            field=models.DateTimeField(
                blank=True, help_text="ttl auto: no use moves the end beyond.", null=True
            ),
        ),
        migrations.AddField(
            model_name="cacheobject",
            name="cap_seconds",
            field=models.PositiveBigIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="cacheobject",
            name="kept_minutes",
            field=models.PositiveIntegerField(
                blank=True, help_text="ttl auto: minutes beyond that of a use.", null=True
            ),
        ),
        migrations.AddField(
            model_name="cacheobject",
            name="precompute_seconds",
            field=models.PositiveIntegerField(
                blank=True, help_text="How long its last precompute took, where it has a schedule.", null=True
            ),
        ),
        migrations.AddField(
            model_name="cacheobject",
            name="reopen_at",
            field=models.DateTimeField(
                blank=True, help_text="When it is computed again, ahead of its next opening.", null=True
            ),
        ),
        migrations.AddField(
            model_name="cacheobject",
            name="schedule",
            field=models.JSONField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="cacheobject",
            name="ttl_policy",
            field=models.CharField(
                choices=[("fixed", "fixed"), ("auto", "auto"), ("schedule", "schedule")],
                db_default="fixed",
                default="fixed",
                help_text="What decides its end.",
                max_length=8,
            ),
        ),
        migrations.AddField(
            model_name="cacheobject",
            name="used_at",
            field=models.DateTimeField(
                blank=True, help_text="ttl auto: the use from which its end was reckoned last.", null=True
            ),
        ),
        migrations.AddField(
            model_name="cacheobject",
            name="wanted_until",
            field=models.DateTimeField(
                blank=True,
                help_text="The end that it would have, where its budget ends before that.",
                null=True,
            ),
        ),
        migrations.AddIndex(
            model_name="cacheobject",
            index=models.Index(
                condition=models.Q(("reopen_at__isnull", False)), fields=["reopen_at"], name="cache_reopening"
            ),
        ),
        migrations.AddConstraint(
            model_name="cacheobject",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("ttl_policy", "auto"), _negated=True),
                    models.Q(("cap_at__isnull", False), ("cap_seconds__isnull", False)),
                    _connector="OR",
                ),
                name="auto_has_a_cap",
            ),
        ),
        migrations.AddConstraint(
            model_name="cacheobject",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("reopen_at__isnull", False), ("schedule__isnull", False), ("ttl_policy", "schedule")
                    ),
                    models.Q(
                        models.Q(("ttl_policy", "schedule"), _negated=True),
                        ("reopen_at__isnull", True),
                        ("schedule__isnull", True),
                    ),
                    _connector="OR",
                ),
                name="schedule_has_windows",
            ),
        ),
        migrations.AddConstraint(
            model_name="cacheobject",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("budget_amount__isnull", True), ("budget_per", "")),
                    models.Q(("budget_amount__gt", 0), ("budget_per__in", ["month", "total"])),
                    _connector="OR",
                ),
                name="budget_has_amount_and_period",
            ),
        ),
    ]
