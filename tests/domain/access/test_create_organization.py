"""`manage.py create_organization`, and what an operator can do to an organization afterwards."""

from __future__ import annotations

import json
from decimal import Decimal
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from billing import accounts, clock, price_book
from cacheplane.access import api_keys, organizations, tiers
from cacheplane.access.models import ApiKey, AuditEntry, Organization, Project, RateState
from cacheplane.errors import Conflict, InvalidRequest, NotFound

pytestmark = pytest.mark.django_db


def _run(*arguments: str) -> str:
    output = StringIO()
    call_command("create_organization", *arguments, stdout=output)
    return output.getvalue()


def _balance(organization_id: str) -> accounts.Balance:
    return accounts.balance(organization_id, clock.now())


def test_the_last_line_is_one_json_object_with_a_key_that_works():
    output = _run("Acme", "--tier", "tier5", "--recharge", "20000", "--voucher", "1000", "--json")
    made = json.loads(output.splitlines()[-1])
    caller = api_keys.authenticate(made["api_key"])
    assert caller.organization_id == made["organization"]
    assert (caller.project_id, caller.api_key_id) == (made["project"], made["api_key_id"])
    assert (caller.tier.slug, made["tier"]) == ("tier5", "tier5")
    balance = _balance(made["organization"])
    assert (balance.cash, balance.voucher, balance.available) == (
        Decimal(20_000),
        Decimal(1_000),
        Decimal(21_000),
    )


def test_without_money_the_account_is_open_and_empty():
    made = json.loads(_run("Acme", "--json").splitlines()[-1])
    assert made["tier"] == "tier0"
    assert _balance(made["organization"]).available == 0
    assert RateState.objects.filter(organization_id=made["organization"]).exists()


def test_a_person_reads_lines_and_that_the_key_is_not_shown_again():
    output = _run("上海 Acme", "--tier", "tier1")
    assert "上海 Acme" in output
    assert "not shown again" in output.splitlines()[-1]


def test_what_was_done_is_audited_without_the_secret():
    made = json.loads(_run("Acme", "--recharge", "50", "--json").splitlines()[-1])
    trail = AuditEntry.objects.filter(organization_id=made["organization"])
    assert set(trail.values_list("action", flat=True)) == {
        "organization.create",
        "api_key.issue",
        "organization.recharge",
        "organization.earn_tier",
    }
    assert all(entry.operator.startswith("create_organization (") for entry in trail)
    assert made["api_key"] not in str(list(trail.values()))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["Acme", "--tier", "tier9"], "tier got 'tier9', it takes one of tier0, tier1"),
        (["Acme", "--recharge", "a lot"], "argument --recharge: 'a lot' is not an amount"),
        (["Acme", "--recharge", "-5"], "argument --recharge"),
        (["Acme", "--recharge=-5"], "argument --recharge: '-5' must lie above 0"),
        (["Acme", "--recharge", "0"], "argument --recharge: '0' must lie above 0"),
        (["Acme", "--recharge", "NaN"], "argument --recharge: 'NaN' must lie"),
        (["Acme", "--recharge", "Infinity"], "argument --recharge: 'Infinity' must lie"),
        (["Acme", "--recharge", "1e15"], "argument --recharge: '1e15' must lie"),
        (
            ["Acme", "--voucher", "0.0000000001"],
            "argument --voucher: '0.0000000001' has more than 9 decimals",
        ),
        (["   "], "name got 0 characters"),
        (["x" * 201], "name got 201 characters"),
        (["Ac\x00me"], "name has characters that are no text"),
        (["\udce4\udcb8"], "name has characters that are no text"),
        ([], "NAME"),
    ],
)
def test_bad_input_names_the_argument_and_makes_nothing(arguments, named):
    with pytest.raises(CommandError) as refusal:
        _run(*arguments)
    assert named in str(refusal.value)
    assert not Organization.objects.exists()
    assert not AuditEntry.objects.exists()


