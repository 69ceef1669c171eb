"""Until now a tier was given. From now on it is earned: what was given beyond, or below, that is an override."""

from django.db import migrations

GIVEN_BECOMES_OVERRIDE = """
WITH earned AS (
    SELECT o.id, o.tier_id AS given, (
        SELECT t.slug FROM access_tier t WHERE t.recharged_from <= coalesce((
            SELECT sum(e.amount) FROM billing_ledgerentry e
            JOIN billing_ledgeraccount p ON p.id = e.purse_id AND p.kind = 'cash'
            WHERE e.organization_id = o.id AND e.kind = 'recharge'
            AND NOT EXISTS (SELECT FROM billing_ledgerentry r WHERE r.reverses_id = e.id)), 0)
        ORDER BY t.rank DESC LIMIT 1) AS slug
    FROM access_organization o
), kept AS (
    INSERT INTO access_tieroverride (organization_id, tier_id, reason, created_by, created_at)
    SELECT id, given, 'It was given before tiers were earned.', 'migration', now()
    FROM earned WHERE slug <> given
)
UPDATE access_organization AS o SET tier_id = e.slug FROM earned e WHERE e.id = o.id AND e.slug <> o.tier_id
"""
# No price was any tier's alone until now, so it does not matter which tier it was then: the first row says it for all.
BILLING_KNOWS_THE_TIER = """
INSERT INTO billing_accountpricetier (organization_id, tier, valid_from)
SELECT a.organization_id, coalesce(v.tier_id, o.tier_id), a.created_at
FROM billing_billingaccount a
JOIN access_organization o ON o.id = a.organization_id
LEFT JOIN access_tieroverride v ON v.organization_id = o.id
"""


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0006_tier_overrides"),
        ("billing", "0008_tier_prices"),
    ]

    operations = [
        migrations.RunSQL(GIVEN_BECOMES_OVERRIDE, migrations.RunSQL.noop),
        migrations.RunSQL(BILLING_KNOWS_THE_TIER, migrations.RunSQL.noop),
    ]
