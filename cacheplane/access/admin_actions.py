"""Operators' actions: a page with a form and a reason on GET, the act and its audit entry on POST."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import ModelAdmin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils import timezone
from unfold.widgets import (
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from billing.errors import BillingError
from cacheplane.access.api_keys import ROTATION_GRACE_SECONDS, IssuedKey
from cacheplane.access.audit import REASON_CHARS_MAX
from cacheplane.access.models import FeatureGate, Organization, Project, Tier
from cacheplane.access.organizations import NAME_CHARS_MAX
from cacheplane.access.tiers import THRESHOLDS
from cacheplane.errors import ControlPlaneError


def operator_of(request: HttpRequest) -> str:
    return request.user.get_username()


def act_on_form(
    model_admin: ModelAdmin[Any],
    request: HttpRequest,
    *,
    title: str,
    form: forms.Form,
    perform: Callable[[dict[str, Any]], str | HttpResponse],
    back_url: str,
    explanation: str = "",
) -> HttpResponse:
    """Show the form, or perform what it says. `perform` gives the sentence to show, or a page of its own.

    An error of ours goes back into the form as its sentence; nothing has happened then.
    """
    if request.method == "POST" and form.is_valid():
        try:
            done = perform(form.cleaned_data)
        except (ControlPlaneError, BillingError) as error:
            form.add_error(None, error.message)
        else:
            if isinstance(done, HttpResponse):
                return done
            messages.success(request, done)
            return HttpResponseRedirect(back_url)
    context = {
        **model_admin.admin_site.each_context(request),
        "title": title,
        "form": form,
        "explanation": explanation,
        "back_url": back_url,
    }
    return render(request, "access/action_form.html", context)


def show_secret_once(
    model_admin: ModelAdmin[Any], request: HttpRequest, *, issued: IssuedKey, back_url: str
) -> HttpResponse:
    """The answer to the POST itself (the admin sends it with `no-store`): a message would carry the secret
    through a cookie or the session table.
    """
    context = {
        **model_admin.admin_site.each_context(request),
        "title": "API key",
        "issued": issued,
        "back_url": back_url,
    }
    return render(request, "access/secret_once.html", context)


class ReasonField(forms.CharField):
    def __init__(self, **options: Any) -> None:
        super().__init__(
            max_length=REASON_CHARS_MAX,
            help_text="Goes into the audit log.",
            widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
            **options,
        )


class FutureInstantField(forms.DateTimeField):
    """An optional instant that lies ahead, typed as the browser's local date and time, read as UTC."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            widget=UnfoldAdminTextInputWidget(attrs={"type": "datetime-local"}), required=False, **options
        )

    def clean(self, value: Any) -> Any:
        instant = super().clean(value)
        if instant is not None and instant <= timezone.now():
            raise forms.ValidationError("This lies in the past.")
        return instant


class ReasonForm(forms.Form):
    reason = ReasonField()


class NewOrganizationForm(forms.Form):
    name = forms.CharField(max_length=NAME_CHARS_MAX, widget=UnfoldAdminTextInputWidget())
    tier = forms.ModelChoiceField(
        Tier.objects.all(),
        required=False,
        empty_label="as earned",
        help_text="One that is given holds whatever it recharges.",
        widget=UnfoldAdminSelectWidget(),
    )
    currency = forms.ChoiceField(
        choices=[(currency, currency) for currency in THRESHOLDS],
        help_text="For good: nothing is ever converted.",
        widget=UnfoldAdminSelectWidget(),
    )
    kind = forms.ChoiceField(choices=Organization.Kind.choices, widget=UnfoldAdminSelectWidget())


class TierForm(forms.Form):
    tier = forms.ModelChoiceField(Tier.objects.all(), empty_label=None, widget=UnfoldAdminSelectWidget())
    until = FutureInstantField(
        label="Until (UTC)", help_text="Empty: until it is ended. Then the earned tier holds again."
    )
    reason = ReasonField()


class GateForm(forms.Form):
    feature = forms.ModelChoiceField(
        FeatureGate.objects.all(), empty_label=None, widget=UnfoldAdminSelectWidget()
    )
    until = FutureInstantField(label="Until (UTC)", help_text="Empty: for good.")
    reason = ReasonField()


class IssueKeyForm(forms.Form):
    project = forms.ModelChoiceField(
        Project.objects.none(), empty_label=None, widget=UnfoldAdminSelectWidget()
    )
    name = forms.CharField(max_length=200, widget=UnfoldAdminTextInputWidget())
    expires_at = FutureInstantField(label="Expires at (UTC)", help_text="Empty: never.")
    reason = ReasonField()

    def __init__(self, *args: Any, projects: QuerySet[Project], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["project"]
        assert isinstance(field, forms.ModelChoiceField)
        field.queryset = projects


class RotateKeyForm(forms.Form):
    grace_seconds = forms.IntegerField(
        min_value=0,
        max_value=30 * 86_400,
        initial=ROTATION_GRACE_SECONDS,
        widget=UnfoldAdminIntegerFieldWidget(),
        help_text="How long the old key goes on living beside the new one.",
    )
    reason = ReasonField()


class RechargeForm(forms.Form):
    amount = forms.DecimalField(
        min_value=0, max_digits=24, decimal_places=9, widget=UnfoldAdminDecimalFieldWidget()
    )
    purse = forms.ChoiceField(
        choices=[("cash", "cash"), ("voucher", "voucher")], widget=UnfoldAdminSelectWidget()
    )
    reason = ReasonField()
    # Drawn once per page shown: a second click on the button posts the same money, not more of it.
    idempotency_key = forms.UUIDField(widget=forms.HiddenInput(), initial=uuid.uuid4)
