"""Each purse's entries are a hash chain: an entry's `chain` is made from the one before it and its own contents.

The database computes it as a row comes in, so every way of writing has it and none can leave it out. `billing.chain`
says the same in Python; a test holds both against each other. What a statement does not show (who did it, under which
key, between which accounts) is in the chain by its digest, `sealed`.
"""

from django.db import migrations, models
from django.db.models import Q

FUNCTIONS = """
CREATE FUNCTION billing_chain_genesis(purse uuid) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT sha256(convert_to('billing purse ' || purse, 'UTF8'))
$$;
CREATE FUNCTION billing_chain_sealed(e billing_ledgerentry) RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN encode(sha256(convert_to(json_build_array(
        e.debit_id, e.credit_id, e.idempotency_key, e.price_id, e.operator
    )::text, 'UTF8')), 'hex');
END $$;
CREATE FUNCTION billing_chain_next(previous bytea, e billing_ledgerentry) RETURNS bytea LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN sha256(previous || convert_to(json_build_array(
        e.id, e.organization_id, e.currency, e.purse_id, e.purse_sequence, e.kind,
        (CASE WHEN e.credit_id = e.purse_id THEN e.amount ELSE -e.amount END)::text, e.balance_after::text,
        e.meter_event_id, e.quantity, e.unit_price::text, e.reverses_id, e.reason, e.request_id,
        (extract(epoch FROM e.created_at) * 1000000)::bigint, billing_chain_sealed(e)
    )::text, 'UTF8'));
END $$;
"""
NO_FUNCTIONS = """
DROP FUNCTION billing_chain_next;
DROP FUNCTION billing_chain_sealed;
DROP FUNCTION billing_chain_genesis;
"""

# The entries that are there already. Their guard is lifted for this one statement: nobody else can write meanwhile,
# and should it fail, the guard is back with everything else.
BACK_FILL = """
SET CONSTRAINTS ALL IMMEDIATE;
LOCK TABLE billing_ledgerentry IN SHARE ROW EXCLUSIVE MODE;
ALTER TABLE billing_ledgerentry DISABLE TRIGGER billing_ledgerentry_is_append_only;
DO $$
DECLARE
    v_entry billing_ledgerentry;
    v_purse uuid;
    v_chain bytea;
BEGIN
    FOR v_entry IN
        SELECT * FROM billing_ledgerentry WHERE purse_id IS NOT NULL ORDER BY purse_id, purse_sequence
    LOOP
        IF v_purse IS DISTINCT FROM v_entry.purse_id THEN
            v_purse := v_entry.purse_id;
            v_chain := billing_chain_genesis(v_purse);
        END IF;
        v_chain := billing_chain_next(v_chain, v_entry);
        UPDATE billing_ledgerentry SET chain = v_chain WHERE id = v_entry.id;
    END LOOP;
END $$;
ALTER TABLE billing_ledgerentry ENABLE TRIGGER billing_ledgerentry_is_append_only;
SET CONSTRAINTS ALL DEFERRED;
"""

# VOLATILE: each query in it sees the rows that the same INSERT has brought before this one.
# A purse's entries also stand in the order of their times: should a clock step back, an entry gets the time of the one
# before it. So a period of a purse is a run of its sequence, and a later entry never falls into a period that is over.
CHAIN = """
CREATE FUNCTION billing_chain_entry() RETURNS trigger LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_previous record;
BEGIN
    NEW.chain := NULL;
    IF NEW.purse_sequence = 1 THEN
        NEW.chain := billing_chain_next(billing_chain_genesis(NEW.purse_id), NEW);
    ELSIF NEW.purse_id IS NOT NULL THEN
        SELECT e.chain, e.created_at INTO v_previous FROM billing_ledgerentry AS e
         WHERE e.purse_id = NEW.purse_id AND e.purse_sequence = NEW.purse_sequence - 1;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'Entry number % of a purse comes without the one before it.', NEW.purse_sequence
                USING ERRCODE = 'restrict_violation';
        END IF;
        NEW.created_at := greatest(NEW.created_at, v_previous.created_at);
        NEW.chain := billing_chain_next(v_previous.chain, NEW);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER billing_ledgerentry_is_chained BEFORE INSERT ON billing_ledgerentry
    FOR EACH ROW EXECUTE FUNCTION billing_chain_entry();
"""
NO_CHAIN = """
DROP TRIGGER billing_ledgerentry_is_chained ON billing_ledgerentry;
DROP FUNCTION billing_chain_entry();
"""


class Migration(migrations.Migration):
    dependencies = [("billing", "0004_plain_calls")]

    operations = [
        migrations.AddField(
            model_name="ledgerentry",
            name="chain",
            field=models.BinaryField(max_length=32, null=True),
        ),
        migrations.RunSQL(FUNCTIONS, NO_FUNCTIONS),
        migrations.RunSQL(BACK_FILL, migrations.RunSQL.noop),
        migrations.RunSQL(CHAIN, NO_CHAIN),
        migrations.AddConstraint(
            model_name="ledgerentry",
            constraint=models.CheckConstraint(
                condition=Q(purse__isnull=True, chain__isnull=True)
                | Q(purse__isnull=False, chain__isnull=False),
                name="entry_of_a_purse_is_chained",
            ),
        ),
    ]
