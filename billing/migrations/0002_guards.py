"""What models cannot say: rows that are never rewritten, prices and minutes that cannot overlap."""

from django.db import migrations

APPEND_ONLY_TABLES = ("billing_ledgerentry", "billing_meterevent", "billing_storageline")

REFUSE_REWRITING = """
CREATE FUNCTION billing_refuse_rewriting() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % is refused. A correction is a new, reversing row.', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation';
END $$;
"""


def _append_only(table: str) -> str:
    return f"""
CREATE TRIGGER {table}_is_append_only BEFORE UPDATE OR DELETE ON {table}
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_rewriting();
CREATE TRIGGER {table}_is_never_emptied BEFORE TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_rewriting();
"""


def _rewritable(table: str) -> str:
    return f"""
DROP TRIGGER {table}_is_append_only ON {table};
DROP TRIGGER {table}_is_never_emptied ON {table};
"""


# A purse without entries may be as wrong as one with: none is ever deleted.
PURSES_STAY = """
CREATE TRIGGER billing_ledgeraccount_stays BEFORE DELETE ON billing_ledgeraccount
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_rewriting();
CREATE TRIGGER billing_ledgeraccount_is_never_emptied BEFORE TRUNCATE ON billing_ledgeraccount
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_rewriting();
"""
PURSES_MAY_GO = """
DROP TRIGGER billing_ledgeraccount_stays ON billing_ledgeraccount;
DROP TRIGGER billing_ledgeraccount_is_never_emptied ON billing_ledgeraccount;
"""

# The one change that a price may see is to be closed, and that five minutes ahead or more. Readers remember a price
# for less than that. The lock makes whoever closes wait for those who are just reading (price_book takes it shared).
PRICES_STAY = """
CREATE FUNCTION billing_price_is_only_closed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW IS NOT DISTINCT FROM OLD THEN
        RETURN NEW;
    END IF;
    IF TG_OP <> 'UPDATE' OR OLD.valid_to IS NOT NULL OR NEW.valid_to IS NULL
        OR (NEW.id, NEW.priced_item_id, NEW.per_million, NEW.valid_from, NEW.created_at)
            IS DISTINCT FROM (OLD.id, OLD.priced_item_id, OLD.per_million, OLD.valid_from, OLD.created_at) THEN
        RAISE EXCEPTION 'A price is never changed or deleted; the open one can be closed, once.'
            USING ERRCODE = 'restrict_violation';
    END IF;
    PERFORM pg_advisory_xact_lock(7305221001);
    IF NEW.valid_to < clock_timestamp() + interval '300 seconds' THEN
        RAISE EXCEPTION 'A price change is announced at least 300 seconds ahead.'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER billing_price_is_only_closed BEFORE UPDATE OR DELETE ON billing_price
    FOR EACH ROW EXECUTE FUNCTION billing_price_is_only_closed();
CREATE TRIGGER billing_price_is_never_emptied BEFORE TRUNCATE ON billing_price
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_rewriting();
"""
PRICES_MAY_CHANGE = """
DROP TRIGGER billing_price_is_only_closed ON billing_price;
DROP TRIGGER billing_price_is_never_emptied ON billing_price;
DROP FUNCTION billing_price_is_only_closed();
"""

# A scalar written as a range of one needs no btree_gist.
NO_OVERLAP = """
ALTER TABLE billing_price ADD CONSTRAINT prices_do_not_overlap EXCLUDE USING gist (
    int8range(priced_item_id, priced_item_id, '[]') WITH &&, tstzrange(valid_from, valid_to) WITH &&);
ALTER TABLE billing_storageline ADD CONSTRAINT a_minute_is_charged_once EXCLUDE USING gist (
    int8range(segment_id, segment_id, '[]') WITH &&, int4range(first_minute, end_minute) WITH &&);
"""
OVERLAP = """
ALTER TABLE billing_price DROP CONSTRAINT prices_do_not_overlap;
ALTER TABLE billing_storageline DROP CONSTRAINT a_minute_is_charged_once;
"""

# Purses are updated by every call: room on their page lets PostgreSQL do without index work (HOT).
ROOM_FOR_UPDATES = """
ALTER TABLE billing_ledgeraccount SET (fillfactor = 30, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE billing_billingaccount SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
"""
NO_ROOM = """
ALTER TABLE billing_ledgeraccount RESET (fillfactor, autovacuum_vacuum_scale_factor);
ALTER TABLE billing_billingaccount RESET (fillfactor, autovacuum_vacuum_scale_factor);
"""


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_initial")]

    operations = [
        migrations.RunSQL(REFUSE_REWRITING, "DROP FUNCTION billing_refuse_rewriting();"),
        *(migrations.RunSQL(_append_only(table), _rewritable(table)) for table in APPEND_ONLY_TABLES),
        migrations.RunSQL(PURSES_STAY, PURSES_MAY_GO),
        migrations.RunSQL(PRICES_STAY, PRICES_MAY_CHANGE),
        migrations.RunSQL(NO_OVERLAP, OVERLAP),
        migrations.RunSQL(ROOM_FOR_UPDATES, NO_ROOM),
    ]
