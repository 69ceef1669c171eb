"""Admission and its end as functions: a call pays for planning them once per connection, not once per call."""

from django.db import migrations

MINUTES = "(greatest(0, extract(epoch FROM clock_timestamp() - r.levels_at)::float8) / 60)"
REQUESTS_NOW = f"greatest(0, r.requests_level - {MINUTES} * p_requests_per_minute)"
TOKENS_NOW = f"greatest(0, r.tokens_level - {MINUTES} * p_tokens_per_minute)"
TODAY = "(clock_timestamp() AT TIME ZONE 'UTC' + interval '8 hours')::date"
# `>=`: should the database's clock be set back over midnight, the later day goes on counting.
DAY_TOKENS_NOW = f"(CASE WHEN r.day >= {TODAY} THEN r.day_tokens ELSE 0 END)"

# Written out where they stand, and not computed once in a sub-select: after a wait for the row PostgreSQL
# evaluates the statement's own expressions again, but keeps what other tables and sub-selects gave it before.
ADMIT = f"""
CREATE FUNCTION access_admit(
    p_organization varchar, p_call uuid, p_gateway uuid, p_tokens bigint, p_concurrency bigint,
    p_requests_per_minute bigint, p_tokens_per_minute bigint, p_tokens_per_day bigint)
RETURNS SETOF varchar LANGUAGE plpgsql AS $$
DECLARE
    -- Work without a call of its own, such as a creation, holds no place.
    p_calls CONSTANT int := CASE WHEN p_call IS NULL THEN 0 ELSE 1 END;
BEGIN
    UPDATE access_ratestate AS r
    SET in_flight = r.in_flight + p_calls,
        requests_level = {REQUESTS_NOW} + 1,
        tokens_level = {TOKENS_NOW} + p_tokens,
        levels_at = greatest(r.levels_at, clock_timestamp()),
        day_tokens = {DAY_TOKENS_NOW} + p_tokens,
        day = greatest(r.day, {TODAY})
    WHERE r.organization_id = p_organization
      AND (p_calls = 0 OR r.in_flight + p_calls <= p_concurrency)
      AND {REQUESTS_NOW} + 1 <= p_requests_per_minute
      AND {TOKENS_NOW} + p_tokens <= p_tokens_per_minute
      AND (p_tokens_per_day IS NULL OR {DAY_TOKENS_NOW} + p_tokens <= p_tokens_per_day);
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF p_call IS NOT NULL THEN
        INSERT INTO access_callinflight (id, organization_id, gateway_id, tokens_reserved, started_at)
        VALUES (p_call, p_organization, p_gateway, p_tokens, clock_timestamp());
    END IF;
    RETURN NEXT p_organization;
END $$;
"""

# What leaked away while the call ran is given back once more: wrong in the caller's favour, by one
# reservation at most.
FINISH = """
CREATE FUNCTION access_finish_call(p_call uuid, p_tokens_used bigint)
RETURNS SETOF varchar LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    WITH ended AS (
        DELETE FROM access_callinflight AS c WHERE c.id = p_call
        RETURNING c.organization_id, c.tokens_reserved - p_tokens_used AS unused,
                  (c.started_at AT TIME ZONE 'UTC' + interval '8 hours')::date AS started_on
    )
    UPDATE access_ratestate AS r
    SET in_flight = r.in_flight - 1,
        tokens_level = greatest(0, r.tokens_level - ended.unused),
        day_tokens = CASE WHEN r.day = ended.started_on THEN greatest(0, r.day_tokens - ended.unused)
                          ELSE r.day_tokens END
    FROM ended WHERE r.organization_id = ended.organization_id
    RETURNING r.organization_id;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("access", "0003_tiers_and_gates")]

    operations = [
        migrations.RunSQL(ADMIT, "DROP FUNCTION access_admit;"),
        migrations.RunSQL(FINISH, "DROP FUNCTION access_finish_call;"),
    ]
