"""The pages of the price book: what has a price, from when to when, and which tier's an account pays."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db import transaction
from django.db.models import Model
from django.http import HttpRequest

from billing import price_book, storage
from billing.admin.forms import PriceForm
from billing.admin.pages import AddOnlyAdmin, OfOrganizationAdmin
from billing.models import AccountPriceTier, Meter, Price, PricedItem


@admin.register(PricedItem)
class PricedItemAdmin(AddOnlyAdmin):
    list_display = ["meter", "model", "currency", "tier"]
    list_filter = ["meter", "currency", "tier"]
    search_fields = ["model"]
    ordering = ["meter", "model", "tier"]


@admin.register(Price)
class PriceAdmin(AddOnlyAdmin):
    """A new price is announced for a time to come; what was in force then ends. Nothing else can be done to it."""

    form = PriceForm
    list_display = ["priced_item", "per_million", "valid_from", "valid_to"]
    list_filter = [
        *("priced_item__meter", "priced_item__currency", "priced_item__tier"),
        ("valid_to", admin.EmptyFieldListFilter),
    ]
    list_select_related = ["priced_item"]
    search_fields = ["priced_item__model"]
    date_hierarchy = "valid_from"
    ordering = ["-valid_from", "priced_item"]

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        announced = ["priced_item", "per_million", "valid_from"]
        return [*announced, "valid_to", "created_at"] if obj else announced

    def save_model(self, request: HttpRequest, obj: Price, form: Any, change: bool) -> None:
        item = obj.priced_item
        published = price_book.publish(
            meter=item.meter,
            model=item.model,
            currency=item.currency,
            tier=item.tier,
            per_million=obj.per_million,
            valid_from=obj.valid_from,
        )
        obj.pk = published.pk
        if item.meter == Meter.STORAGE:
            transaction.on_commit(storage.reprice)


@admin.register(AccountPriceTier)
class AccountPriceTierAdmin(OfOrganizationAdmin):
    """Written as tiers change; a row that begins later is a change that is known ahead."""

    list_display = ["organization", "tier", "valid_from", "valid_to", "created_at"]
    list_filter = ["tier", ("valid_to", admin.EmptyFieldListFilter)]
    search_fields = ["organization__id", "organization__name"]
    date_hierarchy = "valid_from"
    ordering = ["-valid_from", "-id"]
