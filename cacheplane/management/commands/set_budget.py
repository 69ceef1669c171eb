"""`manage.py set_budget ORGANIZATION 500 --per month --reason "…"`; `none` instead of an amount takes it away."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from billing import money
from billing.budgets import MONTH, PERIODS, Budget
from billing.errors import BillingError
from cacheplane.caching import changes
from cacheplane.errors import ControlPlaneError
from cacheplane.management.commands.create_organization import account_name, amount

NONE = "none"


def amount_or_none(text: str) -> Decimal | None:
    return None if text == NONE else amount(text)


class Command(BaseCommand):
    help = "Say what all creations and all storage of an organization may cost, in each month of UTC+8 or in total."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("organization", metavar="ORGANIZATION", help="its id")
        parser.add_argument(
            "amount", metavar="AMOUNT", type=amount_or_none, help=f"for example 500, or {NONE}"
        )
        parser.add_argument("--per", choices=PERIODS, default=MONTH, help=f"default: {MONTH}")
        parser.add_argument("--reason", required=True, help="for the operators' log")

    def handle(self, *args: Any, **options: Any) -> None:
        wanted: Decimal | None = options["amount"]
        budget = None if wanted is None else Budget(amount=money.exact(wanted), per=options["per"])
        try:
            changes.set_organization_budget(
                options["organization"],
                budget,
                operator=f"set_budget ({account_name()})",
                reason=options["reason"],
            )
        except (ControlPlaneError, BillingError) as error:
            raise CommandError(error.message.removeprefix("Invalid request: ")) from error
        said = (
            "has no budget" if budget is None else f"may spend {money.text(budget.amount)} per {budget.per}"
        )
        self.stdout.write(f"{options['organization']} {said}.")
