"""A tier is earned by cash, at once; an override holds instead until it ends; billing knows whose prices are paid."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
from django.db import connection

from billing import accounts, audit, clock
from billing.errors import InsufficientFunds
from billing.models import AccountPriceTier, LedgerEntry
from cacheplane.access import api_keys, organizations, tiers
from cacheplane.access.models import AuditEntry, Organization, Tier, TierOverride
from cacheplane.errors import Conflict, InvalidRequest, NotFound

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _promises_are_kept():
    yield
    assert audit.violations(clock.now()) == []


@pytest.fixture
def new() -> organizations.NewOrganization:
    return organizations.create(name="Acme", operator="ada")


@pytest.fixture
def recharge(new):
    def act(amount: str, *, purse: str = "cash", key: str | None = None):
        return organizations.recharge(
            organization_id=new.organization.id,
            amount=Decimal(amount),
            purse=purse,
            reason="transfer",
            operator="ada",
            idempotency_key=key or str(uuid4()),
        )

    return act


def override(new, tier: str, *, seconds: float | None = None) -> TierOverride:
    until = None if seconds is None else clock.now() + timedelta(seconds=seconds)
    return tiers.override(
        organization_id=new.organization.id, tier_slug=tier, until=until, reason="contract", operator="ada"
    )


def tier_of_caller(new) -> str:
    """As a request finds it that no process remembers."""
    return api_keys.authenticate(new.issued_key.secret, cache=api_keys.CallerCache()).tier.slug


def planned(new) -> list[tuple[str, bool]]:
    """The tiers whose prices are paid from now on, and whether each has an end."""
    rows = AccountPriceTier.objects.filter(organization=new.organization).order_by("valid_from")
    at = clock.now()
    return [(row.tier, row.valid_to is not None) for row in rows if row.valid_to is None or row.valid_to > at]


# --- Earning --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "tier"),
    [
        ("49.999999999", "tier0"),
        ("50", "tier1"),
        ("100", "tier2"),
        ("500", "tier3"),
        ("5000", "tier4"),
        ("20000", "tier5"),
    ],
)
def test_the_contracts_thresholds(new, recharge, amount, tier):
    recharge(amount)
    assert (tier_of_caller(new), planned(new)) == (tier, [(tier, False)])


def test_recharges_add_up_and_the_same_one_counts_once(new, recharge):
    for _ in range(2):
        recharge("30", key="one")
    assert tier_of_caller(new) == "tier0"
    recharge("20")
    assert tier_of_caller(new) == "tier1"
    earned = AuditEntry.objects.get(action="organization.earn_tier")
    assert (earned.operator, earned.reason) == ("ada", "transfer")
    assert earned.detail == {"from": "tier0", "to": "tier1", "recharged": "50.000000000 CNY"}


def test_vouchers_earn_nothing(new, recharge):
    recharge("1000", purse="voucher")
    assert tier_of_caller(new) == "tier0"


def test_a_recharge_that_is_reversed_earns_nothing_any_more(new, recharge):
    recharge("60")
    entry = recharge("40").entry
    assert tier_of_caller(new) == "tier2"
    reversing = {"organization_id": new.organization.id, "operator": "ada", "reason": "the transfer bounced"}
    organizations.correct(entry_id=entry.pk, **reversing)
    assert (tier_of_caller(new), planned(new)) == ("tier1", [("tier1", False)])
    assert tiers.standing(Organization.objects.get()).recharged == 60
    assert AuditEntry.objects.filter(action="organization.correct", reason="the transfer bounced").exists()


def test_a_recharge_that_is_refused_earns_nothing(new, recharge):
    with pytest.raises(InvalidRequest):
        recharge("0")
    first = recharge("60").entry
    with pytest.raises(InsufficientFunds):
        _spend_all_but(new, "1")
        organizations.correct(
            organization_id=new.organization.id, entry_id=first.pk, operator="ada", reason="bounced"
        )
    assert tier_of_caller(new) == "tier1"


def _spend_all_but(new, rest: str) -> None:
    from billing import holds

    account = accounts.lock(new.organization.id)
    free = accounts.balance(new.organization.id, account.locked_at).available
    holds.place(
        account,
        reference=uuid4(),
        kind="call",
        subject="x",
        amount=free - Decimal(rest),
        at=account.locked_at,
    )


def test_who_pays_in_dollars_earns_by_what_is_said_in_dollars(monkeypatch):
    monkeypatch.setattr(organizations, "_require_prices", lambda currency: None)
    new = organizations.create(name="Acme", operator="ada", currency="USD")
    paid = {"organization_id": new.organization.id, "purse": "cash", "reason": "wire", "operator": "ada"}
    organizations.recharge(amount=Decimal(30_000), idempotency_key="1", **paid)
    assert tier_of_caller(new) == "tier0"
    Tier.objects.filter(slug="tier3").update(recharged_from_usd=70)
    organizations.recharge(amount=Decimal(1), idempotency_key="2", **paid)
    assert tier_of_caller(new) == "tier3"


# --- Overriding -----------------------------------------------------------------------------------------------


def test_an_override_holds_whatever_is_recharged(new, recharge):
    override(new, "tier0")
    recharge("20000")
    assert tier_of_caller(new) == "tier0"
    tiers.end_override(organization_id=new.organization.id, reason="paid", operator="ada")
    assert (tier_of_caller(new), planned(new)) == ("tier5", [("tier5", False)])
    with pytest.raises(Conflict, match="as earned"):
        tiers.end_override(organization_id=new.organization.id, reason="paid", operator="ada")


def test_an_override_ends_by_the_clock_and_nothing_has_to_run(new, recharge):
    recharge("50")
    given = override(new, "tier5", seconds=3600)
    assert (tier_of_caller(new), planned(new)) == ("tier5", [("tier5", True), ("tier1", False)])
    _let_it_end(given)
    assert tier_of_caller(new) == "tier1"
    [shown] = Organization.objects.with_tier_now()
    assert (shown.tier_now, tiers.tier_now(shown).slug) == ("tier1", "tier1")


def test_a_remembered_caller_does_not_outlive_the_override(new, recharge):
    seconds = [0.0]
    cache = api_keys.CallerCache(ttl_seconds=3600, clock=lambda: seconds[0])
    given = override(new, "tier5", seconds=60)
    assert api_keys.authenticate(new.issued_key.secret, cache=cache).tier.slug == "tier5"
    _let_it_end(given)
    seconds[0] = 59
    assert api_keys.authenticate(new.issued_key.secret, cache=cache).tier.slug == "tier5"
    seconds[0] = 61
    assert api_keys.authenticate(new.issued_key.secret, cache=cache).tier.slug == "tier0"


def _let_it_end(given: TierOverride) -> None:
    TierOverride.objects.filter(pk=given.pk).update(ends_at=clock.now() - timedelta(seconds=1))


def test_a_recharge_under_an_override_is_what_holds_after_it(new, recharge):
    override(new, "tier5", seconds=3600)
    recharge("500")
    assert (tier_of_caller(new), planned(new)) == ("tier5", [("tier5", True), ("tier3", False)])


def test_the_later_word_wins_and_both_are_kept_with_their_reasons(new):
    override(new, "tier4")
    override(new, "tier2", seconds=3600)
    assert tier_of_caller(new) == "tier2"
    assert TierOverride.objects.in_force().count() == 1
    assert TierOverride.objects.count() == 2
    said = AuditEntry.objects.filter(action="organization.override_tier").values_list("detail", flat=True)
    assert [(detail["from"], detail["to"]) for detail in said] == [("tier4", "tier2"), ("tier0", "tier4")]


def test_an_override_is_refused_for_the_past_without_a_reason_or_for_nobody(new):
    with pytest.raises(InvalidRequest, match="until"):
        override(new, "tier4", seconds=-1)
    with pytest.raises(InvalidRequest, match="one of tier0, tier1"):
        override(new, "tier9")
    its = {"tier_slug": "tier4", "operator": "ada"}
    with pytest.raises(InvalidRequest, match="reason"):
        tiers.override(organization_id=new.organization.id, reason=" ", **its)
    with pytest.raises(NotFound):
        tiers.override(organization_id="org-nobody", reason="x", **its)
    assert not TierOverride.objects.exists()


def test_a_tier_that_is_given_at_the_creation_is_an_override():
    new = organizations.create(name="Acme", tier_slug="tier5", operator="ada")
    standing = tiers.standing(new.organization)
    assert (standing.tier.slug, standing.earned.slug) == ("tier5", "tier0")
    assert standing.override is not None and standing.override.reason


# --- What was given before --------------------------------------------------------------------------------------


def test_a_tier_that_was_given_before_tiers_were_earned_stays_as_an_override(new, recharge):
    from importlib import import_module

    migration = import_module("cacheplane.access.migrations.0007_tiers_are_earned")
    recharge("100")
    AccountPriceTier.objects.all().delete()
    Organization.objects.update(tier="tier4")
    fair = organizations.create(name="Fair", operator="ada")
    AccountPriceTier.objects.all().delete()
    with connection.cursor() as cursor:
        cursor.execute(migration.GIVEN_BECOMES_OVERRIDE)
        cursor.execute(migration.BILLING_KNOWS_THE_TIER)
    assert tier_of_caller(new) == "tier4"
    assert Organization.objects.get(id=new.organization.id).tier_id == "tier2"
    assert tiers.override_now(fair.organization) is None
    assert (planned(new), planned(fair)) == ([("tier4", False)], [("tier0", False)])
    assert LedgerEntry.objects.count() == 1
