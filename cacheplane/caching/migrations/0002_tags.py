"""Tags, and what happened to them, which nobody rewrites."""

import django.db.models.deletion
from django.db import migrations, models

HISTORY_IS_APPEND_ONLY = """
CREATE FUNCTION caching_tag_change_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'A change of a tag is never changed or deleted.' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER tag_change_is_append_only BEFORE UPDATE OR DELETE ON caching_cachetagchange
    FOR EACH ROW EXECUTE FUNCTION caching_tag_change_is_append_only();
"""
HISTORY_IS_OPEN = """
DROP TRIGGER tag_change_is_append_only ON caching_cachetagchange;
DROP FUNCTION caching_tag_change_is_append_only();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0003_tiers_and_gates"),
        ("caching", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="CacheTag",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("tag", models.CharField(db_collation="C", max_length=128)),
                (
                    "version",
                    models.PositiveBigIntegerField(
                        help_text="How many times the name has been bound, this included."
                    ),
                ),
                ("created_at", models.DateTimeField(help_text="Since when it names this object.")),
                (
                    "cache_object",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="tags",
                        to="caching.cacheobject",
                    ),
                ),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="cache_tags",
                        to="access.organization",
                    ),
                ),
            ],
            options={
                "ordering": ["tag"],
                "constraints": [
                    models.UniqueConstraint(fields=("organization", "tag"), name="one_tag_of_a_name"),
                    models.CheckConstraint(
                        condition=models.Q(("tag__regex", "^[A-Za-z][A-Za-z0-9_.-]{0,127}$")),
                        name="tag_is_well_formed",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="CacheTagChange",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("tag", models.CharField(db_collation="C", max_length=128)),
                ("version", models.PositiveBigIntegerField()),
                (
                    "kind",
                    models.CharField(choices=[("bound", "bound"), ("released", "released")], max_length=8),
                ),
                ("cache_id", models.CharField(max_length=40)),
                ("at", models.DateTimeField()),
                (
                    "actor",
                    models.CharField(
                        help_text="A key's id, an operator's name, or the part of the system.", max_length=128
                    ),
                ),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="cache_tag_changes",
                        to="access.organization",
                    ),
                ),
            ],
            options={
                "ordering": ["organization", "tag", "version", "kind"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("organization", "tag", "version", "kind"),
                        name="each_version_bound_and_released_once",
                    )
                ],
            },
        ),
        migrations.RunSQL(HISTORY_IS_APPEND_ONLY, HISTORY_IS_OPEN),
    ]
