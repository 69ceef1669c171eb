"""What models cannot say: an append-only audit, a key's project in the key's organization, a hot row."""

from django.db import migrations

AUDIT_IS_APPEND_ONLY = """
CREATE FUNCTION access_audit_entry_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'An audit entry is never changed or deleted.' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER audit_entry_is_append_only BEFORE UPDATE OR DELETE ON access_auditentry
    FOR EACH ROW EXECUTE FUNCTION access_audit_entry_is_append_only();
"""
AUDIT_IS_OPEN = """
DROP TRIGGER audit_entry_is_append_only ON access_auditentry;
DROP FUNCTION access_audit_entry_is_append_only();
"""

KEY_STAYS_IN_ITS_ORGANIZATION = """
ALTER TABLE access_apikey ADD CONSTRAINT api_key_project_of_its_organization
    FOREIGN KEY (project_id, organization_id) REFERENCES access_project (id, organization_id)
    DEFERRABLE INITIALLY DEFERRED;
"""
KEY_MAY_WANDER = "ALTER TABLE access_apikey DROP CONSTRAINT api_key_project_of_its_organization;"

# Two updates per call on one row: room on its page lets PostgreSQL do without index work (HOT).
ROOM_FOR_UPDATES = (
    "ALTER TABLE access_ratestate SET (fillfactor = 20, autovacuum_vacuum_scale_factor = 0.05);"
)
NO_ROOM = "ALTER TABLE access_ratestate RESET (fillfactor, autovacuum_vacuum_scale_factor);"


class Migration(migrations.Migration):
    dependencies = [("access", "0001_initial")]

    operations = [
        migrations.RunSQL(AUDIT_IS_APPEND_ONLY, AUDIT_IS_OPEN),
        migrations.RunSQL(KEY_STAYS_IN_ITS_ORGANIZATION, KEY_MAY_WANDER),
        migrations.RunSQL(ROOM_FOR_UPDATES, NO_ROOM),
    ]
