"""What operators type in: a recharge, a correction, a price. Each says why."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

from django import forms
from django.forms import ModelForm
from unfold.widgets import (
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from billing import previews, price_book
from billing.errors import DraftRefused, PriceRefused
from billing.models import AccountKind, Price
from billing.previews import DraftPrice

Read = TypeVar("Read")


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


class EndForm(forms.Form):
    ends_at = forms.DateTimeField(
        label="Ends at (UTC)",
        help_text="At least five minutes ahead.",
        widget=UnfoldAdminTextInputWidget(attrs={"type": "datetime-local"}),
    )
    reason = ReasonField()


class PreviewForm(forms.Form):
    """A draft of new prices and the month to try it on; to announce them, from when on and why."""

    draft = forms.CharField(
        max_length=previews.DRAFT_CHARS_MAX,
        label="New prices",
        help_text="CSV with a header, or a JSON list: meter, model, per_million; currency and tier if wanted.",
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 8}),
    )
    month = forms.CharField(max_length=7, help_text="YYYY-MM, of UTC+8.", widget=UnfoldAdminTextInputWidget())
    organization = forms.CharField(
        max_length=32,
        required=False,
        help_text="The id of one alone. Empty: all.",
        widget=UnfoldAdminTextInputWidget(),
    )
    valid_from = forms.DateTimeField(
        required=False,
        label="Announce for (UTC)",
        help_text="At least five minutes ahead. Only to announce them.",
        widget=UnfoldAdminTextInputWidget(attrs={"type": "datetime-local"}),
    )
    reason = ReasonField(required=False)

    def __init__(self, *args: Any, is_announcing: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["valid_from"].required = self.fields["reason"].required = is_announcing
        self.fields["reason"].help_text = "Only to announce them: why."

    def clean_draft(self) -> list[DraftPrice]:
        return _read(previews.parse, self.cleaned_data["draft"])

    def clean_month(self) -> tuple[datetime, datetime]:
        return _read(previews.month, self.cleaned_data["month"])


def _read(reader: Callable[[str], Read], text: str) -> Read:
    try:
        return reader(text)
    except DraftRefused as error:
        raise forms.ValidationError(error.message) from error


class PriceForm(ModelForm):  # type: ignore[type-arg]
    reason = ReasonField()

    class Meta:
        model = Price
        fields = ("priced_item", "per_million", "valid_from")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["reason"].help_text = "Is kept in the log of what operators do."

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
