"""The promises of billing, each a question to the database that must have no answer.

They are asked in plain SQL, not through the rooms that wrote the rows, so that one mistake is not made twice. Who
knows more than billing (which cache object is active) adds a check of its own with `register`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from django.db import connection

from billing import chain_audit, rating, segments
from billing.models import BillingAccount, LedgerAccount, StorageSegment
from billing.rating import Fund
from billing.snapshots import snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A promise that is broken: which one, by what, and how."""

    invariant: str
    subject: str
    detail: str


Check = Callable[[datetime], Iterable[Violation]]

_registered: dict[str, Check] = {}


def register(name: str, function: Check) -> None:
    """Add a check that billing cannot make by itself. The same name again replaces it."""
    _registered[name] = function


def violations(at: datetime) -> list[Violation]:
    """All broken promises, none of which there should be.

    Outside a transaction all questions see one snapshot: what is written meanwhile does not look like a mistake.
    """
    with snapshot():
        return [*_violations(), *_registered_violations(at)]


def violations_of_billing() -> list[Violation]:
    """The same without what others have registered, for who stores what is no cache object."""
    with snapshot():
        return _violations()


def _violations() -> list[Violation]:
    found = [
        Violation(invariant=invariant, subject=str(subject), detail=str(detail))
        for invariant, query in QUERIES
        for subject, detail in _rows(query)
    ]
    found += _broken_chains()
    found += _misjudged_accounts()
    return found


def _registered_violations(at: datetime) -> Iterable[Violation]:
    for function in _registered.values():
        yield from function(at)


def names() -> list[str]:
    """Every promise that `violations` looks at."""
    return [*dict.fromkeys(invariant for invariant, _ in QUERIES), RECKONING, *_registered]


def _rows(query: str) -> list[tuple[object, object]]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        rows: list[tuple[object, object]] = cursor.fetchall()
    return rows


POSTED = "I1 posted = credits - debits, an unbroken chain"
HELD = "I2 held = open holds, 0 <= held <= posted"
EXPLAINED = "I3 each fact is charged, each charge has its fact"
RERATED = "I4 amount = quantity x price in force"
TILED = "I5 storage lines tile each segment"
ONE_OPEN = "I6 one open segment per subject at most"
INVOICED = "I7 invoices are the rounded ledger, in order"
EXPORTED = "I8 exported = local, by meter and hour"
BALANCED = "I9 all accounts together are zero"
RECKONING = "I10 commitment and exhaustion are as rated"

