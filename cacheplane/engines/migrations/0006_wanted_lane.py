"""A worker asks for the lane of precompute, and calls leave it alone: else those that wait for a slot take it each time
that it is free, for as long as there are more of them than slots."""

from importlib import import_module

from django.db import migrations, models

before = import_module("cacheplane.engines.migrations.0003_slot_functions").LEASE.replace(
    "CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1
)
AND_FREE = "AND (candidate.lease_until IS NULL OR candidate.lease_until < clock_timestamp())"
TAKEN = "last_used_at = clock_timestamp()"
LEASE = before.replace(
    AND_FREE,
    f"{AND_FREE}\n           AND (p_prefill OR candidate.wanted_until IS NULL"
    " OR candidate.wanted_until < clock_timestamp())",
).replace(
    TAKEN,
    f"{TAKEN},\n           wanted_until = CASE WHEN p_prefill THEN NULL ELSE slot.wanted_until END",
)


class Migration(migrations.Migration):
    dependencies = [("engines", "0005_names_of_families")]

    operations = [
        migrations.AddField(
            "engineslot",
            "wanted_until",
            models.DateTimeField(
                blank=True, help_text="Calls leave the slot to a precompute that waits for it.", null=True
            ),
        ),
        migrations.AddField(
            "engineslot", "wanted_by", models.CharField(blank=True, default="", max_length=64)
        ),
        migrations.RunSQL(LEASE, before),
    ]
