"""`manage.py audit_ledger`: a table or JSON, and the exit status that a script looks at."""

from __future__ import annotations

import json

import pytest
from django.core.management import call_command
from django.db import connection

from billing import audit, clock

pytestmark = pytest.mark.django_db


def test_books_in_order(payer, capsys):
    payer.create("cache-1", tokens=10_000)
    call_command("audit_ledger")
    printed = capsys.readouterr().out
    assert printed.startswith("1 meter events, 2 ledger entries")
    assert printed.count("kept") == len(audit.names())
    call_command("audit_ledger", json=True)
    assert json.loads(capsys.readouterr().out) == {"events": 1, "entries": 2, "violations": []}


def test_books_out_of_order_end_with_status_1(payer, capsys):
    with connection.cursor() as cursor:
        cursor.execute("UPDATE billing_ledgeraccount SET posted = posted + 1 WHERE kind = 'cash'")
    for options in ({}, {"json": True}):
        with pytest.raises(SystemExit) as ended:
            call_command("audit_ledger", **options)
        assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "1 BROKEN" in printed
    assert audit.POSTED in printed
    with connection.cursor() as cursor:
        cursor.execute("UPDATE billing_ledgeraccount SET posted = posted - 1 WHERE kind = 'cash'")


@pytest.mark.django_db(transaction=True)
def test_all_questions_see_one_snapshot(payer):
    """Outside a transaction the audit makes its own, so that a busy system is not mistaken for a wrong one."""
    seen = []

    def look(at):
        with connection.cursor() as cursor:
            cursor.execute("SHOW transaction_isolation")
            seen.append(cursor.fetchone()[0])
        return []

    audit.register("a look", look)
    assert audit.violations(clock.now()) == []
    assert seen == ["repeatable read"]
