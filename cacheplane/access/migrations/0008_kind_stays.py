"""What kind an organization is, is said when it is made: a standard one never gets a clock of its own."""

from django.db import migrations

KIND_STAYS = """
CREATE FUNCTION access_organization_kind_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'An organization stays of the kind that it was made.' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER organization_kind_stays BEFORE UPDATE OF kind ON access_organization
    FOR EACH ROW WHEN (OLD.kind IS DISTINCT FROM NEW.kind) EXECUTE FUNCTION access_organization_kind_stays();
"""
KIND_MAY_CHANGE = """
DROP TRIGGER organization_kind_stays ON access_organization;
DROP FUNCTION access_organization_kind_stays();
"""


class Migration(migrations.Migration):
    dependencies = [("access", "0007_tiers_are_earned")]

    operations = [migrations.RunSQL(KIND_STAYS, KIND_MAY_CHANGE)]
