"""Invoices, which the database numbers and rounds once more itself, and what statements look up."""

import django.db.models.deletion
from django.db import migrations, models
from django.db.models import Q

# By bisection: a purse's entries stand in the order of their times.
ENTRIES_BEFORE = """
CREATE FUNCTION billing_entries_before(p_purse uuid, p_at timestamptz) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_low bigint := 0;
    v_high bigint;
    v_middle bigint;
    v_created_at timestamptz;
BEGIN
    SELECT coalesce(max(e.purse_sequence), 0) INTO v_high FROM billing_ledgerentry AS e WHERE e.purse_id = p_purse;
    WHILE v_low < v_high LOOP
        v_middle := (v_low + v_high + 1) / 2;
        SELECT e.created_at INTO v_created_at FROM billing_ledgerentry AS e
         WHERE e.purse_id = p_purse AND e.purse_sequence = v_middle;
        IF v_created_at < p_at THEN
            v_low := v_middle;
        ELSE
            v_high := v_middle - 1;
        END IF;
    END LOOP;
    RETURN v_low;
END $$;
"""

# Rounded half up, as invoices are in the country of their currency; no sum to date is ever negative.
INVOICES_FOLLOW = """
CREATE TRIGGER billing_invoice_is_append_only BEFORE UPDATE OR DELETE ON billing_invoice
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_rewriting();
CREATE TRIGGER billing_invoice_is_never_emptied BEFORE TRUNCATE ON billing_invoice
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_rewriting();
CREATE FUNCTION billing_invoice_follows() RETURNS trigger LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_last record;
BEGIN
    SELECT i.number, i.month, i.spent_to_date INTO v_last FROM billing_invoice AS i
     WHERE i.organization_id = NEW.organization_id ORDER BY i.number DESC LIMIT 1;
    IF NEW.number <> coalesce(v_last.number, 0) + 1 OR NEW.month <= v_last.month
        OR NEW.spent_to_date <> coalesce(v_last.spent_to_date, 0) + NEW.spent
        OR NEW.amount <> round(NEW.spent_to_date, 2) - round(coalesce(v_last.spent_to_date, 0), 2) THEN
        RAISE EXCEPTION 'Invoice % of % does not follow the one before it.', NEW.number, NEW.organization_id
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER billing_invoice_follows BEFORE INSERT ON billing_invoice
    FOR EACH ROW EXECUTE FUNCTION billing_invoice_follows();
"""
NO_ORDER = """
DROP TRIGGER billing_invoice_follows ON billing_invoice;
DROP FUNCTION billing_invoice_follows();
DROP TRIGGER billing_invoice_is_append_only ON billing_invoice;
DROP TRIGGER billing_invoice_is_never_emptied ON billing_invoice;
"""


class Migration(migrations.Migration):
    dependencies = [("access", "0004_admission_functions"), ("billing", "0005_hash_chain")]

    operations = [
        migrations.AddIndex(
            model_name="ledgerentry",
            index=models.Index(
                fields=["organization", "created_at"],
                condition=Q(purse__isnull=True),
                name="waivers_of_organization",
            ),
        ),
        migrations.CreateModel(
            name="Invoice",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("month", models.DateField(help_text="Its first day.")),
                (
                    "number",
                    models.IntegerField(
                        help_text="Counts the organization's invoices from 1, without a gap."
                    ),
                ),
                ("currency", models.CharField(choices=[("CNY", "CNY"), ("USD", "USD")], max_length=3)),
                (
                    "spent",
                    models.DecimalField(
                        decimal_places=9, help_text="Exact, since the invoice before.", max_digits=24
                    ),
                ),
                (
                    "spent_to_date",
                    models.DecimalField(
                        decimal_places=9, help_text="Exact, since the first entry.", max_digits=24
                    ),
                ),
                ("amount", models.DecimalField(decimal_places=2, max_digits=17)),
                ("heads", models.JSONField()),
                ("made_at", models.DateTimeField()),
                (
                    "organization",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="invoices",
                        to="access.organization",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=["organization", "month"], name="one_invoice_per_month"),
                    models.UniqueConstraint(fields=["organization", "number"], name="one_invoice_per_number"),
                    models.CheckConstraint(condition=Q(month__day=1), name="invoice_is_of_a_month"),
                    models.CheckConstraint(
                        condition=Q(number__gt=0, spent_to_date__gte=0), name="invoice_counts_from_one"
                    ),
                ],
            },
        ),
        migrations.RunSQL(ENTRIES_BEFORE, "DROP FUNCTION billing_entries_before;"),
        migrations.RunSQL(INVOICES_FOLLOW, NO_ORDER),
    ]
