"""Prices per tier, and since when an account pays which tier's prices."""

import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models

# An organization is known by a text. A range of texts that holds one needs no btree_gist, as a range of one number does.
NO_OVERLAP = """
CREATE TYPE billing_textrange AS RANGE (subtype = text, collation = "C");
ALTER TABLE billing_accountpricetier ADD CONSTRAINT price_tiers_do_not_overlap EXCLUDE USING gist (
    billing_textrange(organization_id::text, organization_id::text, '[]') WITH &&,
    tstzrange(valid_from, valid_to) WITH &&);
"""
OVERLAP = """
ALTER TABLE billing_accountpricetier DROP CONSTRAINT price_tiers_do_not_overlap;
DROP TYPE billing_textrange;
"""

# now() is when the transaction began: a change under the account's lock is dated after that, and nothing that was
# charged before the lock was there is touched.
PAST_TIERS_STAY = """
CREATE FUNCTION billing_price_tier_is_only_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.valid_from >= now() THEN
            RETURN OLD;
        END IF;
    ELSIF (NEW.id, NEW.organization_id, NEW.tier, NEW.valid_from, NEW.created_at)
            IS NOT DISTINCT FROM (OLD.id, OLD.organization_id, OLD.tier, OLD.valid_from, OLD.created_at)
        AND coalesce(OLD.valid_to, 'infinity') >= now() AND coalesce(NEW.valid_to, 'infinity') >= now() THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'What tier an account had is never changed: its tier changes from now on.'
        USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER billing_price_tier_is_only_ended BEFORE UPDATE OR DELETE ON billing_accountpricetier
    FOR EACH ROW EXECUTE FUNCTION billing_price_tier_is_only_ended();
CREATE TRIGGER billing_accountpricetier_is_never_emptied BEFORE TRUNCATE ON billing_accountpricetier
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_rewriting();
"""
PAST_TIERS_MAY_CHANGE = """
DROP TRIGGER billing_price_tier_is_only_ended ON billing_accountpricetier;
DROP TRIGGER billing_accountpricetier_is_never_emptied ON billing_accountpricetier;
DROP FUNCTION billing_price_tier_is_only_ended();
"""

# A tier's first price ends, for that tier, the price for all: that is announced too, for the same readers.
TIER_PRICES_ARE_ANNOUNCED = """
CREATE FUNCTION billing_tier_price_is_announced() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.valid_from < clock_timestamp() + interval '300 seconds' AND EXISTS (
        SELECT FROM billing_priceditem AS own
          JOIN billing_priceditem AS general
            ON (general.meter, general.model, general.currency, general.tier)
             = (own.meter, own.model, own.currency, '')
          JOIN billing_price AS p ON p.priced_item_id = general.id
         WHERE own.id = NEW.priced_item_id AND own.tier <> '')
    THEN
        RAISE EXCEPTION 'A price change is announced at least 300 seconds ahead.'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER billing_tier_price_is_announced BEFORE INSERT ON billing_price
    FOR EACH ROW EXECUTE FUNCTION billing_tier_price_is_announced();
"""
TIER_PRICES_COME_AT_ONCE = """
DROP TRIGGER billing_tier_price_is_announced ON billing_price;
DROP FUNCTION billing_tier_price_is_announced();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0003_tiers_and_gates"),
        ("billing", "0007_margin_of_a_hold"),
    ]

    operations = [
        migrations.RemoveConstraint(model_name="priceditem", name="one_item_per_meter_and_model"),
        migrations.AddField(
            model_name="priceditem",
            name="tier",
            field=models.CharField(
                blank=True, default="", help_text="A tier's name. Empty: for all tiers.", max_length=32
            ),
        ),
        migrations.AddConstraint(
            model_name="priceditem",
            constraint=models.UniqueConstraint(
                fields=("meter", "model", "currency", "tier"), name="one_item_per_meter_model_and_tier"
            ),
        ),
        migrations.AddIndex(
            model_name="ledgerentry",
            index=models.Index(
                condition=models.Q(("kind", "recharge")),
                fields=["organization"],
                name="recharges_of_organization",
            ),
        ),
        migrations.CreateModel(
            name="AccountPriceTier",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("tier", models.CharField(max_length=32)),
                ("valid_from", models.DateTimeField()),
                ("valid_to", models.DateTimeField(blank=True, null=True)),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
                (
                    "organization",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="price_tiers",
                        to="access.organization",
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(fields=["organization", "valid_from"], name="price_tiers_of_organization")
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("tier", ""), _negated=True), name="price_tier_is_named"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("valid_to__isnull", True),
                            ("valid_to__gt", models.F("valid_from")),
                            _connector="OR",
                        ),
                        name="price_tier_ends_after_start",
                    ),
                ],
            },
        ),
        migrations.RunSQL(NO_OVERLAP, OVERLAP),
        migrations.RunSQL(PAST_TIERS_STAY, PAST_TIERS_MAY_CHANGE),
        migrations.RunSQL(TIER_PRICES_ARE_ANNOUNCED, TIER_PRICES_COME_AT_ONCE),
    ]
