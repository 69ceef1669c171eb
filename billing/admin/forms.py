"""What operators type in: a recharge, a correction, a price. Each says why."""

from __future__ import annotations

import uuid
from datetime import datetime
from decimal import Decimal
from typing import Any

from django import forms
from django.forms import ModelForm
from unfold.widgets import (
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from billing import price_book
from billing.errors import PriceRefused
from billing.models import AccountKind, Price


class ReasonField(forms.CharField):
    def __init__(self, **options: Any) -> None:
        super().__init__(
            max_length=500,
            help_text="Is kept with the ledger entry for good.",
            widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
            **options,
        )


class CorrectionForm(forms.Form):
    reason = ReasonField()


class RechargeForm(forms.Form):
    amount = forms.DecimalField(
        min_value=Decimal("0.000000001"),
        max_digits=24,
        decimal_places=9,
        widget=UnfoldAdminDecimalFieldWidget(),
    )
    purse = forms.ChoiceField(
        choices=[(kind.value, kind.label) for kind in (AccountKind.CASH, AccountKind.VOUCHER)],
        widget=UnfoldAdminSelectWidget(),
    )
    expires_at = forms.DateTimeField(
        required=False,
        label="Expires at (UTC)",
        help_text="Vouchers only. Empty: never.",
        widget=UnfoldAdminTextInputWidget(attrs={"type": "datetime-local"}),
    )
    reason = ReasonField()
    key = forms.UUIDField(widget=forms.HiddenInput(), initial=uuid.uuid4)
    """Made with the page: sending the same page twice is one recharge."""

    def __init__(self, *args: Any, at: datetime, **kwargs: Any) -> None:
        """`at`: what the clock of the account's organization shows."""
        super().__init__(*args, **kwargs)
        self._at = at

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        expires_at = cleaned.get("expires_at")
        if expires_at and cleaned.get("purse") != AccountKind.VOUCHER:
            self.add_error("expires_at", "Only a voucher expires.")
        elif expires_at and expires_at <= self._at:
            self.add_error("expires_at", "This lies in the past.")
        return cleaned


class PriceForm(ModelForm):  # type: ignore[type-arg]
    class Meta:
        model = Price
        fields = ("priced_item", "per_million", "valid_from")

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if not self.errors:
            try:
                price_book.check(
                    cleaned["priced_item"],
                    per_million=cleaned["per_million"],
                    valid_from=cleaned["valid_from"],
                )
            except PriceRefused as error:
                raise forms.ValidationError(error.message) from error
        return cleaned
