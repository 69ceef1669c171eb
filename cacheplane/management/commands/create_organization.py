"""`manage.py create_organization NAME --tier tier5 --recharge 20000 [--voucher 1000] [--currency USD] [--json]`."""

from __future__ import annotations

import argparse
import getpass
import json
from decimal import Decimal, InvalidOperation
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from cacheplane.access import organizations, tiers
from cacheplane.access.models import Organization
from cacheplane.access.organizations import HOUSE_CURRENCY, NewOrganization
from cacheplane.errors import InvalidRequest

AMOUNT_MAX = Decimal(10) ** 12
SMALLEST_AMOUNT = Decimal("0.000000001")


def amount(text: str) -> Decimal:
    """A positive amount with at most 9 decimals, or argparse's own complaint that names the option."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an amount, write for example 20000 or 0.5"
        ) from None
    if not value.is_finite() or not 0 < value < AMOUNT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} must lie above 0 and below {AMOUNT_MAX:,}")
    if value % SMALLEST_AMOUNT:
        raise argparse.ArgumentTypeError(f"{text!r} has more than 9 decimals")
    return value


class Command(BaseCommand):
    help = "Make an organization with a project, an API key (shown once) and, if asked, money in its purses."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", metavar="NAME", help="what the organization is called")
        parser.add_argument("--tier", help="tier0 to tier5, whatever it recharges (default: as earned)")
        parser.add_argument("--currency", default=HOUSE_CURRENCY, help="CNY or USD, for good (default: CNY)")
        parser.add_argument(
            "--recharge", type=amount, metavar="AMOUNT", help="put this much cash into its purse"
        )
        parser.add_argument(
            "--voucher", type=amount, metavar="AMOUNT", help="put a voucher of this much into its purse"
        )
        parser.add_argument(
            "--sandbox", action="store_true", help="with a clock of its own, to rehearse bills; for good"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    def handle(self, *args: Any, **options: Any) -> None:
        operator = f"create_organization ({account_name()})"
        try:
            with transaction.atomic():
                new = organizations.create(
                    name=options["name"],
                    tier_slug=options["tier"],
                    currency=options["currency"],
                    kind=Organization.Kind.SANDBOX if options["sandbox"] else Organization.Kind.STANDARD,
                    operator=operator,
                )
                for purse, value in (("cash", options["recharge"]), ("voucher", options["voucher"])):
                    if value is not None:
                        _recharge(new, purse=purse, value=value, operator=operator)
        except InvalidRequest as error:
            raise CommandError(error.message.removeprefix("Invalid request: ")) from error
        self._report(new, as_json=options["json"])

    def _report(self, new: NewOrganization, *, as_json: bool) -> None:
        made = {
            "organization": new.organization.id,
            "name": new.organization.name,
            "kind": str(new.organization.kind),
            "tier": tiers.tier_now(Organization.objects.get(id=new.organization.id)).slug,
            "project": new.project.id,
            "api_key_id": new.issued_key.key.id,
            "api_key": new.issued_key.secret,
        }
        if as_json:
            self.stdout.write(json.dumps(made))
            return
        for label, value in made.items():
            self.stdout.write(f"{label:<13} {value}")
        self.stdout.write("The API key is not shown again.")


def _recharge(new: NewOrganization, *, purse: str, value: Decimal, operator: str) -> None:
    organizations.recharge(
        organization_id=new.organization.id,
        amount=value,
        purse=purse,
        reason="first recharge",
        operator=operator,
        idempotency_key=f"create_organization:{new.organization.id}:{purse}",
    )


def account_name() -> str:
    """The operating system's name for who runs this, for the audit; a container may have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
