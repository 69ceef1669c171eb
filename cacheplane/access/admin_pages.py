"""What the operators' pages of access have in common: nothing is deleted, and a change asks for a reason."""

from __future__ import annotations

from typing import Any

from django.db.models import Model
from django.forms import ModelForm
from django.http import Http404, HttpRequest
from django.urls import reverse
from unfold.admin import ModelAdmin

from cacheplane.access import audit
from cacheplane.access.admin_actions import ReasonField, operator_of

ROWS_PER_PAGE = 50


class AccessAdmin(ModelAdmin):
    """Nothing is deleted here: rows that others point at are suspended, revoked or ended instead."""

    list_per_page = ROWS_PER_PAGE
    list_filter_submit = True
    actions = None

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_operate_permission(self, request: HttpRequest, object_id: str | None = None) -> bool:
        """Who may change rows of this table may run its actions, also where the form itself is read-only."""
        return request.user.has_perm(f"{self.opts.app_label}.change_{self.opts.model_name}")

    def required(self, object_id: str) -> Any:
        found = self.model.objects.filter(pk=object_id).first()
        if found is None:
            raise Http404(f"No {self.opts.verbose_name} has the id {object_id}")
        return found

    def url_of(self, object_id: Any) -> str:
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_change", args=[object_id])


class ReadOnlyAdmin(AccessAdmin):
    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class AuditedForm(ModelForm):  # type: ignore[type-arg]
    reason = ReasonField()


class AuditedAdmin(AccessAdmin):
    """Each save through the form appends what changed, from what, to what, and why."""

    form = AuditedForm

    def save_model(self, request: HttpRequest, obj: Any, form: ModelForm[Any], change: bool) -> None:
        super().save_model(request, obj, form, change)
        fields = [name for name in form.changed_data if name != "reason"]
        audit.record(
            operator=operator_of(request),
            action=f"{self.opts.model_name}.{'change' if change else 'add'}",
            subject=str(obj.pk),
            organization_id=getattr(obj, "organization_id", None),
            reason=audit.required_reason(form.cleaned_data["reason"]),
            detail={
                name: {"from": _plain(form.initial.get(name)), "to": _plain(form.cleaned_data[name])}
                for name in fields
            },
        )


def _plain(value: Any) -> str | int | bool | None:
    """What an audit entry shows of a field's value; a row by its key."""
    if isinstance(value, Model):
        return str(value.pk)
    return value if value is None or isinstance(value, int) else str(value)
