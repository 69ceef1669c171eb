"""What a call on a cache object spared, and on which model, as facts; and pages of entries that read their rows alone.

`billing_settle_plainly` writes the two facts beside the others; all else in it is as it was. A process that has not
been updated yet tells neither: its calls have no cached tokens.
"""

from importlib import import_module

from django.db import migrations, models
from django.db.models.functions import Abs

before = import_module("billing.migrations.0004_plain_calls")
NOT_PLAIN = before.NOT_PLAIN

SETTLE = f"""
CREATE OR REPLACE FUNCTION billing_settle_plainly(
    p_organization varchar, p_currency varchar, p_reference uuid, p_total numeric, p_charges json)
RETURNS timestamptz LANGUAGE plpgsql AS $$
DECLARE
    v_account record;
    v_hold record;
    v_purse record;
    v_count int;
    v_at timestamptz;
BEGIN
    SELECT a.currency, a.exhaust_at, a.clock_offset INTO v_account
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
        OR v_account.clock_offset <> interval '0'
        OR v_hold.id IS NULL OR v_hold.amount < p_total OR v_purse.id IS DISTINCT FROM v_hold.purse_id THEN
        RAISE EXCEPTION 'This settlement is not plain.' USING ERRCODE = '{NOT_PLAIN}';
    END IF;
    WITH charge AS MATERIALIZED (
        SELECT c.*, sum(c.amount) OVER (ORDER BY c.number) AS paid_so_far
          FROM ROWS FROM (json_to_recordset(p_charges) AS (
                id uuid, meter varchar, source varchar, source_key varchar, subject varchar, model varchar,
                quantity bigint, unit varchar, occurred_at timestamptz, api_key_id varchar, request_id varchar,
                amount numeric, price_id bigint, unit_price numeric, revenue uuid,
                cached_tokens bigint, called_model varchar))
               WITH ORDINALITY AS c (id, meter, source, source_key, subject, model, quantity, unit, occurred_at,
                                     api_key_id, request_id, amount, price_id, unit_price, revenue,
                                     cached_tokens, called_model, number)
    ), event AS (
        INSERT INTO billing_meterevent (id, organization_id, meter, source, source_key, subject, model, quantity,
                                        unit, occurred_at, api_key_id, request_id, cached_tokens, called_model)
        SELECT c.id, p_organization, c.meter, c.source, c.source_key, c.subject, c.model, c.quantity,
               c.unit, c.occurred_at, c.api_key_id, c.request_id, c.cached_tokens, coalesce(c.called_model, '')
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
    dependencies = [("billing", "0008_tier_prices")]

    operations = [
        migrations.AddField(
            model_name="meterevent",
            name="called_model",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="Call on a cache object: the model that answered.",
                max_length=128,
            ),
        ),
        migrations.AddField(
            model_name="meterevent",
            name="cached_tokens",
            field=models.BigIntegerField(
                blank=True,
                help_text="Call on a cache object: prompt tokens that were taken from it.",
                null=True,
            ),
        ),
        migrations.AddConstraint(
            model_name="meterevent",
            constraint=models.CheckConstraint(
                condition=models.Q(cached_tokens__isnull=True) | models.Q(cached_tokens__gte=0, meter="call"),
                name="calls_tell_cached_tokens",
            ),
        ),
        migrations.RemoveIndex(model_name="ledgerentry", name="entries_of_organization"),
        migrations.AddIndex(
            model_name="ledgerentry",
            index=models.Index(
                models.F("organization"),
                models.OrderBy(Abs("id"), descending=True),
                name="entries_of_organization",
            ),
        ),
        migrations.RunSQL(SETTLE, before.SETTLE.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)),
    ]
