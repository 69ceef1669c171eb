"""What a fresh instance needs before it serves: an engine, an organization with a key, an operator.

Run at every start; what is there already is left as it is.
"""

from __future__ import annotations

import json
import os
import uuid
from argparse import ArgumentParser
from decimal import Decimal
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from billing import charging, clock
from cacheplane.access import api_keys, organizations
from cacheplane.access.models import Organization, Project
from cacheplane.engines import registry
from cacheplane.errors import EngineError

FIRST_ORGANIZATION = "First organization"
VOUCHER = Decimal("1000")
OPERATOR = "first run"


class Command(BaseCommand):
    help = "Register the engine, and create the first organization with a key and the operator's login."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
        parser.add_argument(
            "--new-key", action="store_true", help="issue another key when the organization is there already"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            registry.register()
        except EngineError as error:
            raise CommandError(
                f"The engine at ENGINE_URL did not answer the probe: {error.message}"
            ) from error
        found = {**self._organization(new_key=options["new_key"]), **self._operator()}
        if options["json"]:
            self.stdout.write(json.dumps(found))
        else:
            for name, value in found.items():
                self.stdout.write(f"{name}: {value}")

    def _organization(self, *, new_key: bool) -> dict[str, Any]:
        existing = Organization.objects.order_by("created_at", "id").first()
        if existing is None:
            with transaction.atomic():
                new = organizations.create(name=FIRST_ORGANIZATION, tier_slug="tier5", operator=OPERATOR)
                charging.recharge(
                    organization_id=new.organization.id,
                    amount=VOUCHER,
                    purse="voucher",
                    reason="Demonstration voucher",
                    operator=OPERATOR,
                    idempotency_key=f"first-run:{new.organization.id}:{uuid.uuid4()}",
                    at=clock.now(),
                )
            return {"organization": new.organization.id, "api_key": new.issued_key.secret}
        secret = None
        if new_key:
            project = Project.objects.filter(organization=existing).order_by("id").first()
            assert project is not None, "an organization is created with a project"
            secret = api_keys.issue(project=project, name="first run", operator=OPERATOR).secret
        return {"organization": existing.id, "api_key": secret}

    def _operator(self) -> dict[str, Any]:
        """The login comes from ADMIN_USER and ADMIN_PASSWORD; an existing one keeps its password."""
        name, password = os.environ.get("ADMIN_USER", "admin"), os.environ.get("ADMIN_PASSWORD", "")
        users = get_user_model()
        if users.objects.filter(username=name).exists():
            return {"admin_user": name}
        if not password:
            raise CommandError(
                "Set ADMIN_PASSWORD: there is no operator yet, and one without a password is none."
            )
        users.objects.create_superuser(username=name, password=password)
        return {"admin_user": name}
