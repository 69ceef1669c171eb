"""The system's accounts and the price list that the service opens with (dates are midnights in Shanghai)."""

import uuid
from datetime import datetime, timedelta, timezone
from decimal import Decimal

from django.db import migrations

NAMESPACE = uuid.UUID("5f0c0d3a-9d2b-5f0e-8f0a-1d1f6f1d6b10")
SYSTEM_KINDS = (
    "funding_cash",
    "funding_voucher",
    "revenue_creation",
    "revenue_storage",
    "revenue_call",
    "revenue_tokens",
    "waived",
)
SHANGHAI = timezone(timedelta(hours=8))
NEW_YEAR = datetime(2024, 1, 1, tzinfo=SHANGHAI)
BETA = datetime(2024, 7, 1, tzinfo=SHANGHAI)
STORAGE_HALVED = datetime(2024, 8, 7, tzinfo=SHANGHAI)

# (meter, model or family): [(per million, from, to)]
PRICES = {
    ("creation", "moonshot-v1"): [("24", BETA, None)],
    ("storage", "moonshot-v1"): [("10", BETA, STORAGE_HALVED), ("5", STORAGE_HALVED, None)],
    ("call", "moonshot-v1"): [("20000", BETA, None)],
    ("prompt", "moonshot-v1-8k"): [("12", NEW_YEAR, None)],
    ("completion", "moonshot-v1-8k"): [("12", NEW_YEAR, None)],
    ("prompt", "moonshot-v1-32k"): [("24", NEW_YEAR, None)],
    ("completion", "moonshot-v1-32k"): [("24", NEW_YEAR, None)],
    ("prompt", "moonshot-v1-128k"): [("60", NEW_YEAR, None)],
    ("completion", "moonshot-v1-128k"): [("60", NEW_YEAR, None)],
}


def open_system_accounts(apps, schema_editor):
    LedgerAccount = apps.get_model("billing", "LedgerAccount")
    for currency in ("CNY", "USD"):
        for kind in SYSTEM_KINDS:
            LedgerAccount.objects.get_or_create(
                id=uuid.uuid5(NAMESPACE, f"{kind}:{currency}"), defaults={"kind": kind, "currency": currency}
            )


def publish_first_prices(apps, schema_editor):
    PricedItem = apps.get_model("billing", "PricedItem")
    Price = apps.get_model("billing", "Price")
    for (meter, model), prices in PRICES.items():
        item, _ = PricedItem.objects.get_or_create(meter=meter, model=model, currency="CNY")
        for per_million, valid_from, valid_to in prices:
            Price.objects.create(
                priced_item=item,
                per_million=Decimal(per_million),
                valid_from=valid_from,
                valid_to=valid_to,
                created_at=valid_from,
            )


class Migration(migrations.Migration):
    dependencies = [("billing", "0002_guards")]

    operations = [
        migrations.RunPython(open_system_accounts, migrations.RunPython.noop),
        migrations.RunPython(publish_first_prices, migrations.RunPython.noop),
    ]
