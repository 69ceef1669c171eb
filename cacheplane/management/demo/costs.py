"""What a step cost: exactly, from the ledger of an instance on this machine, or else from the balance."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path
from typing import Protocol

import environ
from django.db import OperationalError, connections
from django.db.models import QuerySet, Sum

from billing.models import EntryKind, LedgerEntry, MeterEvent
from cacheplane.management.demo.client import Api
from cacheplane.management.demo.target import instance_values

ZERO = Decimal(0)
SETTLED_WITHIN_SECONDS = 5.0
"""A streamed call is charged just after its last byte; longer than this means that it cost nothing."""
LOOK_EVERY_SECONDS = 0.05
DATABASE = "demo"


class Costs(Protocol):
    """Each is asked right after its step, once."""

    source: str
    """How the amounts were found, for the reader."""

    def of_creation(self, cache_id: str) -> Decimal: ...

    def of_call(self, request_id: str) -> Decimal: ...

    def of_storage(self, cache_id: str) -> Decimal:
        """All its minutes; posted when the object is deleted."""


class LedgerCosts:
    """Reads the entries themselves."""

    source = "the ledger's entries, exact"

    def of_creation(self, cache_id: str) -> Decimal:
        return self._sum(MeterEvent.objects.using(DATABASE).filter(meter="creation", subject=cache_id))

    def of_call(self, request_id: str) -> Decimal:
        return self._sum(MeterEvent.objects.using(DATABASE).filter(request_id=request_id))

    def of_storage(self, cache_id: str) -> Decimal:
        return self._sum(MeterEvent.objects.using(DATABASE).filter(meter="storage", subject=cache_id))

    def _sum(self, events: QuerySet[MeterEvent]) -> Decimal:
        deadline = time.monotonic() + SETTLED_WITHIN_SECONDS
        while time.monotonic() < deadline:
            entries = LedgerEntry.objects.using(DATABASE).filter(meter_event__in=events)
            found = entries.exclude(kind=EntryKind.WAIVER).aggregate(total=Sum("amount"))["total"]
            if found is not None:
                return Decimal(found)
            time.sleep(LOOK_EVERY_SECONDS)
        return ZERO


class BalanceCosts:
    """Differences of what is posted. Other calls with the same organization's keys would be counted too."""

    source = "differences of the balance, to 0.00001"

    def __init__(self, api: Api) -> None:
        self._api = api
        self._posted = self._read()

    def of_creation(self, cache_id: str) -> Decimal:
        return self._since_last()

    def of_call(self, request_id: str) -> Decimal:
        return self._since_last()

    def of_storage(self, cache_id: str) -> Decimal:
        return self._since_last()

    def _read(self) -> Decimal:
        data = self._api.call("GET", "/v1/users/me/balance").body["data"]
        return Decimal(data["cash_balance"]) + Decimal(data["voucher_balance"])

    def _since_last(self) -> Decimal:
        before, deadline = self._posted, time.monotonic() + SETTLED_WITHIN_SECONDS
        while self._posted == before and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_SECONDS)
            self._posted = self._read()
        return before - self._posted


def of_instance(data_dir: Path | None, api: Api) -> Costs:
    """The ledger when the instance's database can be reached from here, else the balance."""
    if data_dir is not None and _open_database(data_dir):
        return LedgerCosts()
    return BalanceCosts(api)


def _open_database(data_dir: Path) -> bool:
    """Whether the database named in the folder's `instance.env` answers; it is then the connection DATABASE.

    The settings were read for another folder, perhaps, so it has a name of its own beside theirs.
    """
    url = instance_values(data_dir).get("DATABASE_URL")
    if url is None:
        return False
    connections.databases[DATABASE] = connections.databases["default"] | environ.Env.db_url_config(url)
    try:
        LedgerEntry.objects.using(DATABASE).exists()
    except OperationalError:
        return False
    return True
