"""Admission may ask for a margin: that the limits leave room for so many times the tokens that it takes.

Who is admitted by an upper bound takes more than he needs for a while: only where that keeps nobody from anything.
"""

from importlib import import_module

from django.db import migrations

before = import_module("cacheplane.access.migrations.0004_admission_functions")
TODAY, TOKENS_NOW = before.TODAY, before.TOKENS_NOW
REQUESTS_NOW, DAY_TOKENS_NOW = before.REQUESTS_NOW, before.DAY_TOKENS_NOW

SIGNATURE = "varchar, uuid, uuid, bigint, bigint, bigint, bigint, bigint"

ADMIT = f"""
DROP FUNCTION access_admit({SIGNATURE});
CREATE FUNCTION access_admit(
    p_organization varchar, p_call uuid, p_gateway uuid, p_tokens bigint, p_concurrency bigint,
    p_requests_per_minute bigint, p_tokens_per_minute bigint, p_tokens_per_day bigint, p_margin int DEFAULT 1)
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
      AND {TOKENS_NOW} + p_tokens * p_margin <= p_tokens_per_minute
      AND (p_tokens_per_day IS NULL OR {DAY_TOKENS_NOW} + p_tokens * p_margin <= p_tokens_per_day);
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
BACK = f"DROP FUNCTION access_admit({SIGNATURE}, int);{before.ADMIT}"


class Migration(migrations.Migration):
    dependencies = [("access", "0004_admission_functions")]

    operations = [migrations.RunSQL(ADMIT, BACK)]
