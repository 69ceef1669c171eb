"""The hold and the settlement of a plain call, each one function: nearly all calls are plain, and each waits for them.

Plain: one purse pays all of it, nothing that is kept can run out of money by it, and nothing has to be looked at
twice. For whatever is not plain both functions raise, having written nothing, and the caller goes the long way, which
decides every case. They write the same rows as the long way does; the same constraints and triggers watch them.
"""

from django.db import migrations

NOT_PLAIN = "CP001"

HOLD = f"""
CREATE FUNCTION billing_hold_plainly(
    p_organization varchar, p_currency varchar, p_reference uuid, p_kind varchar, p_subject varchar,
    p_amount numeric, p_good_from timestamptz, p_good_until timestamptz)
RETURNS timestamptz LANGUAGE plpgsql AS $$
DECLARE
    v_account record;
    v_purse record;
    v_lasting numeric;
    v_free numeric;
    v_at timestamptz;
BEGIN
    SELECT a.currency, a.storage_commitment, a.exhaust_at INTO v_account
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
        OR v_at < p_good_from OR v_at >= p_good_until OR p_amount <= 0
        OR v_purse.id IS NULL OR v_purse.free < p_amount
        OR v_free - v_account.storage_commitment < p_amount
        OR (v_account.storage_commitment > 0 AND coalesce(v_lasting, 0) < v_account.storage_commitment) THEN
        RAISE EXCEPTION 'This hold is not plain.' USING ERRCODE = '{NOT_PLAIN}';
    END IF;
    UPDATE billing_ledgeraccount AS p SET held = p.held + p_amount WHERE p.id = v_purse.id;
    INSERT INTO billing_hold (reference, organization_id, purse_id, amount, kind, subject, state, created_at)
    VALUES (p_reference, p_organization, v_purse.id, p_amount, p_kind, p_subject, 'open', v_at);
    RETURN v_at;
END $$;
"""

# `p_charges`: one object per charge, in the order of payment: the event's columns, `amount`, `price_id`,
# `unit_price`, and `revenue`, the account that is credited. The purse is found here, so its columns are added here.
SETTLE = f"""
CREATE FUNCTION billing_settle_plainly(
    p_organization varchar, p_currency varchar, p_reference uuid, p_total numeric, p_charges json)
RETURNS timestamptz LANGUAGE plpgsql AS $$
DECLARE
    v_account record;
    v_hold record;
    v_purse record;
    v_count int;
    v_at timestamptz;
BEGIN
    SELECT a.currency, a.exhaust_at INTO v_account
      FROM billing_billingaccount AS a WHERE a.organization_id = p_organization FOR UPDATE;
    v_at := clock_timestamp();
    SELECT count(*) INTO v_count FROM billing_hold AS h WHERE h.reference = p_reference;
    SELECT h.id, h.purse_id, h.amount INTO v_hold
      FROM billing_hold AS h
     WHERE h.reference = p_reference AND h.organization_id = p_organization AND h.state = 'open';
    -- Whose turn it is to pay: the hold's own purse, unless one that comes before it has got money meanwhile.
    SELECT p.id, p.posted, p.entry_count INTO v_purse
      FROM billing_ledgeraccount AS p
     WHERE p.organization_id = p_organization
       AND (p.id = v_hold.purse_id
            OR ((p.expires_at IS NULL OR p.expires_at > v_at) AND p.posted > p.held))
     ORDER BY p.kind = 'cash', p.expires_at LIMIT 1;
    IF v_account.currency IS DISTINCT FROM p_currency OR v_account.exhaust_at IS NOT NULL OR v_count <> 1
        OR v_hold.id IS NULL OR v_hold.amount < p_total OR v_purse.id IS DISTINCT FROM v_hold.purse_id THEN
        RAISE EXCEPTION 'This settlement is not plain.' USING ERRCODE = '{NOT_PLAIN}';
    END IF;
    WITH charge AS MATERIALIZED (
        SELECT c.*, sum(c.amount) OVER (ORDER BY c.number) AS paid_so_far
          FROM ROWS FROM (json_to_recordset(p_charges) AS (
                id uuid, meter varchar, source varchar, source_key varchar, subject varchar, model varchar,
                quantity bigint, unit varchar, occurred_at timestamptz, api_key_id varchar, request_id varchar,
                amount numeric, price_id bigint, unit_price numeric, revenue uuid))
               WITH ORDINALITY AS c (id, meter, source, source_key, subject, model, quantity, unit, occurred_at,
                                     api_key_id, request_id, amount, price_id, unit_price, revenue, number)
    ), event AS (
        INSERT INTO billing_meterevent (id, organization_id, meter, source, source_key, subject, model, quantity,
                                        unit, occurred_at, api_key_id, request_id)
        SELECT c.id, p_organization, c.meter, c.source, c.source_key, c.subject, c.model, c.quantity,
               c.unit, c.occurred_at, c.api_key_id, c.request_id
          FROM charge AS c
    )
    INSERT INTO billing_ledgerentry (debit_id, credit_id, amount, organization_id, currency, purse_id,
                                     purse_sequence, balance_after, idempotency_key, kind, meter_event_id,
                                     price_id, quantity, unit_price, reason, operator, request_id, created_at)
    SELECT v_purse.id, c.revenue, c.amount, p_organization, p_currency, v_purse.id,
           v_purse.entry_count + row_number() OVER (ORDER BY c.number), v_purse.posted - c.paid_so_far,
           c.source || ':' || c.source_key || ':' || v_purse.id, c.meter, c.id,
           c.price_id, c.quantity, c.unit_price, '', '', c.request_id, v_at
      FROM charge AS c WHERE c.amount > 0 ORDER BY c.number;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    UPDATE billing_ledgeraccount AS p
       SET posted = p.posted - p_total, held = p.held - v_hold.amount, entry_count = p.entry_count + v_count
     WHERE p.id = v_purse.id;
    UPDATE billing_hold AS h SET state = 'settled', closed_at = v_at WHERE h.id = v_hold.id;
    RETURN v_at;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("billing", "0003_first_prices")]

    operations = [
        migrations.RunSQL(HOLD, "DROP FUNCTION billing_hold_plainly;"),
        migrations.RunSQL(SETTLE, "DROP FUNCTION billing_settle_plainly;"),
    ]