QUERIES = [
    (
        POSTED,
        """
        SELECT p.id, format('posted %s, entries make %s', p.posted, coalesce(e.total, 0))
        FROM billing_ledgeraccount p LEFT JOIN (
            SELECT purse_id, sum(CASE WHEN credit_id = purse_id THEN amount ELSE -amount END) AS total
            FROM billing_ledgerentry WHERE purse_id IS NOT NULL GROUP BY purse_id) e ON e.purse_id = p.id
        WHERE p.posted <> coalesce(e.total, 0)
        """,
    ),
    (
        POSTED,
        """
        SELECT p.id, format('%s entries counted, %s found, the last is number %s', p.entry_count, e.n, e.last)
        FROM billing_ledgeraccount p JOIN (
            SELECT purse_id, count(*) AS n, max(purse_sequence) AS last
            FROM billing_ledgerentry WHERE purse_id IS NOT NULL GROUP BY purse_id) e ON e.purse_id = p.id
        WHERE (p.entry_count, p.entry_count) <> (e.n, e.last)
        """,
    ),
    (
        POSTED,
        """
        SELECT id, format('balance after entry is %s, the entries up to it make %s', balance_after, running) FROM (
            SELECT id, balance_after, sum(CASE WHEN credit_id = purse_id THEN amount ELSE -amount END)
                OVER (PARTITION BY purse_id ORDER BY purse_sequence) AS running
            FROM billing_ledgerentry WHERE purse_id IS NOT NULL) e
        WHERE balance_after <> running
        """,
    ),
    (
        HELD,
        """
        SELECT p.id, format('posted %s, held %s, open holds make %s', p.posted, p.held, coalesce(h.total, 0))
        FROM billing_ledgeraccount p LEFT JOIN (
            SELECT purse_id, sum(amount) AS total FROM billing_hold WHERE state = 'open' GROUP BY purse_id) h
            ON h.purse_id = p.id
        WHERE p.held <> coalesce(h.total, 0) OR p.held < 0 OR p.held > p.posted
        """,
    ),
    (
        EXPLAINED,
        """
        SELECT m.id, format('%s of %s: no price was in force', m.quantity, m.meter)
        FROM billing_meterevent m
        LEFT JOIN billing_billingaccount a ON a.organization_id = m.organization_id
        WHERE NOT EXISTS (
            SELECT 1 FROM billing_priceditem i JOIN billing_price p ON p.priced_item_id = i.id
            WHERE i.meter = m.meter AND i.model = m.model AND i.currency = a.currency
            AND p.valid_from <= m.occurred_at AND (p.valid_to IS NULL OR p.valid_to > m.occurred_at)
            AND (i.tier = '' OR EXISTS (
                SELECT FROM billing_accountpricetier t
                WHERE t.organization_id = m.organization_id AND t.tier = i.tier
                AND t.valid_from <= m.occurred_at AND (t.valid_to IS NULL OR t.valid_to > m.occurred_at))))
        """,
    ),
    (
        EXPLAINED,
        """
        SELECT e.id, format('an entry of kind %s does not fit its event', e.kind)
        FROM billing_ledgerentry e LEFT JOIN billing_meterevent m ON m.id = e.meter_event_id
        WHERE e.kind NOT IN ('recharge', 'reversal', 'lapse')
        AND (m.id IS NULL OR m.organization_id <> e.organization_id OR m.quantity <> e.quantity
            OR (e.kind <> 'waiver' AND e.kind <> m.meter))
        """,
    ),
    (
        # A purse is another organization's, a system account is not what the kind of entry says, or does not exist.
        EXPLAINED,
        """
        SELECT e.id, format('%s moves %s to %s', e.kind, d.kind, c.kind)
        FROM billing_ledgerentry e
        LEFT JOIN billing_ledgeraccount d ON d.id = e.debit_id
        LEFT JOIN billing_ledgeraccount c ON c.id = e.credit_id
        LEFT JOIN billing_ledgeraccount p ON p.id = e.purse_id
        LEFT JOIN billing_meterevent m ON m.id = e.meter_event_id
        WHERE d.id IS NULL OR c.id IS NULL OR d.currency <> e.currency OR c.currency <> e.currency
        OR p.organization_id <> e.organization_id
        OR NOT CASE e.kind
            WHEN 'recharge' THEN c.id = p.id AND d.kind = 'funding_' || p.kind
            WHEN 'lapse' THEN d.id = p.id AND p.kind = 'voucher' AND c.kind = 'funding_voucher'
            WHEN 'waiver' THEN d.kind = 'waived' AND c.kind LIKE 'revenue_%'
            WHEN 'reversal' THEN EXISTS (
                SELECT 1 FROM billing_ledgerentry r WHERE r.id = e.reverses_id AND r.purse_id = e.purse_id
                AND r.amount = e.amount AND r.debit_id = e.credit_id AND r.credit_id = e.debit_id)
            ELSE d.id = p.id AND c.kind = 'revenue_'
                || CASE WHEN m.meter IN ('prompt', 'completion') THEN 'tokens' ELSE m.meter END
            END
        """,
    ),
    (
        # Every fact once more from the price book, the tier's own price first: the month's bill, computed again. But
        # for accounts whose clock is ahead: theirs may have passed an instant before a price for it was announced.
        RERATED,
        """
        SELECT m.id, format('%s %s at %s make %s, %s was booked', m.quantity, m.unit, p.per_million / 1000000,
            m.quantity * p.per_million / 1000000, coalesce(e.total, 0))
        FROM billing_meterevent m
        JOIN billing_billingaccount a ON a.organization_id = m.organization_id
        LEFT JOIN billing_accountpricetier t ON t.organization_id = m.organization_id
            AND t.valid_from <= m.occurred_at AND (t.valid_to IS NULL OR t.valid_to > m.occurred_at)
        LEFT JOIN (billing_priceditem oi JOIN billing_price o ON o.priced_item_id = oi.id)
            ON oi.meter = m.meter AND oi.model = m.model AND oi.currency = a.currency AND oi.tier = t.tier
            AND o.valid_from <= m.occurred_at AND (o.valid_to IS NULL OR o.valid_to > m.occurred_at)
        LEFT JOIN (billing_priceditem gi JOIN billing_price g ON g.priced_item_id = gi.id)
            ON gi.meter = m.meter AND gi.model = m.model AND gi.currency = a.currency AND gi.tier = ''
            AND g.valid_from <= m.occurred_at AND (g.valid_to IS NULL OR g.valid_to > m.occurred_at)
        JOIN billing_price p ON p.id = coalesce(o.id, g.id)
        LEFT JOIN (
            SELECT meter_event_id, sum(amount) AS total, min(price_id) AS price_id, max(price_id) AS other_price_id
            FROM billing_ledgerentry WHERE meter_event_id IS NOT NULL GROUP BY meter_event_id) e
            ON e.meter_event_id = m.id
        WHERE a.clock_offset = interval '0'
        AND (m.quantity * p.per_million <> coalesce(e.total, 0) * 1000000
            OR e.price_id <> p.id OR e.other_price_id <> p.id)
        """,
    ),
    (
        # Theirs are rated by the price that is written on the entry, one of the fact's own item that had begun. No
        # entry: it was free.
        RERATED,
        """
        SELECT m.id, format('%s %s at %s do not make %s by the price that was booked', m.quantity, m.unit,
            m.occurred_at, coalesce(e.total, 0))
        FROM billing_meterevent m
        JOIN billing_billingaccount a ON a.organization_id = m.organization_id AND a.clock_offset > interval '0'
        LEFT JOIN (
            SELECT meter_event_id, sum(amount) AS total, min(price_id) AS price_id, max(price_id) AS other_price_id
            FROM billing_ledgerentry WHERE meter_event_id IS NOT NULL GROUP BY meter_event_id) e
            ON e.meter_event_id = m.id
        WHERE e.price_id <> e.other_price_id
        OR NOT EXISTS (
            SELECT 1 FROM billing_priceditem i JOIN billing_price p ON p.priced_item_id = i.id
            WHERE i.meter = m.meter AND i.model = m.model AND i.currency = a.currency
            AND p.valid_from <= m.occurred_at AND p.id = coalesce(e.price_id, p.id)
            AND m.quantity * p.per_million = coalesce(e.total, 0) * 1000000)
        """,
    ),
    (
        RERATED,
        """
        SELECT e.id, format('unit price %s, the price book has %s', e.unit_price, p.per_million / 1000000)
        FROM billing_ledgerentry e LEFT JOIN billing_price p ON p.id = e.price_id
        WHERE e.meter_event_id IS NOT NULL AND (p.id IS NULL OR e.unit_price * 1000000 <> p.per_million)
        """,
    ),
    (
        # Its last minute, too, starts while the line's price is in force.
        RERATED,
        """
        SELECT l.id, 'a storage line reaches beyond its price'
        FROM billing_storageline l
        JOIN billing_storagesegment s ON s.id = l.segment_id
        JOIN billing_billingaccount a ON a.organization_id = s.organization_id
        LEFT JOIN billing_price p ON p.id = l.price_id
        WHERE p.id IS NULL OR l.unit_price * 1000000 <> p.per_million
        OR p.valid_from > s.started_at + l.first_minute * interval '1 minute'
        OR (p.valid_to <= s.started_at + (l.end_minute - 1) * interval '1 minute'
            AND a.clock_offset = interval '0')
        """,
    ),
    (
        # All minutes of a line are of one tier, so that the tier at its first one rates it.
        RERATED,
        """
        SELECT l.id, format('a storage line reaches beyond its tier, %s', t.tier)
        FROM billing_storageline l
        JOIN billing_storagesegment s ON s.id = l.segment_id
        JOIN billing_accountpricetier t ON t.organization_id = s.organization_id
        CROSS JOIN LATERAL (SELECT s.started_at + l.first_minute * interval '1 minute' AS first,
            s.started_at + (l.end_minute - 1) * interval '1 minute' AS last) r
        WHERE (t.valid_from > r.first AND t.valid_from <= r.last)
        OR (t.valid_to > r.first AND t.valid_to <= r.last)
        """,
    ),
    (
        TILED,
        """
        SELECT s.id, format('%s minutes billed, lines have %s from %s to %s',
            s.billed_minutes, l.minutes, l.first, l.last)
        FROM billing_storagesegment s LEFT JOIN (
            SELECT segment_id, sum(end_minute - first_minute) AS minutes, min(first_minute) AS first,
                max(end_minute) AS last
            FROM billing_storageline GROUP BY segment_id) l ON l.segment_id = s.id
        WHERE (s.billed_minutes, s.billed_minutes, 0)
            IS DISTINCT FROM (coalesce(l.minutes, 0), coalesce(l.last, 0), coalesce(l.first, 0))
        """,
    ),
    (
        TILED,
        """
        SELECT s.id, format('lived from %s to %s, %s minutes billed', s.started_at, s.closed_at, s.billed_minutes)
        FROM billing_storagesegment s
        WHERE s.closed_at IS NOT NULL AND (s.closed_at > s.ends_at OR s.billed_minutes
            <> greatest(1, ceil(extract(epoch FROM s.closed_at - s.started_at) / 60)))
        """,
    ),
    (
        TILED,
        """
        SELECT l.id, format('a line of minutes %s to %s does not fit its event', l.first_minute, l.end_minute)
        FROM billing_storageline l
        JOIN billing_storagesegment s ON s.id = l.segment_id
        JOIN billing_meterevent m ON m.id = l.meter_event_id
        WHERE m.meter <> 'storage' OR m.subject <> s.subject OR m.organization_id <> s.organization_id
        OR (m.first_minute, m.end_minute) <> (l.first_minute, l.end_minute)
        OR m.quantity <> s.tokens * (l.end_minute - l.first_minute) OR l.amount <> m.quantity * l.unit_price
        OR m.occurred_at <> s.started_at + l.first_minute * interval '1 minute'
        """,
    ),
    (
        TILED,
        """
        SELECT m.id, 'a fact of storage without a line'
        FROM billing_meterevent m LEFT JOIN billing_storageline l ON l.meter_event_id = m.id
        WHERE m.meter = 'storage' AND l.id IS NULL
        """,
    ),
    (
        ONE_OPEN,
        """
        SELECT subject, format('%s open segments', count(*)) FROM billing_storagesegment
        WHERE closed_at IS NULL GROUP BY subject HAVING count(*) > 1
        """,
    ),
    (
        # Periods are runs of a purse's sequence, so a statement opens where the one before it closed.
        INVOICED,
        """
        SELECT id, format('number %s of its purse, booked at %s, after one of %s', purse_sequence, created_at, before)
        FROM (
            SELECT id, purse_sequence, created_at,
                lag(created_at) OVER (PARTITION BY purse_id ORDER BY purse_sequence) AS before
            FROM billing_ledgerentry WHERE purse_id IS NOT NULL) e
        WHERE created_at < before
        """,
    ),
    (
        INVOICED,
        """
        WITH spent AS (
            SELECT organization_id, date_trunc('month', created_at AT TIME ZONE interval '8 hours')::date AS month,
                sum(CASE WHEN credit_id = purse_id THEN -amount ELSE amount END) AS total
            FROM billing_ledgerentry
            WHERE purse_id IS NOT NULL AND (kind IN ('creation', 'storage', 'call', 'prompt', 'completion')
                OR (kind = 'reversal' AND credit_id = purse_id))
            AND organization_id IN (SELECT organization_id FROM billing_invoice)
            GROUP BY 1, 2)
        SELECT i.id, format('%s spent to date, entries make %s', i.spent_to_date, s.total)
        FROM billing_invoice i CROSS JOIN LATERAL (
            SELECT coalesce(sum(s.total), 0) AS total FROM spent s
            WHERE s.organization_id = i.organization_id AND s.month <= i.month) s
        WHERE i.spent_to_date <> s.total
        """,
    ),
    (
        INVOICED,
        """
        SELECT id, format('number %s of %s, %s invoiced to date', number, n, total) FROM (
            SELECT i.*, row_number() OVER w AS n, sum(amount) OVER w AS total
            FROM billing_invoice i WINDOW w AS (PARTITION BY organization_id ORDER BY month)) i
        WHERE number <> n OR total <> round(spent_to_date, 2)
        """,
    ),
    (
        # An invoice is the anchor of the chains: what was cut off or made anew behind it does not fit any more.
        INVOICED,
        """
        SELECT i.id, format('number %s of purse %s is not what the invoice says', h.sequence, h.purse)
        FROM billing_invoice i
        CROSS JOIN jsonb_to_recordset(i.heads) AS h (purse uuid, sequence bigint, chain text)
        LEFT JOIN billing_ledgerentry e ON e.purse_id = h.purse AND e.purse_sequence = h.sequence
        WHERE h.chain IS DISTINCT FROM encode(e.chain, 'hex')
        """,
    ),
    (
        # Of each sink: all up to its position, and nothing else. What lies behind it is only late.
        EXPORTED,
        """
        SELECT coalesce(l.sink, t.position_id), format(
            '%s at %s in %s: local %s events, %s units, %s; exported %s, %s, %s',
            coalesce(l.meter, t.meter), coalesce(l.hour, t.hour), coalesce(l.currency, t.currency),
            l.events, l.quantity, l.amount, t.events, t.quantity, t.amount)
        FROM (
            SELECT p.sink, m.meter, date_trunc('hour', m.occurred_at, 'UTC') AS hour, a.currency,
                count(*) AS events, sum(m.quantity) AS quantity, coalesce(sum(e.amount), 0) AS amount
            FROM billing_exportposition p
            JOIN billing_meterevent m
                ON (m.recorded_xid, m.id) <= (p.recorded_xid, p.event_id) OR m.recorded_at < p.not_before
            JOIN billing_billingaccount a ON a.organization_id = m.organization_id
            LEFT JOIN (
                SELECT meter_event_id, sum(amount) AS amount FROM billing_ledgerentry
                WHERE meter_event_id IS NOT NULL GROUP BY meter_event_id) e ON e.meter_event_id = m.id
            GROUP BY 1, 2, 3, 4) l
        FULL JOIN billing_exporttally t
            ON t.position_id = l.sink AND t.meter = l.meter AND t.hour = l.hour AND t.currency = l.currency
        WHERE (l.events, l.quantity, l.amount) IS DISTINCT FROM (t.events, t.quantity, t.amount)
        """,
    ),
    (
        # What purses have, and what the system's accounts have by their entries, cancel out, currency by currency.
        BALANCED,
        """
        SELECT currency, format('the accounts together have %s', sum(total)) FROM (
            SELECT a.currency, a.posted AS total FROM billing_ledgeraccount a
            WHERE a.organization_id IS NOT NULL
            UNION ALL
            SELECT e.currency, CASE WHEN a.id = e.credit_id THEN e.amount ELSE -e.amount END
            FROM billing_ledgerentry e
            JOIN billing_ledgeraccount a ON a.id IN (e.debit_id, e.credit_id) AND a.organization_id IS NULL) t
        GROUP BY currency HAVING sum(total) <> 0
        """,
    ),
]


