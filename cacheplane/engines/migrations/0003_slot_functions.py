"""Taking and giving back a slot as functions: a call pays for planning them once per connection."""

from django.db import migrations

# The last slot is the lane of precompute: chats take it only when no other is free, so a prefill seldom waits.
# MATERIALIZED: joined as a plain sub-select, it may be scanned again for each slot, and take one more each time.
LEASE = """
CREATE FUNCTION engines_lease_slot(
    p_engine bigint, p_owner varchar, p_seconds float8, p_wanted uuid, p_prefill boolean)
RETURNS TABLE (slot_id bigint, slot_index int, was_resident uuid, was_organization varchar, engine_fingerprint varchar)
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    WITH free AS MATERIALIZED (
        SELECT candidate.id, candidate.resident, candidate.resident_organization, engine.fingerprint
          FROM engines_engineslot AS candidate
          JOIN engines_engine AS engine ON engine.id = candidate.engine_id
         WHERE candidate.engine_id = p_engine
           AND NOT engine.is_draining
           AND (candidate.lease_until IS NULL OR candidate.lease_until < clock_timestamp())
           AND (NOT p_prefill OR candidate.index = engine.total_slots - 1)
         ORDER BY (candidate.resident IS NOT NULL AND candidate.resident = p_wanted) DESC,
                  (candidate.index = engine.total_slots - 1),
                  (candidate.resident IS NULL) DESC,
                  candidate.last_used_at NULLS FIRST
         LIMIT 1
           FOR UPDATE OF candidate SKIP LOCKED)
    UPDATE engines_engineslot AS slot
       SET lease_owner = p_owner,
           lease_until = clock_timestamp() + make_interval(secs => p_seconds),
           last_used_at = clock_timestamp()
      FROM free
     WHERE slot.id = free.id
    RETURNING slot.id, slot.index, free.resident, free.resident_organization, free.fingerprint;
END $$;
"""

RELEASE = """
CREATE FUNCTION engines_release_slot(
    p_slot bigint, p_owner varchar, p_resident uuid, p_resident_organization varchar)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE engines_engineslot AS slot
       SET lease_owner = '', lease_until = NULL, resident = p_resident,
           resident_organization = p_resident_organization, last_used_at = clock_timestamp()
     WHERE slot.id = p_slot AND slot.lease_owner = p_owner;
    RETURN FOUND;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("engines", "0002_served_models")]

    operations = [
        migrations.RunSQL(LEASE, "DROP FUNCTION engines_lease_slot;"),
        migrations.RunSQL(RELEASE, "DROP FUNCTION engines_release_slot;"),
    ]
