"""Many entries at once: a long history that nobody has the time to make call by call."""

from __future__ import annotations

from typing import Any

# As the ledger would write them: the database checks and chains each one.
FILL = """
WITH purse AS (
    UPDATE billing_ledgeraccount SET posted = posted + %(rows)s, entry_count = entry_count + %(rows)s
     WHERE organization_id = %(organization)s AND kind = 'cash'
    RETURNING id, posted - %(rows)s AS posted, entry_count - %(rows)s AS entry_count
)
INSERT INTO billing_ledgerentry (debit_id, credit_id, amount, organization_id, currency, purse_id, purse_sequence,
    balance_after, idempotency_key, kind, reason, operator, request_id, created_at)
SELECT %(funding)s, purse.id, 1, %(organization)s, 'CNY', purse.id, purse.entry_count + n, purse.posted + n,
    'fill:' || %(organization)s || ':' || purse.entry_count + n, 'recharge', 'test', 'test', '', clock_timestamp()
FROM purse, generate_series(1, %(rows)s) AS n ORDER BY n
"""


def fill(caller: Any, *, rows: int) -> None:
    from django.db import connection, transaction

    from billing.models import system_account_id

    about = {
        "organization": caller.organization,
        "rows": rows,
        "funding": system_account_id("funding_cash", "CNY"),
    }
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT 1 FROM billing_billingaccount WHERE organization_id = %s FOR UPDATE",
            [caller.organization],
        )
        cursor.execute(FILL, about)