def _broken_chains() -> Iterable[Violation]:
    """Entries that are not what they were when they were chained, or not where. One per purse: the first."""
    for broken in chain_audit.breaks():
        entry = broken.entry
        yield Violation(
            invariant=POSTED,
            subject=entry.purse,
            detail=f"the chain breaks at number {entry.sequence}, entry {entry.id}: {broken.detail}",
        )


def _misjudged_accounts() -> Iterable[Violation]:
    """Accounts whose stored commitment or exhaustion is not what rating makes of their rows."""
    rows = {
        row.organization_id: row
        for row in BillingAccount.objects.all()
        if row.storage_commitment or row.exhaust_at or row.committed_until
    }
    for organization_id in rows.keys() | set(_organizations_with_open_segments()):
        account = rows.get(organization_id) or BillingAccount.objects.get(pk=organization_id)
        spans = segments.spans(
            segments.open_rows(organization_id), organization_id=organization_id, currency=account.currency
        )
        purses = LedgerAccount.objects.filter(organization_id=organization_id)
        commitment = rating.commitment(spans)
        exhaust_at = rating.exhausts_at(
            spans, [Fund(free=p.posted - p.held, expires_at=p.expires_at) for p in purses]
        )
        if (account.storage_commitment, account.exhaust_at) != (commitment, exhaust_at):
            yield Violation(
                invariant=RECKONING,
                subject=organization_id,
                detail=f"stored: {account.storage_commitment} and {account.exhaust_at};"
                f" rated: {commitment} and {exhaust_at}",
            )
        if spans and (
            account.committed_until is None or account.committed_until < max(s.ends_at for s in spans)
        ):
            yield Violation(
                invariant=RECKONING,
                subject=organization_id,
                detail="an open segment ends after `committed_until`",
            )


def _organizations_with_open_segments() -> Iterable[str]:
    return (
        StorageSegment.objects.filter(closed_at__isnull=True)
        .values_list("organization_id", flat=True)
        .distinct()
    )
