"""What the pages of money have in common: rows are read, and what moves money is an action with a reason."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.db import transaction
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin

from billing.errors import BillingError

ROWS_PER_PAGE = 50
LINK = '<a class="text-primary-600 dark:text-primary-500" href="{}">{}</a>'


class ReadOnlyAdmin(ModelAdmin):
    list_per_page = ROWS_PER_PAGE
    list_filter_submit = True
    show_full_result_count = False
    actions = None

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_operate_permission(self, request: HttpRequest, object_id: str | None = None) -> bool:
        """Who may change rows of this table may run its actions, though its forms are read-only to all."""
        return request.user.has_perm(f"{self.opts.app_label}.change_{self.opts.model_name}")

    def required(self, object_id: str) -> Any:
        found = self.model.objects.filter(pk=object_id).first()
        if found is None:
            raise Http404(f"No {self.opts.verbose_name} has the id {object_id}")
        return found

    def act_on_form(
        self,
        request: HttpRequest,
        *,
        form: forms.Form,
        title: str,
        explanation: str,
        perform: Any,
        back_to: Any,
    ) -> HttpResponse:
        """The form on GET; on POST what it says, or billing's own sentence when that is refused."""
        back_url = reverse(f"admin:billing_{self.opts.model_name}_change", args=[back_to])
        if request.method == "POST" and form.is_valid():
            try:
                with transaction.atomic():
                    done = perform(form.cleaned_data)
            except BillingError as error:
                form.add_error(None, error.message)
            else:
                messages.success(request, done)
                return HttpResponseRedirect(back_url)
        context = {"title": title, "explanation": explanation, "form": form, "back_url": back_url}
        context |= self.admin_site.each_context(request)
        return render(request, "billing/action_form.html", context)


def link(model: str, query: str, text: str) -> SafeString:
    return format_html(LINK, f"{reverse(f'admin:billing_{model}_changelist')}?{query}", text)


class OfOrganizationAdmin(ReadOnlyAdmin):
    """Rows of one organization each."""

    list_select_related = ["organization"]

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        return lookup == "organization_id" or super().lookup_allowed(lookup, value, request)


class AddOnlyAdmin(ReadOnlyAdmin):
    def has_add_permission(self, request: HttpRequest) -> bool:
        return ModelAdmin.has_add_permission(self, request)