def test_a_new_organization_has_a_project_and_one_key_of_it():
    new = organizations.create(name=" Acme ", tier_slug="tier2", operator="ada")
    assert new.organization.name == "Acme"
    assert Project.objects.get(organization=new.organization) == new.project
    assert ApiKey.objects.get(organization=new.organization).project == new.project


def test_suspending_and_resuming_take_turns_and_a_reason():
    new = organizations.create(name="Acme", tier_slug="tier2", operator="ada")
    its = {"organization_id": new.organization.id, "operator": "ada"}
    organizations.suspend(**its, reason="unpaid invoice")
    assert api_keys.authenticate(new.issued_key.secret).organization_state == "suspended"
    with pytest.raises(Conflict, match="is suspended already"):
        organizations.suspend(**its, reason="again")
    organizations.resume(**its, reason="paid")
    with pytest.raises(InvalidRequest, match="reason"):
        organizations.suspend(**its, reason="")
    with pytest.raises(NotFound):
        organizations.suspend(organization_id="org-nobody", operator="ada", reason="x")
    trail = AuditEntry.objects.filter(action__in=["organization.suspend", "organization.resume"]).order_by(
        "id"
    )
    assert [(entry.action, entry.reason) for entry in trail] == [
        ("organization.suspend", "unpaid invoice"),
        ("organization.resume", "paid"),
    ]


def test_another_tier_brings_its_limits():
    new = organizations.create(name="Acme", tier_slug="tier0", operator="ada")
    tiers.override(
        organization_id=new.organization.id, tier_slug="tier3", reason="contract signed", operator="ada"
    )
    assert api_keys.authenticate(new.issued_key.secret).tier.concurrency == 200
    assert AuditEntry.objects.latest("id").detail == {"from": "tier0", "to": "tier3", "until": None}


def test_the_same_recharge_twice_is_money_once():
    new = organizations.create(name="Acme", tier_slug="tier0", operator="ada")
    for _ in range(2):
        organizations.recharge(
            organization_id=new.organization.id,
            amount=Decimal("12.5"),
            purse="cash",
            reason="bank transfer 77",
            operator="ada",
            idempotency_key="transfer-77",
        )
    assert _balance(new.organization.id).cash == Decimal("12.5")


# --- Currency -------------------------------------------------------------------------------------------------


def test_dollars_take_a_whole_price_list_in_dollars_first():
    with pytest.raises(CommandError) as refusal:
        _run("Acme", "--currency", "USD")
    assert "there is no USD price for call of moonshot-v1, completion of moonshot-v1-128k" in str(
        refusal.value
    )
    assert not Organization.objects.exists()
    for meter, model in price_book.unpriced("USD", reference="CNY", at=clock.now()):
        price_book.publish(
            meter=meter, model=model, currency="USD", per_million=Decimal(3), valid_from=clock.now()
        )
    made = json.loads(_run("Acme", "--currency", "USD", "--recharge", "20", "--json").splitlines()[-1])
    balance = _balance(made["organization"])
    assert (balance.currency, balance.available, made["tier"]) == ("USD", Decimal(20), "tier0")


def test_another_currency_is_refused_and_the_known_ones_are_named():
    with pytest.raises(CommandError, match="currency got 'EUR', it takes one of CNY, USD"):
        _run("Acme", "--currency", "EUR")


def test_a_recharge_without_a_tier_given_earns_one():
    assert json.loads(_run("Acme", "--recharge", "500", "--json").splitlines()[-1])["tier"] == "tier3"


@pytest.mark.parametrize(("options", "kind"), [([], "standard"), (["--sandbox"], "sandbox")])
def test_a_sandbox_is_made_by_saying_so(options, kind):
    made = json.loads(_run("Rehearsal", "--json", *options).splitlines()[-1])
    assert made["kind"] == kind
    assert Organization.objects.get(id=made["organization"]).kind == kind
    assert api_keys.authenticate(made["api_key"]).is_sandbox is (kind == "sandbox")
