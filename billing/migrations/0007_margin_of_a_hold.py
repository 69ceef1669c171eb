"""A plain hold may ask for a margin: that what it takes be there so many times over.

Who holds by an upper bound holds more than he needs for a while. Where there is plenty it keeps nobody from anything;
where there is not, the function refuses, and the exact amount is found first.
"""

from importlib import import_module

from django.db import migrations

before = import_module("billing.migrations.0004_plain_calls")

NOT_PLAIN = "CP001"
SIGNATURE = "varchar, varchar, uuid, varchar, varchar, numeric, timestamptz, timestamptz"

HOLD = f"""
DROP FUNCTION billing_hold_plainly({SIGNATURE});
CREATE FUNCTION billing_hold_plainly(
    p_organization varchar, p_currency varchar, p_reference uuid, p_kind varchar, p_subject varchar,
    p_amount numeric, p_good_from timestamptz, p_good_until timestamptz, p_margin int DEFAULT 1)
RETURNS timestamptz LANGUAGE plpgsql AS $$
DECLARE
    v_account record;
    v_purse record;
    v_lasting numeric;
    v_free numeric;
    v_at timestamptz;
BEGIN
    SELECT a.currency, a.storage_commitment, a.exhaust_at, a.clock_offset INTO v_account
      FROM billing_billingaccount AS a WHERE a.organization_id = p_organization FOR UPDATE;
    -- Read after the lock was there, and in statements of their own: they see what it was waited for.
    v_at := clock_timestamp();
    SELECT sum(p.posted - p.held) FILTER (WHERE p.expires_at IS NULL), sum(p.posted - p.held)
      INTO v_lasting, v_free
      FROM billing_ledgeraccount AS p
     WHERE p.organization_id = p_organization AND (p.expires_at IS NULL OR p.expires_at > v_at);
    SELECT p.id, p.posted - p.held AS free, p.expires_at INTO v_purse
      FROM billing_ledgeraccount AS p
     WHERE p.organization_id = p_organization AND (p.expires_at IS NULL OR p.expires_at > v_at)
       AND p.posted > p.held
     ORDER BY p.kind = 'cash', p.expires_at LIMIT 1;
    IF v_purse.expires_at IS NULL THEN
        v_lasting := v_lasting - p_amount;
    END IF;
    IF v_account.currency IS DISTINCT FROM p_currency OR v_account.exhaust_at IS NOT NULL
        -- A sandbox's clock, which a later migration brings: this function asks the database's.
        OR v_account.clock_offset <> interval '0'
        OR v_at < p_good_from OR v_at >= p_good_until OR p_amount <= 0
        OR v_purse.id IS NULL OR v_purse.free < p_amount * p_margin
        OR v_free - v_account.storage_commitment < p_amount * p_margin
        OR (v_account.storage_commitment > 0 AND coalesce(v_lasting, 0) < v_account.storage_commitment) THEN
        RAISE EXCEPTION 'This hold is not plain.' USING ERRCODE = '{NOT_PLAIN}';
    END IF;
    UPDATE billing_ledgeraccount AS p SET held = p.held + p_amount WHERE p.id = v_purse.id;
    INSERT INTO billing_hold (reference, organization_id, purse_id, amount, kind, subject, state, created_at)
    VALUES (p_reference, p_organization, v_purse.id, p_amount, p_kind, p_subject, 'open', v_at);
    RETURN v_at;
END $$;
"""
BACK = f"DROP FUNCTION billing_hold_plainly({SIGNATURE}, int);{before.HOLD}"


class Migration(migrations.Migration):
    dependencies = [("billing", "0006_invoices")]

    operations = [migrations.RunSQL(HOLD, BACK)]
