"""An organization's own clock: only a sandbox's runs ahead, and its bills stay right when prices change behind it."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction

from billing import accounts, audit, charging, clock, price_book, storage
from billing.models import BillingAccount, LedgerEntry, StorageSegment
from cacheplane.access.models import Organization
from tests.domain.billing.conftest import FAMILY, Payer, make_payer

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)
LEEWAY = timedelta(minutes=1)


@pytest.fixture
def sandbox() -> Payer:
    organization = Organization.objects.create(name="Rehearsal", tier_id="tier0", kind="sandbox")
    accounts.open_account(organization.id)
    payer = Payer(organization_id=organization.id, at=clock.now())
    payer.recharge("100")
    return payer


def advance(payer: Payer, by: timedelta) -> datetime:
    with transaction.atomic():
        account = accounts.lock(payer.organization_id)
        accounts.advance_clock(account, to=account.locked_at + by)
    payer.at = clock.now_of(payer.organization_id)
    return payer.at


def test_its_clock_is_the_databases_and_what_it_was_set_forward(sandbox: Payer) -> None:
    assert clock.now_of(sandbox.organization_id) - clock.now() < LEEWAY
    advance(sandbox, 3 * DAY)
    advance(sandbox, 4 * DAY)
    reading = clock.read(sandbox.organization_id)
    assert reading.offset == 7 * DAY
    assert reading.at - reading.machine == 7 * DAY
    with transaction.atomic():
        account = accounts.lock(sandbox.organization_id)
        assert account.locked_at - account.machine_at == 7 * DAY
        assert timedelta() <= account.machine_at - reading.machine < LEEWAY


def test_nobody_elses_clock_is_moved_by_it(sandbox: Payer, payer: Payer) -> None:
    advance(sandbox, 30 * DAY)
    with transaction.atomic():
        assert accounts.lock(payer.organization_id).locked_at - clock.now() < LEEWAY
    assert clock.read(payer.organization_id).offset == timedelta()


def refused(statement: str, *values: object) -> str:
    with pytest.raises(IntegrityError) as raised, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, list(values))
    return str(raised.value)


SET = "UPDATE billing_billingaccount SET clock_offset = %s::interval WHERE organization_id = %s"


def test_the_database_refuses_a_clock_of_its_own_to_a_standard_organization(payer: Payer) -> None:
    assert "Only a sandbox" in refused(SET, "1 second", payer.organization_id)
    assert "Only a sandbox" in refused(
        "INSERT INTO billing_billingaccount (organization_id, currency, storage_commitment, clock_offset,"
        " created_at) VALUES (%s, 'CNY', 0, interval '1 day', now())",
        Organization.objects.create(name="Other", tier_id="tier0").id,
    )
    BillingAccount.objects.filter(organization_id=payer.organization_id).update(clock_offset=timedelta())


def holds_plainly(payer: Payer) -> bool:
    now = clock.now()
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(
                "SELECT billing_hold_plainly(%s, 'CNY', %s, 'call', 's', 0.01, %s, %s)",
                [payer.organization_id, uuid.uuid4(), now, now + DAY],
            )
    except DatabaseError:
        return False
    return True


def test_the_short_way_of_a_call_knows_no_clock_but_the_databases(sandbox: Payer) -> None:
    assert holds_plainly(sandbox), "its clock is still the database's"
    advance(sandbox, DAY)
    assert not holds_plainly(sandbox)


def test_the_database_refuses_to_set_a_clock_back(sandbox: Payer) -> None:
    advance(sandbox, DAY)
    assert "never set back" in refused(SET, "23 hours", sandbox.organization_id)
    assert clock.read(sandbox.organization_id).offset == DAY


@pytest.mark.parametrize(("kind", "other"), [("standard", "sandbox"), ("sandbox", "standard")])
def test_an_organization_stays_of_its_kind(kind: str, other: str) -> None:
    organization = Organization.objects.create(name="Fixed", tier_id="tier0", kind=kind)
    assert "stays of the kind" in refused(
        "UPDATE access_organization SET kind = %s WHERE id = %s", other, organization.id
    )
    Organization.objects.filter(id=organization.id).update(name="Renamed", kind=kind)


def announce(valid_from: datetime, *, meter: str = "storage", per_million: int = 40) -> None:
    price_book.publish(
        meter=meter, model=FAMILY, currency="CNY", per_million=Decimal(per_million), valid_from=valid_from
    )
    storage.reprice()


def test_an_announced_price_holds_when_the_sandbox_gets_there(sandbox: Payer) -> None:
    announce(clock.now() + 2 * DAY, meter="creation", per_million=100)
    sandbox.create("cache-before", tokens=1_000)
    advance(sandbox, 3 * DAY)
    sandbox.create("cache-after", tokens=1_000)
    assert [entry.amount for entry in sandbox.entries(kind="creation")] == [Decimal("0.024"), Decimal("0.1")]


@pytest.mark.django_db(transaction=True)  # only a price that is committed is remembered
def test_a_look_ahead_takes_no_price_from_the_others(sandbox: Payer) -> None:
    """The memo keeps what holds now, for those who ask now."""
    announce(clock.now() + 2 * DAY, meter="creation")
    price_book.forget()
    now = clock.now()
    asked = {"meter": "creation", "model": FAMILY, "currency": "CNY"}
    price_book.price_at(**asked, organization_id=sandbox.organization_id, at=now)
    assert price_book.remembered(**asked, at=now) is not None
    price_book.price_at(**asked, organization_id=sandbox.organization_id, at=now + 30 * DAY)
    assert price_book.remembered(**asked, at=now) is not None
    assert price_book.remembered(**asked, at=now + 30 * DAY) is None


def test_a_price_that_is_announced_behind_its_back_leaves_its_bill_as_it_was(sandbox: Payer) -> None:
    advance(sandbox, 20 * DAY)
    sandbox.create("cache-a", tokens=10_000, seconds=7200)
    advance(sandbox, timedelta(hours=3))
    sandbox.settle()
    sandbox.close("cache-a")
    before = sandbox.entries()
    for meter in ("storage", "creation"):
        announce(clock.now() + DAY, meter=meter)
    assert audit.violations(clock.now()) == []
    assert sandbox.entries() == before
    assert sandbox.spent("storage") == Decimal("6.00")


def test_the_audit_still_rates_a_sandboxs_bill_again(sandbox: Payer) -> None:
    advance(sandbox, DAY)
    sandbox.create("cache-a", tokens=1_000)
    entry = sandbox.entries(kind="creation")[0]
    own = ("id", "chain")
    columns = {f.attname: getattr(entry, f.attname) for f in LedgerEntry._meta.fields if f.attname not in own}
    with transaction.atomic():
        last = max(entry.purse_sequence or 0 for entry in sandbox.entries())
        columns |= {"idempotency_key": "twice", "purse_sequence": last + 1}
        LedgerEntry.objects.create(**columns)
        found = {violation.invariant for violation in audit.violations(clock.now())}
        transaction.set_rollback(True)
    assert audit.RERATED in found


def test_a_vouchers_end_is_its_own_clocks(sandbox: Payer) -> None:
    sandbox.voucher("5", hours=24)
    assert sandbox.balance.voucher == 5
    advance(sandbox, 2 * DAY)
    assert sandbox.balance.voucher == 0


def test_a_recharge_made_now_is_dated_by_its_clock(sandbox: Payer) -> None:
    advance(sandbox, 40 * DAY)
    with transaction.atomic():
        done = charging.recharge(
            organization_id=sandbox.organization_id,
            amount=Decimal(1),
            purse="cash",
            reason="test",
            operator="ada",
            idempotency_key="later",
            at=clock.now_of(sandbox.organization_id),
        )
    assert done.entry.created_at - clock.now() > 39 * DAY


def test_repricing_counts_minutes_by_each_organizations_clock() -> None:
    """An account that ran out a day ago by its own clock is closed as of then, not left open by the machine's."""
    organization = Organization.objects.create(name="Poor", tier_id="tier0", kind="sandbox")
    accounts.open_account(organization.id)
    poor = Payer(organization_id=organization.id, at=clock.now())
    poor.recharge("0.60")
    poor.store("cache-a", tokens=1_000, seconds=20 * 86_400)
    ran_out = poor.exhaust_at
    assert ran_out is not None
    advance(poor, 10 * DAY)
    storage.reprice()
    assert StorageSegment.objects.get(subject="cache-a").closed_at == ran_out


def test_a_standard_payer_is_as_ever() -> None:
    payer = make_payer(recharged="1")
    assert BillingAccount.objects.get(pk=payer.organization_id).clock_offset == timedelta()
