"""A payer whose clock the test holds, and the audit after every test that moves money."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from django.db import connection

from billing import audit, clock
from cacheplane.management.drill import payer as payers
from cacheplane.management.drill.payer import FAMILY, MODEL, Payer

SHANGHAI = timezone(timedelta(hours=8))
STORAGE_HALVED = datetime(2024, 8, 7, tzinfo=SHANGHAI)
"""From ¥10 to ¥5 per million token-minutes."""
NOON = datetime(2024, 7, 15, 12, tzinfo=UTC)
__all__ = ["FAMILY", "MODEL", "Payer"]


BLOCKER = pytest.StashKey[Any]()
ROWS_OF_MIGRATIONS = pytest.StashKey[str]()


@pytest.fixture(scope="session", autouse=True)
def tables_can_be_flushed(
    request: pytest.FixtureRequest, django_db_setup: None, django_db_blocker: Any
) -> None:
    """Tests with transactions of their own are tidied up by TRUNCATE, which the ledger refuses to everybody."""
    request.config.stash[BLOCKER] = django_db_blocker
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        rows = json.loads(connection.creation.serialize_db_to_string())
        # Django's own come back by themselves, with other numbers.
        ours = [row for row in rows if row["model"].split(".")[0] not in ("contenttypes", "auth")]
        request.config.stash[ROWS_OF_MIGRATIONS] = json.dumps(ours)
        cursor.execute(
            "SELECT tgrelid::regclass, tgname FROM pg_trigger WHERE tgname LIKE 'billing%is_never_emptied'"
        )
        for table, trigger in cursor.fetchall():
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """The flush after such a test takes what migrations have put there (prices, tiers): it is put back.

    After the last test of all the test database is gone, and the connection is another database's again.
    """
    yield
    marker = item.get_closest_marker("django_db")
    if nextitem is not None and marker is not None and marker.kwargs.get("transaction"):
        with item.config.stash[BLOCKER].unblock():
            connection.creation.deserialize_db_from_string(item.config.stash[ROWS_OF_MIGRATIONS])
            connection.close()


@pytest.fixture
def audit_clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After the test every promise of billing is checked against all rows.

    What others registered is left out: here storage is opened for subjects that are no cache objects.
    """
    monkeypatch.setattr(audit, "_registered", {})
    yield
    assert audit.violations(clock.now()) == []


@pytest.fixture(autouse=True)
def _audited(audit_clean: None) -> None:
    pass


def make_payer(*, recharged: str = "0", at: datetime = NOON) -> Payer:
    return payers.make_payer(recharged=recharged, at=at)


@pytest.fixture
def new_payer(db: None) -> Callable[..., Payer]:
    return make_payer


@pytest.fixture
def payer(db: None) -> Payer:
    """An organization with ¥100 in cash, at noon of 2024-07-15, when storage is ¥10 per million token-minutes."""
    return make_payer(recharged="100")
