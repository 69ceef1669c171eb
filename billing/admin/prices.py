"""The pages of the price book: what has a price, from when to when, and which tier's an account pays."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db import transaction
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from unfold.decorators import action

from billing import clock, money, previews, price_book, storage
from billing.admin.forms import EndForm, PreviewForm, PriceForm
from billing.admin.pages import AddOnlyAdmin, OfOrganizationAdmin
from billing.errors import BillingError
from billing.models import AccountPriceTier, Meter, Price, PricedItem
from billing.previews import Preview


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
    actions_list = ["preview"]
    actions_detail = ["end"]

    @action(description="Try a new price list", permissions=["operate"], icon="balance")
    def preview(self, request: HttpRequest) -> HttpResponse:
        """What a month would have cost by a draft: shown, and announced only by the other button."""
        is_announcing = "announce" in request.POST
        initial = {"month": previews.last_month(clock.now())}
        form = PreviewForm(request.POST or None, is_announcing=is_announcing, initial=initial)
        found = None
        if request.method == "POST" and form.is_valid():
            given = form.cleaned_data
            first, end = given["month"]
            found = previews.preview(
                given["draft"], first=first, end=end, organization_id=given["organization"] or None
            )
            if is_announcing:
                try:
                    with transaction.atomic():
                        self.announce(request, given)
                except BillingError as error:
                    form.add_error(None, error.message)
                else:
                    messages.success(request, f"{len(given['draft'])} prices are announced.")
                    return HttpResponseRedirect(reverse("admin:billing_price_changelist"))
        context = {**self.admin_site.each_context(request), "title": "Try a new price list", "form": form}
        return render(request, "billing/preview.html", context | {"tables": _tables(found), "found": found})

    @action(description="End a tier's price", permissions=["operate"], icon="event_busy")
    def end(self, request: HttpRequest, object_id: str) -> HttpResponse:
        price = self.required(object_id)

        def perform(given: dict[str, Any]) -> str:
            self.let_end(request, price, given)
            return f"{price} ends at {given['ends_at']:%Y-%m-%d %H:%M} UTC."

        return self.act_on_form(
            request,
            form=EndForm(request.POST or None),
            title="End a tier's price",
            explanation=f"{price}. Then the price for all tiers holds for it again.",
            perform=perform,
            back_to=price.pk,
        )

    def let_end(self, request: HttpRequest, price: Price, given: dict[str, Any]) -> None:
        """As `announce`."""
        price_book.end(price, at=given["ends_at"])
        if price.priced_item.meter == Meter.STORAGE:
            transaction.on_commit(storage.reprice)

    def announce(self, request: HttpRequest, given: dict[str, Any]) -> None:
        """Who keeps a log of what operators do adds to it in a class of its own."""
        previews.announce(given["draft"], valid_from=given["valid_from"])

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        announced = ["priced_item", "per_million", "valid_from"]
        return [*announced, *(["valid_to", "created_at"] if obj else ["reason"])]

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


def _tables(found: Preview | None) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Each with its title; amounts to nine decimals."""
    if found is None:
        return []
    groups = {
        "In all": found.totals,
        "By meter": found.meters,
        "By model": found.models,
        "By organization: the largest differences": found.organizations,
    }
    return [
        (
            title,
            [(row.name, row.currency, *map(money.text, (row.old, row.new, row.difference))) for row in rows],
        )
        for title, rows in groups.items()
    ]


@admin.register(AccountPriceTier)
class AccountPriceTierAdmin(OfOrganizationAdmin):
    """Written as tiers change; a row that begins later is a change that is known ahead."""

    list_display = ["organization", "tier", "valid_from", "valid_to", "created_at"]
    list_filter = ["tier", ("valid_to", admin.EmptyFieldListFilter)]
    search_fields = ["organization__id", "organization__name"]
    date_hierarchy = "valid_from"
    ordering = ["-valid_from", "-id"]
