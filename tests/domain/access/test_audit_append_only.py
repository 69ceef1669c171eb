"""The audit log is appended to and nothing else, whoever asks."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, connection, transaction

from cacheplane.access import audit
from cacheplane.access.models import AuditEntry

pytestmark = pytest.mark.django_db


@pytest.fixture
def entry() -> AuditEntry:
    return audit.record(
        operator="ada", action="price.change", subject="price-1", detail={"from": "12", "to": "24"}
    )


def test_an_entry_says_who_did_what_and_why(entry, organization):
    told = audit.record(
        operator="bob", action="tier.set", subject="x", organization_id=organization.id, reason="earned it"
    )
    assert (entry.organization_id, entry.reason, entry.detail) == (None, "", {"from": "12", "to": "24"})
    assert (told.organization_id, told.reason, told.detail) == (organization.id, "earned it", {})


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE access_auditentry SET operator = 'nobody' WHERE id = %s",
        "UPDATE access_auditentry SET id = id WHERE id = %s",
        "DELETE FROM access_auditentry WHERE id = %s",
    ],
)
def test_the_database_refuses_to_change_or_delete_one(entry, statement):
    with (
        pytest.raises(IntegrityError, match="never changed or deleted"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(statement, [entry.id])
    assert AuditEntry.objects.get(id=entry.id).operator == "ada"


def test_the_orm_is_refused_too(entry):
    entry.reason = "another story"
    with pytest.raises(IntegrityError), transaction.atomic():
        entry.save()
    with pytest.raises(IntegrityError), transaction.atomic():
        entry.delete()


def test_an_entry_without_an_operator_is_refused():
    with pytest.raises(IntegrityError, match="audit_entry_has_an_operator"), transaction.atomic():
        audit.record(operator="", action="price.change", subject="price-1")
